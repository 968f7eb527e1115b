"""Which modules are analyzed by default."""

import sys
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from localrank_cli.layers.kinds import is_affine_layer


class Scaled(nn.Linear):
    pass


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(2, 3),
        nn.Bilinear(2, 3, 4),
        nn.Conv1d(1, 1, 1),
        nn.Conv2d(1, 1, 1),
        nn.Conv3d(1, 1, 1),
        nn.ConvTranspose1d(1, 1, 1),
        nn.ConvTranspose2d(1, 1, 1),
        nn.ConvTranspose3d(1, 1, 1),
        Scaled(2, 3),
        parametrizations.weight_norm(nn.Linear(2, 3)),
        nn.MultiheadAttention(4, 2).out_proj,
    ],
    ids=lambda module: type(module).__name__,
)
def test_layers(module: nn.Module) -> None:
    assert is_affine_layer(module)


@pytest.mark.parametrize(
    "module",
    [
        nn.ReLU(),
        nn.Embedding(3, 4),
        nn.BatchNorm1d(3),
        nn.LayerNorm(3),
        nn.LSTM(2, 3),
        nn.MultiheadAttention(4, 2),
        nn.Sequential(nn.Linear(2, 3)),
    ],
    ids=lambda module: type(module).__name__,
)
def test_other_modules(module: nn.Module) -> None:
    assert not is_affine_layer(module)


def test_the_conv1d_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Conv1D(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    assert not is_affine_layer(Conv1D())  # a class of that name alone is no reason
    transformers = ModuleType("transformers.pytorch_utils")
    vars(transformers)["Conv1D"] = Conv1D
    monkeypatch.setitem(sys.modules, "transformers.pytorch_utils", transformers)
    assert is_affine_layer(Conv1D())
    assert not is_affine_layer(nn.ReLU())
