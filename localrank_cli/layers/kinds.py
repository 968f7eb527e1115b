"""Kinds of modules that matter to an analysis."""

import sys
from collections.abc import Callable
from typing import Any

from torch import nn

# Classes of layers with a pre-activation.
_AFFINE: tuple[type[nn.Module], ...] = (
    nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


def is_affine_layer(module: nn.Module) -> bool:
    """Return whether a module is analyzed by default.

    That is Linear, Bilinear, Conv*, ConvTranspose* and their subclasses, and the Conv1D of
    transformers (a Linear with a transposed weight).
    """
    return isinstance(module, _AFFINE) or is_transposed_linear(module)


def is_transposed_linear(module: nn.Module) -> bool:
    """Return whether a module is a Conv1D of transformers, a Linear with a transposed weight."""
    # Looked up, not imported: a Conv1D instance exists only where transformers was imported.
    transformers = sys.modules.get("transformers.pytorch_utils")
    conv1d = getattr(transformers, "Conv1D", None)
    return isinstance(conv1d, type) and isinstance(module, conv1d)


def cache_class() -> Callable[[], Any] | None:
    """Return the class of transformers for keys and values of earlier tokens; None without it."""
    # Looked up, not imported: a network that takes one exists only where transformers was imported.
    found = getattr(sys.modules.get("transformers.cache_utils"), "DynamicCache", None)
    return found if callable(found) else None
