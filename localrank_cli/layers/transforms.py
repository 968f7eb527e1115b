"""Module calls within torch.func transforms (vmap, grad, jvp) in a network's own forward pass.

Within a transform, tensors are wrappers that are invalid after it. The wrappers of grad, vjp and
jvp hold one value each; those of vmap hold several, of calls that are not calls of one layer.
"""

import torch
from torch import Tensor

_functorch = torch._C._functorch  # noqa: SLF001  # torch has no public way to ask


def current_level() -> int:
    """Return how many transforms are active."""
    level: int | None = _functorch.maybe_current_level()
    return 0 if level is None else level


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
