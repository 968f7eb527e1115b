"""The first points of a Dataset or a DataLoader, without advancing the user's own iterator."""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
from torch import Tensor, as_tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from localrank_cli.errors import DataError, cause
from localrank_cli.points.defaults import DEFAULT_POINTS

_AS_TENSOR = (
    "Pass the points as one tensor, with the points on its first axis, or a DataLoader that makes"
    " batches of them."
)


def first_points(data: object, count: int | None) -> object:
    """Return the first `count` points of a Dataset or DataLoader, and anything else unchanged.

    They are in order of the dataset, whatever order its loader draws. Without a count there are as
    many as the default, or all.

    Raises:
        DataError: If they cannot be taken so.
    """
    if data is None or isinstance(data, str | PathLike | Tensor | np.ndarray | Mapping):
        return data
    collate: Callable[[list[Any]], Any] = _collate
    dataset: Any = data
    if isinstance(data, DataLoader):
        dataset = data.dataset
        if data.batch_size is not None or data.batch_sampler is not None:
            collate = data.collate_fn
    if isinstance(dataset, IterableDataset):
        raise DataError(
            f"data={type(data).__name__}: its dataset can only be iterated over, and iterating here"
            " could use up data that training needs.",
            _AS_TENSOR,
        )
    if not _is_dataset(dataset, is_loaded=dataset is not data):
        return data  # the option's reader says what to do
    n_points = DEFAULT_POINTS if count is None else count
    try:
        n_points = min(n_points, len(dataset))
    except Exception as error:  # the user's code may raise anything
        raise DataError(
            f"data={type(data).__name__}: its length cannot be determined ({cause(error)}).",
            _AS_TENSOR,
        ) from error
    if n_points == 0:
        raise DataError(f"data={type(data).__name__}: holds no points.", _AS_TENSOR)
    try:
        batch = collate([dataset[index] for index in range(n_points)])
    except Exception as error:  # the user's code may raise anything
        raise DataError(
            f"data={type(data).__name__}: its first {n_points} points cannot be combined"
            f" ({cause(error)}).",
            _AS_TENSOR,
        ) from error
    return _inputs(batch, data)


def _collate(items: list[Any]) -> Any:
    """Join items as torch does, but lists of numbers under a name as tensors: tokens, say."""
    if isinstance(items[0], Mapping):
        items = [{key: _tensor(value) for key, value in item.items()} for item in items]
    return default_collate(items)


def _tensor(value: object) -> object:
    if not isinstance(value, list):
        return value
    try:
        return as_tensor(value)
    except (TypeError, ValueError, RuntimeError):  # words, or lists of several lengths
        return str(value)


def _is_dataset(dataset: Any, *, is_loaded: bool) -> bool:
    """Return whether points can be taken by their number; a list may be one array, or many points.

    `is_loaded` is whether a DataLoader is there to say so.
    """
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        return False
    if is_loaded or not isinstance(dataset, Sequence):
        return True
    first = dataset[0] if isinstance(dataset, list) and dataset else None
    return isinstance(first, tuple | Mapping) or (isinstance(first, Tensor) and first.ndim > 0)


def _inputs(batch: object, data: object) -> object:
    """Return the inputs of a batch: of several entries the first, of named ones all tensors."""
    if isinstance(batch, Tensor | np.ndarray):
        return as_tensor(batch).detach().cpu()
    if isinstance(batch, Mapping):
        found = {
            str(key): as_tensor(value).detach().cpu()
            for key, value in batch.items()
            if isinstance(value, Tensor | np.ndarray)
        }
        if found:
            return found
    elif isinstance(batch, Sequence) and not isinstance(batch, str) and batch:
        return _inputs(batch[0], data)
    raise DataError(
        f"data={type(data).__name__}: a batch of it is a {type(batch).__name__} without tensors.",
        _AS_TENSOR,
    )
