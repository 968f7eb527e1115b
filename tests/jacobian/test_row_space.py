"""The input reduced to the row space of the first layer: exactly where that is right."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from localrank_cli.jacobian import engine
from localrank_cli.jacobian.batch import Batch
from localrank_cli.jacobian.engine import Modes
from localrank_cli.jacobian.routes import forward_jacobians
from localrank_cli.layers.capture import Call
from localrank_cli.layers.select import Selection
from localrank_cli.measures.table import demand_of
from localrank_cli.spectrum.layer import Request, layer_spectra
from localrank_cli.spectrum.solve import Demand
from localrank_cli.spectrum.tolerance import Tolerance

DEMAND = demand_of((Tolerance(atol=0.01), Tolerance(rtol=1e-3)))


class Normed(nn.Module):
    """Linear, GroupNorm, ReLU, a skip connection, Linear: no chain."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(96, 20), nn.GroupNorm(1, 20)
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
        self.first, self.norm, self.last = nn.Linear(24, 4), nn.GroupNorm(1, 4), nn.Linear(16, 130)

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


class Zero(Normed):
    """A layer of zero weight sees the input alone, and forward mode is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.beside = nn.Linear(96, 8)
        nn.init.zeros_(self.beside.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.first(inputs)))
        with torch.no_grad():  # forward mode goes through it
            constant = torch.tanh(hidden)
        found: Tensor = self.last(hidden + constant)
        return found + nn.functional.pad(self.beside(inputs), (0, 112))


class Beside(Normed):
    """The input reaches the end on another path, in the row space of the first layer."""

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = super().forward(inputs)
        return found + nn.functional.pad(inputs @ self.first.weight.mT, (0, 100))


class BesideALittle(Normed):
    """So faintly that only one output in a hundred, and 1e-6 of it, shows it."""

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = super().forward(inputs)
        more = 1e-6 * (inputs @ self.first.weight[:1].mT) ** 3
        return torch.cat([found[:, :1] + more, found[:, 1:]], dim=1)


class Stretched(Normed):
    """A factor before the first layer: the same row space at every point, by another weight."""

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = super().forward(inputs * inputs.detach()[:, :1].exp())
        return found


class Reread(Normed):
    """The first layer runs twice, so that its first output is not all that is seen."""

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = super().forward(inputs)
        return found + nn.functional.pad(torch.tanh(self.first(inputs)), (0, 100))


NETWORKS: list[tuple[Callable[[], nn.Module], bool]] = [
    (Normed, True),
    (Zero, True),
    (Beside, True),
    (BesideALittle, True),
    (Stretched, True),
    (Reread, True),
    (Tokens, True),
    (Skipping, False),
    (SkippingALittle, False),
    (Bent, False),
    (Unused, False),
    (Hidden, False),
]


def naive(model: nn.Module, points: Tensor, layer: str) -> Tensor:
    """Singular values of Jacobians by plain autograd, point by point; `layer` may be NAME#2."""
    name, _, number = layer.partition("#")

    def at(point: Tensor) -> Tensor:
        found: list[Tensor] = []

        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            found.append(output.flatten())

        handle = model.get_submodule(name).register_forward_hook(hook)
        model(point.unsqueeze(0))
        handle.remove()
        return found[int(number or 1) - 1]

    rows = [torch.func.jacrev(at)(point) for point in points]
    return torch.stack([torch.linalg.svdvals(row.detach()) for row in rows])


@pytest.mark.cover(1)
@pytest.mark.parametrize(("network", "narrows"), NETWORKS)
@pytest.mark.parametrize("memory", [2**31, 2**20])
@pytest.mark.parametrize("demand", [DEMAND, demand_of(None)])
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


