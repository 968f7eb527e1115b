"""The input reduced to the row space of the first layer: exactly where that is right."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from localrank_cli.jacobian.engine import Modes
from localrank_cli.layers.select import Selection
from localrank_cli.spectrum.solve import Demand
from localrank_cli.spectrum.spectra import Request, layer_spectra
from localrank_cli.spectrum.tolerance import Tolerance

DEMAND = Demand((Tolerance(atol=0.01), Tolerance(rtol=1e-3)))


class Normed(nn.Module):
    """Linear, LayerNorm, ReLU, a skip connection, Linear: no chain."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(96, 20), nn.LayerNorm(20)
        self.second, self.last = nn.Linear(20, 20), nn.Linear(20, 120)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.first(inputs)))
        found: Tensor = self.last(hidden + torch.tanh(self.second(hidden)))
        return found


class Skipping(Normed):
    """The input goes around the first layer."""

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = super().forward(inputs)
        return found[:, :96] + inputs


class SkippingALittle(Normed):
    """So faintly that only one output in a hundred, and 1e-6 of it, sees the input."""

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = super().forward(inputs)
        return torch.cat([found[:, :1] + 1e-6 * inputs[:, :1] ** 3, found[:, 1:]], dim=1)


class Bent(Normed):
    """An operation before the first layer: another row space at every point."""

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = super().forward(torch.sin(3 * inputs))
        return found


class Tokens(nn.Module):
    """A Linear over tokens: its row space is that of I (x) W."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(24, 4), nn.LayerNorm(4), nn.Linear(16, 130)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.first(inputs.reshape(-1, 4, 24))))
        found: Tensor = self.last(hidden.flatten(1))
        return found


class Unused(Normed):
    """The first layer runs, and what comes of it is thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(96, 30)

    def forward(self, inputs: Tensor) -> Tensor:
        self.first(inputs)
        hidden = torch.relu(nn.functional.layer_norm(self.other(inputs), (30,)))
        found: Tensor = self.last(hidden[:, :20])
        return found


class Hidden(nn.Module):
    """The layer that counts is a function with weights, and its module is a part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.final = Normed(), nn.Linear(120, 110)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.final(self.net(inputs)) + inputs.square().sum(1, keepdim=True)
        return found


NETWORKS: list[tuple[Callable[[], nn.Module], bool]] = [
    (Normed, True),
    (Tokens, True),
    (Skipping, False),
    (SkippingALittle, False),
    (Bent, False),
    (Unused, False),
    (Hidden, False),
]


def naive(model: nn.Module, points: Tensor, layer: str) -> Tensor:
    """Singular values of Jacobians by plain autograd, one point at a time."""

    def at(point: Tensor) -> Tensor:
        found: list[Tensor] = []

        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            found.append(output.flatten())

        handle = model.get_submodule(layer).register_forward_hook(hook)
        model(point.unsqueeze(0))
        handle.remove()
        return found[0]

    rows = [torch.func.jacrev(at)(point) for point in points]
    return torch.stack([torch.linalg.svdvals(row.detach()) for row in rows])


@pytest.mark.parametrize(("network", "narrows"), NETWORKS)
@pytest.mark.parametrize("memory", [2**31, 2**20])
@pytest.mark.parametrize("demand", [DEMAND, Demand(None)])
def test_singular_values_are_those_of_the_whole_jacobian(
    network: Callable[[], nn.Module], narrows: bool, memory: int, demand: Demand
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(network()).double().eval()
    points = torch.randn(5, 96, dtype=torch.float64)
    request = Request(Selection(("*",)), demand=demand, memory=memory)
    modes = Modes()
    spectra = layer_spectra(model, points, request, modes)
    reduced = any("directions for 96 inputs" in route for route in modes.routes)
    assert reduced == narrows
    assert modes.narrow == narrows
    for spectrum in spectra:
        truth = naive(model, points, spectrum.layer)
        assert spectrum.computed.shape == truth.shape
        # Two float64 computations of the same values, each off by a few hundred u sigma_1 at most;
        # small ones, if they come from the Gram matrix, by what the certificate allows.
        error = (spectrum.computed - truth).abs().max(dim=1).values
        assert (error <= 1e-9 * truth[:, 0]).all()
        for tolerance in (0.01, 1e-8):
            far = ((truth - tolerance).abs() > 1e-9).all(dim=1)
            counts = (spectrum.computed > tolerance).sum(dim=1)
            assert (counts == (truth > tolerance).sum(dim=1))[far].all()


def test_a_point_that_is_not_finite_does_not_hide_the_others() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Normed()).double().eval()
    points = torch.randn(4, 96, dtype=torch.float64)
    points[0, 3] = torch.nan
    modes = Modes()
    spectra = layer_spectra(model, points, Request(Selection(("*",)), demand=DEMAND), modes)
    assert modes.narrow
    for spectrum in spectra:
        assert spectrum.finite.tolist() == [False, True, True, True]
        truth = naive(model, points[1:], spectrum.layer)
        assert torch.allclose(spectrum.computed[1:], truth, atol=1e-9 * float(truth.max()))


def test_dead_points_and_a_weight_of_zeros() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Normed()).double().eval()
    torch.nn.init.zeros_(model.get_parameter("0.first.weight"))
    points = torch.randn(3, 96, dtype=torch.float64)
    for spectrum in layer_spectra(model, points, Request(Selection(("*",)), demand=DEMAND)):
        assert (spectrum.values == 0).all()


def test_other_precision_and_metric_are_left_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Normed()).eval()
    modes = Modes()
    request = Request(Selection(("*",)), dtype=torch.float32, demand=DEMAND)
    layer_spectra(model, torch.randn(3, 96), request, modes)
    assert not any("directions for" in route for route in modes.routes)


def test_a_slice_of_the_output() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Normed()).double().eval()
    points = torch.randn(3, 96, dtype=torch.float64)
    modes = Modes()
    selection = Selection(("0.last",), output_slice="5:90")
    (spectrum,) = layer_spectra(model, points, Request(selection, demand=DEMAND), modes)
    assert modes.narrow
    jacobians = [torch.func.jacrev(model)(point.unsqueeze(0))[0, 5:90, 0] for point in points]
    truth = torch.stack([torch.linalg.svdvals(one.detach()) for one in jacobians])
    assert spectrum.computed.shape == truth.shape
    # As above: two float64 computations, or what the certificate allows.
    assert float((spectrum.computed - truth).abs().max()) <= 1e-9 * float(truth.max())
