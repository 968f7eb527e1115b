"""The cases: a network, its points, its layers, and the target."""

from collections.abc import Callable
from dataclasses import dataclass

import networks
import torch
from torch import Tensor, nn

Make = Callable[[], tuple[nn.Module, Tensor]]


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    name: str
    make: Make  # the network in float32, and the points
    layers: tuple[str, ...]
    baselines: dict[str, float | None]  # -> ratio of wall seconds that is aimed at
    is_long: bool = False  # run once; its number of threads is chosen on a part of it
    counts: tuple[str, float] | None = (
        None  # a baseline, and the ratio of `--measures counts` to it
    )


def _trained(width: int, points: int, activation: type[nn.Module] = nn.ReLU) -> Make:
    def make() -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        model = networks.mlp(width, activation)
        networks.train(model, networks.TRAINING_STEPS)
        return model.eval().requires_grad_(False), networks.digits(points)[0]

    return make


def _deficient() -> tuple[nn.Module, Tensor]:
    model, points = _trained(200, 64)()
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
    return networks.SmallResNet().eval().requires_grad_(False), torch.randn(1, 3, 32, 32)


def _decoder() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return networks.Decoder().eval().requires_grad_(False), torch.randn(4, 16, 32)


_CONVOLUTIONS = ("stem", "block1.conv1", "block1.conv2", "down", "block2.conv1", "block2.conv2")
_FEEDFORWARD = tuple(f"blocks.{index}.{name}" for index in range(3) for name in ("up", "down"))
_MLP = ("0", "2", "4", "6")

_CAREFUL: dict[str, float | None] = {"careful": None, "by_hand": None}

CASES: dict[str, Case] = {
    "mlp200": Case(
        "trained MLP 784-200x3-10, 64 points, 4 layers",
        _trained(200, 64),
        _MLP,
        {"loop": None, "jacrev": 18, "jacfwd": None, **_CAREFUL},
        counts=("jacrev", 25),
    ),
    "tanh": Case(
        "the first with tanh", _trained(200, 64, nn.Tanh), _MLP, {"jacrev": 8, **_CAREFUL}
    ),
    "deficient": Case("the first, W_1 of rank 40", _deficient, _MLP, {"jacrev": 9, **_CAREFUL}),
    "normed": Case(
        "MLP 784-200 with LayerNorm and skip connections, 16 points",
        _normed,
        ("0", "3.linear", "4.linear", "5"),
        {"jacrev": 5, "careful": None},
    ),
    "mlp512": Case(
        "trained MLP 784-512x3-10, 32 points",
        _trained(512, 32),
        _MLP,
        {"jacrev": 10, **_CAREFUL},
    ),
    "decoder": Case(
        "decoder, 16 tokens x 32, last logits and MLP layers, 4 points",
        _decoder,
        (*_FEEDFORWARD, "head"),
        {"jacfwd": 4, "careful_forward": None},
    ),
    "resnet": Case(
        "small ResNet 3x32x32, 6 convolutions, 1 point",
        _resnet,
        _CONVOLUTIONS,
        {"jacrev_chunks": 6, "careful_forward": None},
        is_long=True,
        counts=("jacrev_chunks", 8),
    ),
}
