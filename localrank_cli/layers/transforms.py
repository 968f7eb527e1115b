"""Module calls within torch.func transforms (vmap, grad, jvp) in a network's own forward pass.

Within a transform, tensors are wrappers that are invalid after it. The wrappers of grad, vjp and
jvp hold one value each; those of vmap hold several, of calls that are not calls of one layer.
"""

from typing import Any

import torch
from torch import Tensor

_functorch = torch._C._functorch


def current_level() -> int:
    """Return how many transforms are active."""
    level: int | None = _functorch.maybe_current_level()
    return 0 if level is None else level


def is_wrapped(tensor: Tensor) -> bool:
    """Return whether a tensor is that of a transform."""
    wrapped: bool = _functorch.is_functorch_wrapped_tensor(tensor)
    return wrapped


def grads_batched(tensor: Tensor) -> int:
    """Return the level of autograd's own vmap, of `is_grads_batched`, that a tensor is in; or 0.

    That vmap is an older one than torch.func's, and knows no rules of an autograd.Function.
    """
    batched: Any = torch._C._parse_dispatch_key("Batched")
    if not torch._C._dispatch_keys(tensor).has(batched):
        return 0
    level: int = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    return level


def is_vmapped(tensor: Tensor, level: int) -> bool:
    """Return whether a tensor is that of a vmap above a level of transforms."""
    while _functorch.maybe_get_level(tensor) > level:
        if _functorch.is_batchedtensor(tensor):
            return True
        tensor = _functorch.get_unwrapped(tensor)
    return False


def unwrapped(tensor: Tensor, level: int = 0) -> Tensor:
    """Return the value of a tensor outside all transforms above a level."""
    while _functorch.maybe_get_level(tensor) > level:
        tensor = _functorch.get_unwrapped(tensor)
    return tensor
