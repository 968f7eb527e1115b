"""Small networks for the cases: one that runs a given forward, layers in special states."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from localrank_cli.model.build import build_model


def build_module(factory: Callable[..., object], arguments: dict[str, Any], name: str) -> nn.Module:
    return build_model(factory, arguments, name).model


class Net(nn.Module):
    """Named layers, and a forward pass given as a function of the network and the input.

    Args:
        run: Called with the network and its input.
        layers: The submodules, in order; `net["name"]` finds one.
    """

    def __init__(self, run: Callable[["Net", Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self._run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def __getitem__(self, name: str) -> Any:
        return self.get_submodule(name)

    def forward(self, x: Tensor) -> Any:
        return self._run(self, x)


class Wrapped(nn.Module):
    """A linear layer whose output is wrapped in something.

    Args:
        n_in: Width of the input.
        n_out: Width of the output.
        wrap: What is made of the layer's output.
    """

    def __init__(self, n_in: int, n_out: int, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner = nn.Linear(n_in, n_out)
        self._wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self._wrap(self.inner(x))


@dataclass
class Output:
    """Like the outputs of model hubs: no tuple, no mapping."""

    name: str
    hidden: Tensor
    other: Tensor | None = None


class Residual(nn.Module):
    """x + f(x), added in place as torchvision's ResNets do.

    Args:
        width: Of input and output.
        inner: Of the hidden layer.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, inner)
        self.relu = nn.ReLU(inplace=True)
        self.up = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.up(self.relu(self.down(x)))
        out += x
        return out


def mlp(*widths: int, act: Callable[[], nn.Module] = nn.ReLU, bias: bool = True) -> nn.Sequential:
    """A plain chain: Linear, activation, Linear, ..., Linear.

    Args:
        widths: Of the input and of every layer.
        act: Makes an activation.
        bias: Whether the layers have one.

    Returns:
        The network; its Linear layers are named 0, 2, 4, ...
    """
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out, bias=bias), act()]
    return nn.Sequential(*layers[:-1])


def settled(module: nn.Module) -> nn.Module:
    """Set, in place, every BatchNorm's statistics and factors as a training would; return it."""
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.normal_(part.bias)
    return module


def channels_last(module: nn.Conv2d) -> nn.Conv2d:
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's overloads lack it


def layer(n_in: int, n_out: int) -> nn.Linear:
    return nn.Linear(n_in, n_out)


def ab(run: Callable[[Net, Tensor], Any], n_in: int = 6, hidden: int = 7, out: int = 4) -> Net:
    return Net(run, a=nn.Linear(n_in, hidden), b=nn.Linear(hidden, out))


def low_rank(n_out: int, n_in: int, rank: int) -> nn.Linear:
    layer = nn.Linear(n_in, n_out)
    layer.weight.data = torch.randn(n_out, rank) @ torch.randn(rank, n_in) / n_in**0.5
    return layer


def partly_dead(n_in: int, n_out: int, dead: int) -> nn.Linear:
    layer = nn.Linear(n_in, n_out)
    layer.bias.data[:dead] = -1e3
    return layer


def zero(n_in: int, n_out: int) -> nn.Linear:
    layer = nn.Linear(n_in, n_out)
    layer.weight.data.zero_()
    return layer


def tied() -> nn.Module:
    net = mlp(6, 6, 6, act=nn.Tanh)
    net[2].weight = net[0].weight
    return net


def hooked() -> nn.Module:
    net = mlp(5, 6, 4)
    net[0].register_forward_hook(lambda module, args, out: 2 * out)
    return net


def repeat(layer: nn.Module, act: nn.Module) -> nn.Module:
    return nn.Sequential(layer, act, layer)


def encoder(batch_first: bool, norm_first: bool = False) -> nn.Module:
    block = nn.TransformerEncoderLayer(
        8, 2, 12, activation="gelu", batch_first=batch_first, norm_first=norm_first
    )
    return nn.TransformerEncoder(block, 2, enable_nested_tensor=False)


def embedding() -> Net:
    return Net(
        lambda m, x: m["head"](torch.tanh(m["mix"](m["emb"](x))).mean(1)),
        emb=nn.Embedding(11, 6),
        mix=nn.Linear(6, 5),
        head=nn.Linear(5, 4),
    )


def weight(model: nn.Module, name: str) -> Tensor:
    """The weight of a layer, to be read and written in place.

    Args:
        model: The network.
        name: Of the layer.

    Returns:
        Its data, no copy.
    """
    return model.get_parameter(f"{name}.weight").data


def bias(model: nn.Module, name: str) -> Tensor:
    """The bias of a layer, to be read and written in place.

    Args:
        model: The network.
        name: Of the layer.

    Returns:
        Its data, no copy.
    """
    return model.get_parameter(f"{name}.bias").data


def phasor(n_in: int, n_out: int) -> nn.Linear:
    """A complex Linear layer."""
    return nn.Linear(n_in, n_out, dtype=torch.cdouble)


def paired(x: Tensor) -> Tensor:
    """Neighbours on the last axis as real and imaginary parts."""
    return torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))


def turned(x: Tensor) -> Tensor:
    """Pairs on the last axis turned by an angle for each position."""
    angles = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] / torch.tensor([1.0, 3.0])
    return torch.view_as_real(paired(x) * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
