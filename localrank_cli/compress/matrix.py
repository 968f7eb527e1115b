"""Layers as matrices: what multiplies the input, which rows it sees, and what replaces it.

A Linear is W (out, in). A Conv2d is W (out, channels * kernel) that multiplies every patch of its
input; the Conv1D of transformers is a Linear with a transposed weight.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from localrank_cli.layers.factored import Factored, factored_like
from localrank_cli.layers.kinds import is_transposed_linear


@dataclass(frozen=True)
class Shape:
    """The sides of a layer's matrix, and what a factored layer of some rank costs."""

    n_out: int
    n_in: int

    @property
    def weights(self) -> int:
        """The number of weights of the layer as it is."""
        return self.n_out * self.n_in

    def cost(self, rank: int | None) -> int:
        """Return the number of weights at a rank; None is dense."""
        return self.weights if rank is None else rank * (self.n_out + self.n_in)

    @property
    def most(self) -> int:
        """The largest rank at which factors have fewer weights than the layer; 0 if none has."""
        return (self.weights - 1) // (self.n_out + self.n_in)


def matrix_of(module: Any) -> Tensor:
    """Return the matrix of a layer, (out, in), which shares the memory of its weight."""
    weight: Tensor = module.weight.detach()
    return weight.T if is_transposed_linear(module) else weight.flatten(1)


def has_bias(module: Any) -> bool:
    """Return whether a layer adds a bias."""
    return module.bias is not None


def shape_of(module: nn.Module) -> Shape:
    """Return the sides of the matrix of a layer."""
    return Shape(*matrix_of(module).shape)


def rows_in(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return what the matrix multiplies, (points, positions, in)."""
    if not isinstance(module, nn.Conv2d):
        return inputs.reshape(inputs.shape[0], -1, inputs.shape[-1])
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = functional.pad(inputs, _padding(module), mode=mode)
    patches = functional.unfold(
        padded, module.kernel_size, dilation=module.dilation, stride=module.stride
    )
    return patches.transpose(1, 2)


def rows_out(module: nn.Module, outputs: Tensor) -> Tensor:
    """Return outputs, or gradients with respect to them, as (points, positions, out)."""
    if isinstance(module, nn.Conv2d):
        return outputs.flatten(2).transpose(1, 2)
    return outputs.reshape(outputs.shape[0], -1, outputs.shape[-1])


def _padding(module: nn.Conv2d) -> list[int]:
    """Return the padding of an image's sides, as `functional.pad` takes it: the last axis first."""
    if module.padding == "valid":
        return [0, 0, 0, 0]
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(int(length), int(length)) for length in module.padding]
    return [length for side in reversed(sides) for length in side]


def factored(module: Any, left: Tensor, right: Tensor, bias: Tensor) -> Factored:
    """Return two layers with the matrix `left @ right` and a bias, in place of one."""
    pair = factored_like(module, right.shape[0])
    with torch.no_grad():
        for parameter, value in zip(pair.parameters(), (right, left, bias), strict=True):
            parameter.copy_(value.reshape(parameter.shape))
    return pair