@pytest.mark.parametrize(
    ("network", "start"), [(Normed, "0.first"), (Beside, None), (BesideALittle, None)]
)
def test_directions_start_behind_the_layer_where_nothing_goes_around_it(
    network: Callable[[], nn.Module], start: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(network()).double().eval()
    sources = set()

    def spied(batch: Batch, calls: Sequence[Call], chunk: int) -> list[Tensor]:
        sources.add(batch.wrt and batch.wrt.name)
        return forward_jacobians(batch, calls, chunk)

    monkeypatch.setattr(engine, "forward_jacobians", spied)
    points = torch.randn(5, 96, dtype=torch.float64)
    layer_spectra(model, points, Request(Selection(("*",)), demand=DEMAND))
    assert sources == {start}


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
    # Two float64 computations, or what the certificate allows.
    assert float((spectrum.computed - truth).abs().max()) <= 1e-9 * float(truth.max())


class Opening(nn.Module):
    """A bypass that opens at rare points, where a later layer is not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(96, 20), nn.GroupNorm(1, 20)
        self.mid, self.last = nn.Linear(96, 96), nn.Linear(96, 40)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.first(inputs)))
        gate = torch.relu(inputs[:, :1] - 3)
        found = self.mid(nn.functional.pad(hidden, (0, 76)) + gate * inputs)
        last: Tensor = self.last(torch.log(0.4 - gate) + found)
        return last


def test_a_point_is_checked_where_only_a_later_layer_is_not_finite() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Opening()).double().eval()
    points = torch.randn(4, 96, dtype=torch.float64)
    points[:, 0], points[1, 0] = 0, 3.5
    selection = Selection(("0.mid", "0.last"))
    middle, last = layer_spectra(model, points, Request(selection, demand=DEMAND))
    assert last.finite.tolist() == [True, False, True, True]
    truth = naive(model, points, "0.mid")
    assert ((middle.computed > 0.01).sum(dim=1) == (truth > 0.01).sum(dim=1)).all()
    assert int((middle.computed[1] > 0.01).sum()) > 90


class Scaled(nn.Module):
    """A skip connection around the first layer, and a factor behind both."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.first, self.norm, self.up = nn.Linear(96, 20), nn.GroupNorm(1, 20), nn.Linear(20, 96)
        self.last = nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.up(torch.relu(self.norm(self.first(inputs))))
        found: Tensor = self.last((hidden + inputs) * self.factor)
        return found


@pytest.mark.parametrize("factor", [1e-200, 1e-165, 1e-120, 1.0, 1e120, 1e155, 1e200])
def test_scales_at_which_squares_leave_the_range(factor: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Scaled(factor)).double().eval()
    points = torch.randn(2, 96, dtype=torch.float64)
    demand = demand_of((Tolerance(rtol=1e-3),))
    (spectrum,) = layer_spectra(model, points, Request(Selection(("0.last",)), demand=demand))
    assert ((spectrum.computed > 1e-3 * factor).sum(dim=1) == 96).all()


class Outside(torch.autograd.Function):
    """Its backward leaves torch, which vmap refuses."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        del ctx
        return inputs * 1.0

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        return torch.from_numpy(gradients[0].numpy() * 1.0)


class Strange(Normed):
    """An operation that only plain reverse mode can pass."""

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = super().forward(Outside.apply(inputs))
        return found


def test_a_model_that_vmap_refuses() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Strange()).double().eval()
    points = torch.randn(2, 96, dtype=torch.float64)
    modes = Modes()
    spectra = layer_spectra(model, points, Request(Selection(("0.last",)), demand=DEMAND), modes)
    assert not modes.narrow
    assert any("one by one" in note for note in modes.notes)
    torch.manual_seed(0)
    plain = nn.Sequential(Normed()).double().eval()
    truth = naive(plain, points, "0.last")
    assert torch.allclose(spectra[0].computed, truth, atol=1e-9 * float(truth.max()))


def test_nothing_is_reduced_for_a_few_rows_or_past_the_budget() -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(400, 200), nn.GroupNorm(1, 200), nn.ReLU(), nn.Linear(200, 40))
    points = torch.randn(2, 400, dtype=torch.float64)
    for layers, memory, reduced in (
        (("3",), 2**31, False),  # 40 rows by reverse mode cost less than the weight's 200
        (("0", "3"), 2**31, True),
        (("0", "3"), 2**22, False),  # the weight, four times, is more than a quarter of that
    ):
        modes = Modes()
        request = Request(Selection(layers), demand=DEMAND, memory=memory)
        layer_spectra(wide.double().eval(), points, request, modes)
        assert any("directions for 400" in route for route in modes.routes) == reduced
