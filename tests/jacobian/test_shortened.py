"""Layers with more outputs than inputs, with fewer rows: exactly where W is all that they do."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from localrank_cli.jacobian import shortened
from localrank_cli.layers.select import Selection
from localrank_cli.measures.table import demand_of
from localrank_cli.spectrum import layer
from localrank_cli.spectrum.layer import Request, layer_spectra
from localrank_cli.spectrum.solve import solve_stack
from localrank_cli.spectrum.svd import rounding
from localrank_cli.spectrum.tolerance import Tolerance
from tests.naive import naive_jacobians

TOLERANCES = (Tolerance(atol=0.01), Tolerance(rtol=1e-3), Tolerance(rtol=1e-9))
DEMAND = demand_of(TOLERANCES)


class Tokens(nn.Module):
    """A residual MLP over tokens behind a LayerNorm, as in a transformer: deficient Jacobians."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 24), nn.Linear(24, 6)
        self.head = nn.Linear(6, 40)

    def mlp(self, hidden: Tensor) -> Tensor:
        up: Tensor = self.up(hidden)
        return up

    def forward(self, inputs: Tensor) -> Tensor:
        mixed = inputs + inputs.roll(1, 1)
        hidden = mixed + self.down(torch.relu(self.mlp(self.norm(mixed))))
        found: Tensor = self.head(hidden)
        return found


class Twice(Tokens):
    """The layer runs twice."""

    def mlp(self, hidden: Tensor) -> Tensor:
        up: Tensor = self.up(hidden + self.up(hidden)[..., :6].tanh())
        return up


class ByName(Tokens):
    """Its input has a name, which hooks do not see."""

    def mlp(self, hidden: Tensor) -> Tensor:
        up: Tensor = self.up(input=hidden)
        return up


class Other(Tokens):
    """It runs with a weight that is not its own."""

    def mlp(self, hidden: Tensor) -> Tensor:
        weight = self.up.weight.flip(0) * torch.arange(1, 7)
        up: Tensor = torch.func.functional_call(self.up, {"weight": weight}, (hidden,))
        return up


class Hooked(Tokens):
    """A hook changes its output."""

    def __init__(self) -> None:
        super().__init__()
        self.up.register_forward_hook(lambda _module, _inputs, output: output.sin())


class Parametrized(Tokens):
    """Its weight is computed from others."""

    def __init__(self) -> None:
        super().__init__()
        nn.utils.parametrizations.weight_norm(self.up)


class Steep(Tokens):
    """A weight of condition 1e9: the error of its factor is too large."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.up.weight[:, 0] = self.up.weight[:, 1] + 1e-9 * self.up.weight[:, 0]


class Zeros(Tokens):
    """A weight of zeros, whose factor is exact."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.up.weight)


class Maps(nn.Module):
    """Convolutions of one position, and a product that mixes all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Conv1d(6, 20, 1), nn.Conv1d(20, 30, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        mixed = inputs.mT @ inputs @ inputs.mT
        found: Tensor = self.down(torch.relu(self.up(mixed)))
        return found


class Front(nn.Module):
    """The first layer has more outputs than it sees inputs, and fewer than there are.

    Directions start behind it, so that its Jacobian is no product with its weight.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(10, 20), nn.Linear(20, 60)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = functional.layer_norm(self.first(inputs.flatten(1)[:, :10]), (20,))
        found: Tensor = self.last(torch.relu(hidden))
        return found


NETWORKS: list[tuple[Callable[[], nn.Module], set[str]]] = [
    (Tokens, {"0.up", "0.head"}),
    (Twice, {"0.up", "0.up#2", "0.head"}),
    (ByName, {"0.head"}),
    (Other, {"0.head"}),
    (Hooked, {"0.head"}),
    (Parametrized, {"0.head"}),
    (Steep, {"0.head"}),
    (Zeros, {"0.up", "0.head"}),
    (Maps, {"0.up", "0.down"}),
    (Front, {"0.last"}),
]


@pytest.mark.parametrize(("network", "short"), NETWORKS)
def test_singular_values_are_those_of_the_whole_jacobian(
    network: Callable[[], nn.Module], short: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(network()).double().eval()
    points = torch.randn(3, 100 if network is Front else 8, 6, dtype=torch.float64)
    points[2] = 0  # a LayerNorm of zeros: its derivative is 300 times larger
    monkeypatch.setattr(shortened, "_MIN_ENTRIES", 0)
    shapes = []

    def spied(jacobians: Tensor, *others: Any) -> Tensor:
        shapes.append(jacobians.shape[1])
        return solve_stack(jacobians, *others)

    monkeypatch.setattr(layer, "solve_stack", spied)
    spectra = layer_spectra(model, points, Request(Selection(), demand=DEMAND))
    truth = naive_jacobians(model, points)
    assert [spectrum.layer for spectrum in spectra] == list(truth)
    fewer = {one.layer for one, rows in zip(spectra, shapes, strict=True) if rows < one.n_out}
    assert fewer == short
    for spectrum, jacobians in zip(spectra, truth.values(), strict=True):
        assert spectrum.n_out == jacobians.shape[1]
        values = torch.from_numpy(np.linalg.svd(jacobians, compute_uv=False))
        assert spectrum.computed.shape == values.shape
        for found, exact in zip(spectrum.values, values, strict=True):
            # Counts at 1e-9 and effective ranks to 1e-6, which is what is promised, need this.
            assert float((found - exact).abs().max()) <= 1e-10 * float(exact[0]) + 1e-300
            unsure = float(rounding(exact[0], max(jacobians.shape[1:]), torch.float64))
            for tolerance in TOLERANCES:
                tol = tolerance.threshold(exact[:1], *jacobians.shape[1:])
                for factor in (0.99, 1.0, 1.01):
                    if float((exact - factor * tol).abs().min()) > 2 * unsure:
                        assert (found > factor * tol).sum() == (exact > factor * tol).sum()


def test_slices_residuals_and_sums_keep_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Tokens()).double().eval()
    points = torch.randn(2, 8, 6, dtype=torch.float64)
    monkeypatch.setattr(shortened, "_MIN_ENTRIES", 0)
    (part,) = layer_spectra(
        model, points, Request(Selection(("0.up",), output_slice=":, :7"), demand=DEMAND)
    )
    (pooled,) = layer_spectra(
        model, points, Request(Selection(("0.up",)), demand=DEMAND, pooled=True)
    )
    jacobians = naive_jacobians(model, points, ("0.up",))["0.up"]
    rows = jacobians.reshape(2, 8, 24, 48)[:, :, :7].reshape(2, 56, 48)
    for spectrum, exact in ((part, rows), (pooled, jacobians)):
        values = torch.from_numpy(np.linalg.svd(exact, compute_uv=False))
        assert float((spectrum.values - values).abs().max()) <= 1e-10 * float(values.max())
