"""Custom autograd Functions that some route must refuse."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function


class OldSquare(Function):
    """x^2 in the old style of Function, which forward mode and vmap refuse."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        grad: Tensor = 2 * x * grads[0]
        return grad


class NumpyTanh(Function):
    """tanh by numpy: nothing but one backward pass at a time can be done with it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = torch.from_numpy(np.tanh(x.detach().numpy()))
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        return torch.from_numpy(grads[0].numpy() * (1 - out.numpy() ** 2))


class TwoFaced(Function):
    """2 x, whose forward-mode derivative is right and whose backward is x's."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return 2 * tangents[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].clone()


def apply(function: type[Function], x: Tensor) -> Tensor:
    """Applies a Function, which torch leaves untyped.

    Args:
        function: The class.
        x: Its input.

    Returns:
        Its output.
    """
    out: Tensor = function.apply(x)
    return out
