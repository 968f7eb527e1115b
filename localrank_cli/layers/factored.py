"""Layers that are replaced by two factors of low rank."""

from typing import Any

from torch import nn

from localrank_cli.layers.kinds import is_affine_layer, is_transposed_linear

# How a convolution moves over its input: of the first of two factors, the same.
_WINDOW = ("kernel_size", "stride", "padding", "dilation", "padding_mode")


class Factored(nn.Sequential):
    """Two layers in place of one: the first has the rank as its outputs, and no bias."""


def can_factor(module: nn.Module) -> bool:
    """Return whether a module is of a kind that can be replaced by two factors."""
    if type(module) is nn.Conv2d:
        return module.groups == 1
    # A subclass may do anything else with its weight.
    return type(module) is nn.Linear or is_transposed_linear(module)


def factored_like(module: Any, rank: int) -> Factored:
    """Return two layers of a rank that fit in the place of one, on its device and of its dtype."""
    first: nn.Module
    second: nn.Module
    if isinstance(module, nn.Conv2d):
        first = nn.Conv2d(
            module.in_channels,
            rank,
            bias=False,
            **{name: getattr(module, name) for name in _WINDOW},
        )
        second = nn.Conv2d(rank, module.out_channels, 1)
    else:
        weight = module.weight.T if is_transposed_linear(module) else module.weight
        first = nn.Linear(weight.shape[1], rank, bias=False)
        second = nn.Linear(rank, weight.shape[0])
    pair = Factored(first, second).to(module.weight)
    return pair.train(module.training).requires_grad_(module.weight.requires_grad)


def set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of another one, by its qualified name."""
    parent, _, child = name.rpartition(".")
    # Not setattr: a name in a ModuleDict need not be an identifier.
    model.get_submodule(parent)._modules[child] = module


def is_layer(model: nn.Module, name: str) -> bool:
    """Return whether a module is analyzed by default: `is_affine_layer`, or two factors of one."""
    if isinstance(model.get_submodule(name.rpartition(".")[0]), Factored):
        return False
    module = model.get_submodule(name)
    return isinstance(module, Factored) or is_affine_layer(module)
