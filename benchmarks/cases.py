"""The cases: a network, its points, its layers, and the target."""

from collections.abc import Callable
from dataclasses import dataclass

import networks
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    name: str
    make: Callable[[], tuple[nn.Module, Tensor]]  # the network in float32, and the points
    layers: tuple[str, ...]
    against: dict[str, float]  # baseline -> ratio that is aimed at
    runs: int = 3


def _trained(width: int, points: int, activation: type[nn.Module] = nn.ReLU) -> Case:
    def make() -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        model = networks.mlp(width, activation)
        networks.train(model, networks.TRAINING_STEPS)
        return model.eval().requires_grad_(False), networks.digits(points)[0]

    name = f"MLP 784-{width}x3-10 {activation.__name__}, {points} points"
    return Case(name, make, ("0", "2", "4", "6"), {})


def _deficient() -> tuple[nn.Module, Tensor]:
    model, points = _trained(200, 64).make()
    weight = model.get_parameter("0.weight")
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    values[40:] = 0
    weight.copy_(left @ torch.diag(values) @ right)
    return model, points


def _normed() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = networks.normed_mlp(200)
    networks.train(model, networks.TRAINING_STEPS)
    return model.eval().requires_grad_(False), networks.digits(16)[0]


def _resnet() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return networks.SmallResNet().eval().requires_grad_(False), torch.randn(2, 3, 32, 32)


def _decoder() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return networks.Decoder().eval().requires_grad_(False), torch.randn(4, 16, 32)


_CONVOLUTIONS = ("stem", "block1.conv1", "block1.conv2", "down", "block2.conv1", "block2.conv2")
_FEEDFORWARD = tuple(f"blocks.{index}.{name}" for index in range(3) for name in ("up", "down"))
_MLP = ("0", "2", "4", "6")

CASES: dict[str, Case] = {
    "mlp200": Case(
        "trained MLP 784-200x3-10, 64 points, 4 layers",
        _trained(200, 64).make,
        _MLP,
        {"loop": 100, "jacrev": 20, "jacfwd": 35},
    ),
    "mlp512": Case(
        "trained MLP 784-512x3-10, 32 points", _trained(512, 32).make, _MLP, {"jacrev": 8}
    ),
    "tanh": Case("the first with tanh", _trained(200, 64, nn.Tanh).make, _MLP, {"jacrev": 8}),
    "deficient": Case("the first, W_1 of rank 40", _deficient, _MLP, {"jacrev": 8}),
    "normed": Case(
        "MLP 784-200 with LayerNorm and skip connections, 16 points",
        _normed,
        ("0", "3.linear", "4.linear", "5"),
        {"jacrev": 8},
    ),
    "resnet": Case(
        "small ResNet 3x32x32, 6 convolutions, 2 points",
        _resnet,
        _CONVOLUTIONS,
        {"jacrev_chunks": 8},
        runs=1,
    ),
    "decoder": Case(
        "decoder, 16 tokens x 32, last logits and MLP layers, 4 points",
        _decoder,
        (*_FEEDFORWARD, "head"),
        {"jacfwd": 8},
        runs=3,
    ),
}
