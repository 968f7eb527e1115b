"""Layers with more outputs than inputs, entered through the triangular factor of their weight.

With W = Q R and Q^T Q = 1, the Jacobian W J of such a layer has the singular values of R J, which
has fewer rows (a head of 50,257 tokens on 768 features: 768).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from localrank_cli.layers.axes import Axes
from localrank_cli.layers.kinds import is_transposed_linear

_CONVOLUTIONS: dict[type[nn.Module], int] = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}


@dataclass(frozen=True)
class Triangle:
    """The factor R of a layer's weight in place of the weight."""

    weight: Tensor  # R, shaped as the weight of such a layer with fewer outputs

    @property
    def n_rows(self) -> int:
        """Features of the output: those of the input that one output sees."""
        return self.weight.shape[0]

    def output(self, module: nn.Module, inputs: Tensor) -> Tensor:
        """Return R x in place of the layer's W x + b; the bias has no part in a Jacobian."""
        if type(module) in _CONVOLUTIONS:
            found: Tensor = module._conv_forward(inputs, self.weight, None)  # type: ignore[operator]  # noqa: SLF001  # knows every padding
            return found
        return functional.linear(inputs, self.weight)


def has_triangle(module: nn.Module) -> bool:
    """Return whether a module is exactly a layer W x + b with more outputs than inputs."""
    matrix = _matrix(module)
    return matrix is not None and matrix.shape[0] > matrix.shape[1]


def takes_triangle(module: nn.Module, axes: Axes) -> bool:
    """Return whether a module has such a factor, and W acts along the features of its output."""
    if axes.is_complex or axes.feature is None or not has_triangle(module):
        return False
    return axes.feature == len(axes.shape) - 1 - _CONVOLUTIONS.get(type(module), 0)


def triangle_rows(module: nn.Module) -> int:
    """Return the features of the output of R of a module for which `has_triangle`."""
    matrix = _matrix(module)
    assert matrix is not None
    return matrix.shape[1]


def triangle_of(module: nn.Module) -> Triangle | None:
    """Return the factor of a module for which `has_triangle`; None where W is not finite."""
    matrix = _matrix(module)
    if matrix is None or not bool(torch.isfinite(matrix).all()):
        return None
    factor = torch.linalg.qr(matrix.detach(), mode="r").R
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        factor = factor.reshape(factor.shape[0], *module.weight.shape[1:])
    return Triangle(factor)


def _matrix(module: nn.Module) -> Tensor | None:
    """Return W, (n_out, n_in), of a module that is plainly W x + b; else None."""
    hooks = module._forward_hooks or module._forward_pre_hooks  # noqa: SLF001  # torch has no public way to ask
    if hooks or "forward" in vars(module):
        return None
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        return None
    if type(module) is nn.Linear:
        return weight
    if type(module) in _CONVOLUTIONS:
        return weight.reshape(weight.shape[0], -1) if module.groups == 1 else None
    return weight.mT if is_transposed_linear(module) else None
