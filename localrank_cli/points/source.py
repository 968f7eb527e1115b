"""The source of the data in `--data`: a file, the user's code, or a distribution."""

import contextlib
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from localrank_cli.errors import DataError, SettingsError, UsageError, cause, listed, shortened
from localrank_cli.points.advice import advice_of_array
from localrank_cli.points.defaults import MOST_AXES
from localrank_cli.points.draw import Points, draw, from_numpy, sample
from localrank_cli.points.files import SUFFIXES, file_hash, load_arrays, named_arrays, refuse_key
from localrank_cli.points.inputs import Forward, choose_keys, pack
from localrank_cli.points.rows import Data, check_memory
from localrank_cli.points.shape import reshaped, written
from localrank_cli.seeds import SEED, seeded
from localrank_cli.userimport import ANY_FAULT, CodeSpec, import_object

_PYTHON = "from Python"
_NO_NAMES = "the data have no named arrays"
# The fact that distinguishes one draw of the user's code from another.
VALUES = "data_values_sha256"
_DISTRIBUTION = re.compile(r"^(normal|uniform):(\d+(?:x\d+)*)$")


@dataclass(frozen=True)
class DataSource:
    """`--data` and its options."""

    text: str  # of --data
    key: str = ""
    scale: float | None = None
    shape: tuple[int, ...] | None = None  # of one point; None: as the data have it
    count: int | None = None  # None: the default number of points
    seed: int = 0
    array: Tensor | Mapping[str, Tensor] | None = None  # from Python, instead of a name
    labels_key: str = ""  # the array of the labels, which is no input
    forward: Forward = Forward()  # what the network takes by name
    keep: bool = False  # whether all of the data are kept beside the points
    memory: int | None = None  # bytes that the points of a file may take; None: any number

    @property
    def path(self) -> Path | None:
        """The data file; None if the data come from code or a distribution."""
        return Path(self.text) if Path(self.text).suffix.lower() in SUFFIXES else None

    @property
    def is_drawn(self) -> bool:
        """Whether the data come from a distribution, whose name includes the shape of a point."""
        return _DISTRIBUTION.match(self.text) is not None

    @property
    def code(self) -> CodeSpec | None:
        """The user's code; None if the data come from a file or a distribution."""
        return None if self.path is not None else CodeSpec.parse(self.text)


def check_source(text: str) -> None:
    """Check the form of `--data` without opening a file.

    Raises:
        UsageError: If it has no valid form.
    """
    source = DataSource(text)
    match = _DISTRIBUTION.match(text)
    if match is not None:
        shape = _shape(match.group(2))
        if 0 in shape:
            raise UsageError(f"--data {text}: a point of that shape has no entries.")
        if len(shape) > MOST_AXES:
            raise UsageError(
                f"--data {shortened(text)}: expected at most {MOST_AXES} axes, got {len(shape)}.",
                "Give the shape of one point: normal:3x32x32.",
            )
    elif source.path is None and source.code is None:
        raise UsageError(
            f"--data {text}: not a valid form.",
            "Use a .safetensors, .npz, .npy or .pt file, file.py:name, normal:3x32x32 or"
            " uniform:784.",
        )


def load_points(source: DataSource) -> tuple[Points, dict[str, object]]:
    """Return the points drawn from the data, and a description for the manifest.

    Raises:
        DataError: If the data cannot be used.
        SettingsError: If an array is named where arrays have no names.
    """
    if source.array is not None:
        if isinstance(source.array, Tensor):
            array = _unnamed(source.array, source)
            points = _drawn(array, source, "the data")
            # All of a large array is hashed only where all of it counts.
            counted = array if source.keep else points.tensor
            return points, {"data": _PYTHON, VALUES: _values_hash(counted)}
        described: dict[str, object] = {"data": _PYTHON}
        return _of_arrays(source.array, source, "the data", described), described
    match = _DISTRIBUTION.match(source.text)
    if match is not None:
        _check_drawn(source)
        shape = _shape(match.group(2))
        points = sample(match.group(1), shape, source.count, source.seed, source.scale)
        return points, {"data": source.text}
    if source.path is not None:
        name = str(source.path)
        left: list[str] = []
        arrays = load_arrays(
            source.path, lambda keys: _chosen(keys, source, name, left), source.memory
        )
        if source.key and "" in arrays:
            refuse_key(source.key, f"{name} holds one array without a name")
        described = {
            "data": str(source.path.resolve()),
            "data_key": ",".join(arrays),
            "data_sha256": file_hash(source.path),
        }
        return _of_chosen(arrays, source, name, left), described
    code = source.code
    if code is None:
        raise UsageError(f"--data {source.text}: not a valid form.")
    described = {"data": source.text}
    if code.is_file:
        described["data_sha256"] = file_hash(Path(code.place))
    found = _from_code(code)
    if isinstance(found, Tensor):
        array = _unnamed(found, source)
        described[VALUES] = _values_hash(array)
        return _drawn(array, source, source.text), described
    return _of_arrays(found, source, source.text, described), described


