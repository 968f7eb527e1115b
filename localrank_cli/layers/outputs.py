"""The first tensor in a module's output, whatever structure holds it."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def real_parts(tensor: Tensor) -> Tensor:
    """Return a tensor as real numbers, along which a complex output is differentiated.

    A real tensor is returned itself, a complex one as its real and imaginary parts along a new last
    axis.
    """
    # view_as_real refuses lazily conjugated tensors.
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def from_real_parts(parts: Tensor, like: Tensor) -> Tensor:
    """Undo `real_parts`; `like` is real or complex as the result is to be."""
    return torch.complex(parts[..., 0], parts[..., 1]) if like.is_complex() else parts


def first_tensor(output: object) -> Tensor | None:
    """Return the first tensor of a module's output, depth first; not a copy. None without one.

    It may be nested in tuples, lists, mappings and dataclasses (an LSTM's output, a Hugging Face
    ModelOutput).
    """
    if isinstance(output, Tensor):
        return output
    for _, item in _entries(output):
        found = first_tensor(item)
        if found is not None:
            return found
    return None


def replace_first(output: object, tensor: Tensor) -> Any:
    """Return an output with its first tensor replaced; the original is left as it is."""
    if isinstance(output, Tensor):
        return tensor
    for key, value in _entries(output):
        if first_tensor(value) is not None:
            return _with_entry(output, key, replace_first(value, tensor))
    return output


def _entries(output: object) -> list[tuple[Any, Any]]:
    """Return the parts of an output, each with its key, index or field name."""
    if isinstance(output, Mapping):
        return list(output.items())
    if isinstance(output, (tuple, list)):
        return list(enumerate(output))
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        names = [field.name for field in dataclasses.fields(output)]
        return [(name, getattr(output, name, None)) for name in names]
    return []


def _with_entry(output: Any, key: Any, value: object) -> Any:
    if isinstance(output, (tuple, list)):
        items = [value if index == key else item for index, item in enumerate(output)]
        kind: Any = type(output)
        return kind(*items) if hasattr(output, "_fields") else kind(items)
    changed = copy.copy(output)
    if isinstance(output, Mapping):
        changed[key] = value
    else:
        object.__setattr__(changed, key, value)  # works for frozen dataclasses too
    return changed
