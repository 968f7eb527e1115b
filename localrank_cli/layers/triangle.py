"""Layers with more outputs than inputs, entered through the triangular factor of their weight.

With W = Q R and Q^T Q = 1, the Jacobian W J of such a layer has the singular values of R J, which
has fewer rows (a head of 50,257 tokens on 768 features: 768).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from localrank_cli.layers.capture import Call, Capture, How
from localrank_cli.layers.kinds import is_transposed_linear

_U = 2.0**-53  # unit roundoff of float64
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
            convolve: Any = module._conv_forward  # knows every padding
            found: Tensor = convolve(inputs, self.weight, None)
            return found
        return functional.linear(inputs, self.weight)


def has_triangle(module: nn.Module) -> bool:
    """Return whether a module is exactly a layer W x + b with more outputs than inputs."""
    matrix = _matrix(module)
    return matrix is not None and matrix.shape[0] > matrix.shape[1]


def triangle_rows(module: nn.Module) -> int | None:
    """Return the features of the output of `triangle_of`; None without `has_triangle`."""
    matrix = _matrix(module) if has_triangle(module) else None
    return None if matrix is None else matrix.shape[1]


def feature_axis(module: nn.Module) -> int:
    """Return the axis of the output along which W acts; negative from the end."""
    return -1 - _CONVOLUTIONS.get(type(module), 0)


def triangle_of(module: nn.Module) -> Triangle | None:
    """Return the factor of a module for which `has_triangle`; None where W is not finite."""
    matrix = _matrix(module)
    if matrix is None or not bool(torch.isfinite(matrix).all()):
        return None
    factor = torch.linalg.qr(matrix.detach(), mode="r").R
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        factor = factor.reshape(factor.shape[0], *module.weight.shape[1:])
    return Triangle(factor)


def factor_error(module: nn.Module, triangle: Triangle) -> float:
    """Bound |W - Q R|_F / sigma_n(R), for some Q with orthonormal columns.

    The computed Q is within |Q^T Q - 1|_F of such a one. Both norms are computed, with an error of
    n sqrt(n) u |R|_F and m n u (Higham, eq. 3.13).
    """
    matrix, factor = _matrix(module), triangle.weight.flatten(1)
    assert matrix is not None
    n_rows, n = matrix.shape
    basis = torch.linalg.qr(matrix.detach()).Q
    skew = basis.mT @ basis
    skew.diagonal().sub_(1)
    size = float(torch.linalg.matrix_norm(factor))
    off = float(torch.linalg.matrix_norm(matrix.detach() - basis @ factor))
    rounded = (n * math.sqrt(n) + n_rows * n + 2) * _U + float(torch.linalg.matrix_norm(skew))
    return 1.01 * (off + rounded * size) / float(torch.linalg.svdvals(factor)[-1].clamp(min=1e-300))


def least_factor_error(module: nn.Module) -> float:
    """Return what `factor_error` is at least for a module for which `has_triangle`."""
    matrix = _matrix(module)
    assert matrix is not None
    return matrix.numel() * _U * math.sqrt(matrix.shape[1])


def sound(
    model: nn.Module, point: Tensor, triangles: Mapping[Call, Triangle]
) -> dict[Call, Triangle]:
    """Return the factors of those calls that compute W x + b of their first argument.

    A network may run a layer with other weights than its own (a hypernetwork, by functional_call),
    or give it its input by name. To be called within `analysis_setting`; `point` has shape
    (1, ...).
    """
    calls = list(triangles)
    if not calls:
        return {}
    weights = {call: model.get_submodule(call.name).weight for call in calls}
    own: dict[Call, bool] = {}

    def note(call: Call, tensor: Tensor) -> Tensor:
        """Note whether a call ran with the weight that the product of layers takes."""
        own[call] = model.get_submodule(call.name).weight is weights[call]
        return tensor

    with torch.no_grad():
        outputs = Capture(model, calls, how=How(read=note))(point)
        inputs = Capture(model, calls, how=How(inputs_of=calls))(point)
        kept = {}
        for call, taken, output in zip(calls, inputs, outputs, strict=True):
            module = model.get_submodule(call.name)
            # Of a module whose input is not found, the output is what is captured.
            if own[call] and taken.shape != output.shape and _gives(module, taken, output):
                kept[call] = triangles[call]
    return kept


def _gives(module: nn.Module, inputs: Tensor, output: Tensor) -> bool:
    """Return whether a module has this output, bit by bit: nothing else has run between."""
    found: Tensor = module(inputs)
    return torch.equal(found.nan_to_num(), output.nan_to_num())


def _matrix(module: nn.Module) -> Tensor | None:
    """Return W, (n_out, n_in), of a module that is plainly W x + b; else None."""
    hooks = module._forward_hooks or module._forward_pre_hooks
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
