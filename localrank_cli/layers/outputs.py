"""The first tensor in what a module returns, whatever it returns it in."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def real_parts(tensor: Tensor) -> Tensor:
    """Return a tensor as real numbers: what is differentiated of a complex output.

    Args:
        tensor: Any tensor.

    Returns:
        A real tensor itself; of a complex one its real and imaginary parts, along a new last axis.
    """
    # view_as_real refuses lazily conjugated tensors.
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def from_real_parts(parts: Tensor, like: Tensor) -> Tensor:
    """Undo `real_parts`.

    Args:
        parts: From `real_parts`.
        like: A tensor of the kind that is wanted.

    Returns:
        A complex tensor where `like` is complex, else `parts`.
    """
    return torch.complex(parts[..., 0], parts[..., 1]) if like.is_complex() else parts


def first_tensor(output: object) -> Tensor | None:
    """Finds the first tensor of a module's output, depth first.

    Args:
        output: A tensor, or tensors nested in tuples, lists, mappings and dataclasses (an LSTM's
            output, a Hugging Face ModelOutput).

    Returns:
        The tensor itself, not a copy, or None when there is none.
    """
    if isinstance(output, Tensor):
        return output
    for _, item in _entries(output):
        found = first_tensor(item)
        if found is not None:
            return found
    return None


def replace_first(output: object, tensor: Tensor) -> Any:
    """Returns the output with its first tensor replaced; the original is left as it is.

    Args:
        output: What a module returned; it holds at least one tensor.
        tensor: What takes the first tensor's place.

    Returns:
        An object of the same structure.
    """
    if isinstance(output, Tensor):
        return tensor
    for key, value in _entries(output):
        if first_tensor(value) is not None:
            return _with_entry(output, key, replace_first(value, tensor))
    return output


def _entries(output: object) -> list[tuple[Any, Any]]:
    """The parts of an output, each with what finds it: a key, an index or a field's name."""
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
        object.__setattr__(changed, key, value)  # frozen ones too
    return changed
