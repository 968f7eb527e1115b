"""Products and intervals of networks, against whole Jacobians."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from localrank_cli.errors import ModelError
from localrank_cli.intervals.layer import Bounds, LayerEvidence, Purpose, layer_evidence
from localrank_cli.jacobian.engine import Modes
from localrank_cli.jacobian.products import Products, point_batches
from localrank_cli.layers.select import Selection
from localrank_cli.layers.setting import analysis_setting
from localrank_cli.spectrum.examine import examine
from localrank_cli.spectrum.layer import Request, make_task
from localrank_cli.spectrum.tolerance import Tolerance
from tests.helpers import mlp


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 3, 3, stride=2)
        self.last = nn.Linear(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        out: Tensor = self.last(torch.tanh(self.second(x)).flatten(1))
        return out


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net().double().eval()


def points(count: int) -> Tensor:
    random = torch.Generator("cpu").manual_seed(1)
    return torch.randn(count, 2, 6, 6, generator=random, dtype=torch.float64)


def dense(model: nn.Module, name: str, point: Tensor, source: str = "") -> Tensor:
    """The Jacobian of a layer's output, by autograd alone."""
    kept: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(one).register_forward_hook(
            lambda module, given, out, one=one: kept.__setitem__(one, out)
        )
        for one in (name, source)
        if one
    ]
    varied = point.unsqueeze(0).clone().requires_grad_(True)
    model(varied)
    for hook in hooks:
        hook.remove()
    at = kept[source] if source else varied
    rows = [torch.autograd.grad(one, at, retain_graph=True)[0] for one in kept[name].flatten()]
    return torch.stack([row.flatten() for row in rows])


def requested(selection: Selection) -> Request:
    return Request(selection, is_chosen=True)


@pytest.mark.parametrize(
    ("selection", "source"),
    [
        (Selection(), ""),
        (Selection(wrt="first"), "first"),
        (Selection(output_slice="...,:2"), ""),
        (Selection(input_slice=":,1:4,:"), ""),
    ],
)
def test_products_are_those_of_the_jacobian(selection: Selection, source: str) -> None:
    model, given = net(), points(2)
    found = examine(model, given, selection, torch.float64)
    (view,) = found.views
    task = make_task(model, given, view, found, requested(selection))
    modes = Modes()
    random = torch.Generator("cpu").manual_seed(5)
    checked = 0
    with analysis_setting(model, torch.float64):
        for one in point_batches([task], modes):
            for record in view.records:
                whole = dense(model, record.call.name, given[one.point], source)
                if view.entries is not None:
                    whole = whole[:, view.entries]
                if record.call in view.picked:
                    whole = whole[view.picked[record.call]]
                products = Products(one.batch, record.call, 2, modes)
                v = torch.randn(5, whole.shape[1], generator=random, dtype=torch.float64)
                u = torch.randn(5, whole.shape[0], generator=random, dtype=torch.float64)
                # Sums of a hundred terms in another order.
                assert torch.allclose(products.apply(v), v @ whole.T, rtol=1e-12, atol=1e-13)
                assert torch.allclose(products.transpose(u), u @ whole, rtol=1e-12, atol=1e-13)
                checked += 1
    assert checked == 2 * len(view.records)


TOLERANCES = (Tolerance(rtol=0.1), Tolerance(atol=0.05))


def evidence(
    model: nn.Module, given: Tensor, indices: tuple[int, ...] = (), n_points: int = 0
) -> list[LayerEvidence]:
    bounds = Bounds(0.95, 0.0, 300)
    purpose = Purpose("run", 7, n_points or len(given), bounds, TOLERANCES, 1.0)
    request = replace(requested(Selection()), indices=indices)
    return layer_evidence(model, given, request, purpose, Modes())


@pytest.mark.parametrize("count", [1, 4])
def test_the_exact_mean_lies_inside(count: int) -> None:
    model, given = net(), points(count)
    for layer in evidence(model, given):
        spectra = [torch.linalg.svdvals(dense(model, layer.layer, one)) for one in given]
        for row, tolerance in enumerate(TOLERANCES):
            ranks = [
                int((s > max(tolerance.atol, (tolerance.rtol or 0) * s[0])).sum()) for s in spectra
            ]
            found = layer.evidence.interval(row, relative=tolerance.rtol != 0)
            assert found is not None
            assert found.low <= sum(ranks) / count <= found.high
            assert found.certain_low <= sum(ranks) / count
        for point, values in zip(layer.evidence.points, spectra, strict=True):
            assert point.sigma_low <= float(values[0]) * (1 + 1e-12)
            assert point.sigma_high is not None
            assert point.sigma_high >= float(values[0]) * (1 - 1e-12)


def test_points_apart_give_what_they_give_together() -> None:
    model, given = net(), points(3)
    together = evidence(model, given, (4, 8, 9))
    apart = [
        evidence(model, given[index : index + 1], (drawn,), 3)
        for index, drawn in enumerate((4, 8, 9))
    ]
    for number, layer in enumerate(together):
        parts = tuple(one[number].evidence.points[0] for one in apart)
        assert parts == layer.evidence.points
        assert {one[number].method for one in apart} == {layer.method}


def test_a_point_that_is_not_finite_does_not_count() -> None:
    model, given = net(), points(3)
    given[1, 0, 0, 0] = torch.nan
    for layer in evidence(model, given):
        assert layer.finite == (True, False, True)
        assert len(layer.evidence.points) == 2


def test_a_network_without_forward_mode_is_refused() -> None:
    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: object, *grads: Tensor) -> Tensor:
            return grads[0] * 2

    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(4, 3, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(Backward.apply(x))
            return out

    with pytest.raises(ModelError, match="need forward mode"):
        evidence(Custom(), torch.randn(2, 4, dtype=torch.float64))
