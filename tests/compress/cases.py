"""Layers and small problems that the tests of compression share."""

from itertools import pairwise

import torch
from torch import Tensor, nn


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def positive(length: int, seed: int = 0) -> Tensor:
    """A well-conditioned covariance."""
    root = normal(length, length, seed=seed)
    return root @ root.T + 0.5 * torch.eye(length, dtype=torch.float64)


def low_rank(n_out: int, n_in: int, rank: int, seed: int = 0) -> Tensor:
    return normal(n_out, rank, seed=seed) @ normal(rank, n_in, seed=seed + 1)


class Convolutional(nn.Module):
    """Two convolutions, one of which sees strides, dilation and padding, and BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=(1, 2), dilation=(2, 1))
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 6, (3, 2), padding="same", padding_mode="circular")
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        found: Tensor = self.head(torch.relu(self.second(x)).mean(dim=(2, 3)))
        return found


def convolutional(seed: int = 0) -> Convolutional:
    torch.manual_seed(seed)
    return Convolutional().double().eval()


def mlp(*widths: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1]).double().eval()


def run(model: nn.Module, batch: Tensor) -> Tensor:
    output = model(batch)
    assert isinstance(output, Tensor)
    return output


def batches(points: Tensor, size: int) -> list[Tensor]:
    return [points[start : start + size] for start in range(0, len(points), size)]
