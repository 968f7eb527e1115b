"""The attributes and buffers of a network that a forward pass changes."""

import copy
import operator
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from localrank_cli import walk


def changed_by(model: nn.Module, run: Callable[[], object]) -> list[str]:
    """Return the attributes and buffers of modules that a call changes.

    If no values change, those that hold a new object.
    """
    before = _held(model)
    copies = {name: _copied(value) for name, value in before.items()}
    run()
    after = _held(model)
    names = [name for name, value in after.items() if _differ(copies.get(name), value)]
    return names or [name for name in after if after[name] is not before.get(name)]


def _held(model: nn.Module) -> dict[str, object]:
    """Return the buffers and attributes of all modules by name."""
    return {
        f"{prefix}.{key}" if prefix else key: value
        for prefix, module in model.named_modules()
        for key, value in (*module.named_buffers(recurse=False), *vars(module).items())
        if key not in walk.OWN
    }


def _copied(value: object) -> object:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return copy.copy(value) if isinstance(value, (list, dict, set, deque)) else value


def _differ(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape != other.shape or not torch.equal(one.nan_to_num(), other.nan_to_num())
    if isinstance(one, (list, dict, set, deque)) and isinstance(other, type(one)):
        return len(one) != len(other) or any(map(operator.is_not, _values(one), _values(other)))
    if isinstance(one, walk.SCALARS) and isinstance(other, walk.SCALARS):
        return bool(one != other)
    return one is not other


def _values(container: Any) -> list[object]:
    return list(container.values() if isinstance(container, dict) else container)
