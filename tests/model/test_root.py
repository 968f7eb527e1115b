"""A network that is one layer itself."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from localrank_cli import analyze
from localrank_cli.errors import LayerError, MismatchError
from localrank_cli.model.build import WholeLayer, name_root
from tests.networks import build_module


def normed() -> nn.Module:
    layer: nn.Module
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))
    return layer


class Own(nn.Module):
    """No module inside, only a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sinh(x @ self.matrix.mT)


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 4), normed])
def test_its_jacobian_is_its_weight(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    for step in (0, 5):
        torch.manual_seed(step)
        layer = make()
        torch.save(layer.state_dict(), tmp_path / f"step_{step}.pt")
    table = analyze(tmp_path, model=make, data="normal:6", points=3)
    assert table["layer"].tolist() == ["model", "model"]
    assert table["n_out"].tolist() == [4, 4]
    weight = layer.weight
    assert isinstance(weight, Tensor)
    sigma = np.linalg.svd(weight.detach().double().numpy(), compute_uv=False)
    assert table["spectral_norm"].iloc[1] == pytest.approx(sigma[0], rel=1e-6)
    assert table["local_rank"].tolist() == [4, 4]


def test_one_without_a_linear_layer_is_analysed_when_asked(tmp_path: Path) -> None:
    torch.save(Own().state_dict(), tmp_path / "step_0.pt")
    with pytest.raises(LayerError, match=r"Layers that run: model \(Own\)\.$"):
        analyze(tmp_path, model=Own, data="normal:6")
    table = analyze(tmp_path, model=Own, data="normal:6", layers="model")
    assert table["local_rank"].tolist() == [4]


def test_what_does_not_fit_is_named_as_in_the_file(tmp_path: Path) -> None:
    torch.save(nn.Linear(6, 4, bias=False).state_dict(), tmp_path / "step_0.pt")
    with pytest.raises(MismatchError, match=r"missing: bias\."):
        analyze(tmp_path, model=lambda: nn.Linear(6, 4), data="normal:6")


def test_only_what_holds_no_modules_is_wrapped() -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    assert name_root(network) is network
    assert isinstance(build_module(lambda: nn.Linear(2, 2), {}, "net.py:linear"), WholeLayer)