def _check_drawn(source: DataSource) -> None:
    """Check the options that go with a distribution."""
    if source.key:
        refuse_key(source.key, _NO_NAMES)
    if source.shape is not None:
        kind, lengths = source.text.partition(":")[0], written(source.shape)
        raise SettingsError(
            f"--data-shape {lengths}: --data {source.text} already has a shape.",
            f"Give --data {kind}:{lengths} alone.",
        )


def _unnamed(array: Tensor, source: DataSource) -> Tensor:
    if source.key:
        refuse_key(source.key, _NO_NAMES)
    return array.detach().cpu()


def _of_arrays(
    found: Mapping[str, Tensor], source: DataSource, name: str, described: dict[str, object]
) -> Points:
    """Return the points of named arrays, and add what they are to their description."""
    left: list[str] = []
    arrays = {key: found[key] for key in _chosen(list(found), source, name, left)}
    described["data_key"] = ",".join(arrays)
    described[VALUES] = hashlib.sha256(
        "".join(f"{key} {_values_hash(array)} " for key, array in arrays.items()).encode()
    ).hexdigest()
    return _of_chosen(arrays, source, name, left)


def _chosen(keys: list[str], source: DataSource, name: str, left: list[str]) -> list[str]:
    """Return the arrays to take, and add the others to `left`."""
    chosen = choose_keys(keys, source.key, source.forward, source.labels_key, name)
    left += [key for key in keys if key not in chosen]
    return chosen


def _of_chosen(
    arrays: Mapping[str, Data], source: DataSource, name: str, left: Sequence[str]
) -> Points:
    """Return the points of the chosen arrays: of one, or of several inputs by name."""
    if len(arrays) == 1:
        ((key, array),) = arrays.items()
        return _drawn(array, source, f"{name}[{key}]" if key else name)
    for option, value in (("--data-shape", source.shape), ("--data-scale", source.scale)):
        if value is not None:
            raise SettingsError(
                f"{option}: the data are several inputs, {listed(arrays)}.",
                "Shape and scale them where they are saved, or in a function for --data"
                " file.py:name; --data-key NAME takes one alone.",
            )
    rows, inputs = pack(arrays, name, is_ordered="," in source.key)
    points = replace(_drawn(rows, source, name), inputs=inputs)
    note = f"{name}: passed by name: {listed(arrays, 20)}"
    note += f"; left out: {listed(left)}" if left else ""
    return replace(points, notes=(*points.notes, note))


def _values_hash(array: Tensor) -> str:
    """Return a hash of what code returned: it may return something else when it runs again."""
    digest = hashlib.sha256(f"{array.dtype} {tuple(array.shape)}".encode())
    digest.update(array.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _drawn(array: Data, source: DataSource, name: str) -> Points:
    if source.shape is not None:
        array = reshaped(array, source.shape, name)
    if source.path is not None:
        check_memory(array, source.count, source.memory, name)
    points = draw(array, source.count, source.seed, source.scale, name)
    return replace(points, everything=array, scale=source.scale) if source.keep else points


def _from_code(code: CodeSpec) -> Tensor | dict[str, Tensor]:
    name = f"--data {code.place}:{code.name}"
    # Seeded, so that the code draws the same values at every start, on import and when called.
    with seeded(SEED):
        found: Any = import_object(code, "--data")
    if not isinstance(found, (Tensor, np.ndarray, Mapping)) and callable(found):
        try:
            with contextlib.chdir("."), seeded(SEED):
                found = found()
        except ANY_FAULT as error:
            raise DataError(
                f"{name} failed: {cause(error)}",
                "It is called without arguments and must return a tensor, an array or a dict of"
                " them.",
            ) from error
    if isinstance(found, np.ndarray):
        return from_numpy(found, name)
    if isinstance(found, Tensor):
        return found.detach().cpu()
    if isinstance(found, TensorDataset):
        found = found.tensors
    if _are_arrays(found):  # named by their places, as in a file
        found = {str(index): array for index, array in enumerate(found)}
    arrays = named_arrays(found, name)
    if arrays:
        return arrays
    raise DataError(
        f"{name} returned a {type(found).__name__}.",
        "A tensor or an array is needed, with the points on its first axis, or a dict of them."
        f" {advice_of_array(found, 'Return')}",
    )


def _are_arrays(found: object) -> bool:
    """Return whether something is a tuple or list of arrays: (inputs, labels)."""
    return (
        isinstance(found, (list, tuple))
        and len(found) > 1
        and all(isinstance(one, (Tensor, np.ndarray)) and one.ndim for one in found)
    )


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(length) for length in text.split("x"))
