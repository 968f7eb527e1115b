"""Products and intervals of networks, against whole Jacobians."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from localrank_cli.errors import ModelError, SettingsError
from localrank_cli.intervals.layer import (
    N_COMPARED,
    Bounds,
    LayerEvidence,
    Purpose,
    layer_evidence,
)
from localrank_cli.jacobian.engine import Modes
from localrank_cli.jacobian.metric_factor import MetricFactor
from localrank_cli.jacobian.products import Products, point_batches
from localrank_cli.layers.select import Selection
from localrank_cli.layers.setting import analysis_setting
from localrank_cli.layers.survey import CallRecord
from localrank_cli.spectrum.examine import View, examine
from localrank_cli.spectrum.layer import Request, make_task
from localrank_cli.spectrum.tolerance import Tolerance
from tests.helpers import mlp
from tests.intervals.planted import generator, haar, most_misses, planted


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
    entries = kept[name].flatten()
    # By index: an entry that comes from iteration has a gradient for all others, too.
    rows = [
        torch.autograd.grad(entries[index], at, retain_graph=True)[0]
        for index in range(len(entries))
    ]
    return torch.stack([row.flatten() for row in rows])


def requested(selection: Selection) -> Request:
    return Request(selection, is_chosen=True)


def check_products(
    model: nn.Module,
    given: Tensor,
    request: Request,
    naive: Callable[[View, CallRecord, Tensor], Tensor],
) -> int:
    """Compare the products of every record at every point with those of a matrix."""
    found = examine(model, given, request.selection, torch.float64)
    (view,) = found.views
    task = make_task(model, given, view, found, request)
    modes = Modes()
    random = torch.Generator("cpu").manual_seed(5)
    checked = 0
    with analysis_setting(model, torch.float64):
        for one in point_batches([task], modes):
            for record in view.records:
                whole = naive(view, record, given[one.point])
                products = Products(one.batch, record.call, 2, modes, task.residual)
                v = torch.randn(5, whole.shape[1], generator=random, dtype=torch.float64)
                u = torch.randn(5, whole.shape[0], generator=random, dtype=torch.float64)
                # Sums of a hundred terms in another order.
                assert torch.allclose(products.apply(v), v @ whole.T, rtol=1e-12, atol=1e-13)
                assert torch.allclose(products.transpose(u), u @ whole, rtol=1e-12, atol=1e-13)
                bound = products.rank_bound()
                assert bound is None or torch.linalg.matrix_rank(whole) <= bound
                checked += 1
    return checked


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

    def naive(view: View, record: CallRecord, point: Tensor) -> Tensor:
        whole = dense(model, record.call.name, point, source)
        if view.entries is not None:
            whole = whole[:, view.entries]
        return whole[view.picked[record.call]] if record.call in view.picked else whole

    assert check_products(model, given, requested(selection), naive) >= 4


@pytest.mark.parametrize("columns", [None, 20, 72])
@pytest.mark.parametrize("selection", [Selection(), Selection(input_slice=":,1:4,:")])
def test_products_in_the_metric_of_the_data_are_those_of_j_l(
    columns: int | None, selection: Selection
) -> None:
    """L is a number, a sample of fewer directions than entries, or square."""
    model, given = net(), points(2)
    random = torch.Generator("cpu").manual_seed(8)
    factor = torch.tensor(0.3).double()
    if columns is not None:
        factor = torch.randn(72, columns, generator=random, dtype=torch.float64)

    def naive(view: View, record: CallRecord, point: Tensor) -> Tensor:
        whole, own = dense(model, record.call.name, point), factor
        if view.entries is not None:
            whole = whole[:, view.entries]
            own = factor if factor.dim() == 0 else factor[: len(view.entries)]
        return whole * own if own.dim() == 0 else whole @ own

    n_varied = 36 if selection.input_slice else 72
    metric = MetricFactor(factor if columns is None else factor[:n_varied])
    assert check_products(model, given, replace(requested(selection), metric=metric), naive) == 6


@pytest.mark.parametrize("metric", ["identity", "a number", "few directions", "all"])
def test_products_of_the_residual_part_are_those_of_j_less_the_identity(metric: str) -> None:
    """In the metric of the data of (J - 1) L."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).double()
        given = torch.randn(2, 6, dtype=torch.float64)
    selection = Selection(("2",), wrt="0", residual=True)
    sizes = {"a number": (), "few directions": (6, 2), "all": (6, 6)}
    factor = torch.eye(6).double()
    request = requested(selection)
    if metric != "identity":
        factor = torch.randn(sizes[metric], generator=generator(1), dtype=torch.float64)
        request = replace(request, metric=MetricFactor(factor))

    def naive(view: View, record: CallRecord, point: Tensor) -> Tensor:
        del view
        whole = dense(model, record.call.name, point, "0") - torch.eye(6).double()
        return whole * factor if factor.dim() == 0 else whole @ factor

    assert check_products(model, given, request, naive) == 2


TOLERANCES = (Tolerance(rtol=0.1), Tolerance(atol=0.05))


def evidence(
    model: nn.Module,
    given: Tensor,
    indices: tuple[int, ...] = (),
    n_points: int = 0,
    products: int = 300,
    modes: Modes | None = None,
    dtype: torch.dtype = torch.float64,
) -> list[LayerEvidence]:
    bounds = Bounds(0.95, 0.0, products)
    purpose = Purpose("run", 7, n_points or len(given), bounds, TOLERANCES, 1.0)
    request = replace(requested(Selection()), indices=indices, dtype=dtype)
    return layer_evidence(model, given, request, purpose, modes or Modes())


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
    model, given = net(), points(2)
    together = evidence(model, given, (4, 9))
    apart = [
        evidence(model, given[index : index + 1], (drawn,), 2) for index, drawn in enumerate((4, 9))
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


@pytest.mark.parametrize("is_finite", [True, False])
def test_a_backward_pass_that_is_not_the_derivative_is_refused(is_finite: bool) -> None:
    """Another layer whose outputs are not finite hides nothing."""

    class Half(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def setup_context(ctx: object, inputs: object, output: object) -> None:
            pass

        @staticmethod
        def backward(ctx: object, *grads: Tensor) -> Tensor:
            return grads[0] * torch.tensor([2, 2, 0, 0])

        @staticmethod
        def jvp(ctx: object, *tangents: Tensor) -> Tensor:
            return tangents[0] * 2

    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = Half.apply(x)
            return out

    last = nn.Linear(4, 2)
    if not is_finite:
        nn.init.constant_(last.bias, torch.nan)
    model = nn.Sequential(nn.Linear(4, 4), Cut(), nn.Linear(4, 4), last).double()
    with pytest.raises(ModelError, match="disagrees with reverse mode"):
        evidence(model, torch.randn(2, 4, dtype=torch.float64))


def test_what_everything_passes_through_bounds_the_rank() -> None:
    """Singular values that decay slowly, at a tolerance under all of them, and few products."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = nn.Sequential(
            nn.Linear(60, 50), nn.ReLU(), nn.Linear(50, 13), nn.Linear(13, 40), nn.ReLU(),
            nn.Linear(40, 60),
        ).double()  # fmt: skip
        given = torch.randn(3, 60, dtype=torch.float64)
    found = {layer.layer: layer for layer in evidence(model, given, products=20)}
    bounds = {
        name: [point.levels[0].bound for point in layer.evidence.points]
        for name, layer in found.items()
    }
    active = [int((model[0](one) > 0).sum()) for one in given]
    assert bounds["0"] == [50, 50, 50]
    assert bounds["2"] == [13, 13, 13]
    assert bounds["3"] == bounds["5"] == [13, 13, 13]
    assert all(13 < one < 50 for one in active)  # of a wider layer they would count
    last = found["5"].evidence.interval(0, relative=True)
    assert last is not None
    assert last.high == 13
    assert all(point.n_products <= 20 for point in found["5"].evidence.points)


def test_units_that_are_not_active_do_not_count() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(60, 50), nn.ReLU(), nn.Linear(50, 60)).double()
        given = torch.randn(3, 60, dtype=torch.float64)
    layer = next(one for one in evidence(model, given, products=20) if one.layer == "2")
    active = [int((model[0](one) > 0).sum()) for one in given]
    assert [point.levels[0].bound for point in layer.evidence.points] == active
    for one, count in zip(given, active, strict=True):
        assert torch.linalg.matrix_rank(dense(model, "2", one)) == count


class Overflowing(nn.Module):
    """Forward mode selects the branch that is finite; reverse mode multiplies 0 by infinity."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0 * torch.exp(1000 * x.abs().clamp(max=1) * (x > 0)))


def test_points_that_reverse_mode_alone_loses_are_noted() -> None:
    random = torch.Generator("cpu").manual_seed(3)
    given = torch.rand(3, 5, generator=random, dtype=torch.float64)
    given[1] = -given[1]  # nothing overflows
    model = nn.Sequential(Overflowing(), nn.Linear(5, 4)).double()
    modes = Modes()
    (found,) = evidence(model, given, modes=modes)
    assert found.finite == (False, True, False)
    (note,) = modes.notes
    assert "layer '1': products J^T u are not finite" in note
    assert "--method exact" in note
    given[0, 0] = torch.nan  # the value itself: both modes lose it
    modes = Modes()
    evidence(model, given[:2], modes=modes)
    assert modes.notes == []


def rounding_network(seed: int) -> nn.Sequential:
    """Two layers whose product has singular values 1 / j, nearly; in float32."""
    random = generator(seed)
    first = planted(torch.arange(1, 81).double() ** -0.5, 80, 90, random)
    middle = haar(80, 80, random) @ torch.diag(torch.ones(80).double()) @ haar(80, 80, random).T
    model = nn.Sequential(nn.Linear(90, 80, bias=False), nn.Linear(80, 80), nn.Linear(80, 100))
    left = planted(torch.arange(1, 81).double() ** -0.5, 100, 80, random)
    for module, matrix in zip(model, (first, middle, left), strict=True):
        assert isinstance(module, nn.Linear)
        module.weight.data = matrix.float()
    return model.eval()


@pytest.mark.parametrize("count", [1, pytest.param(12, marks=pytest.mark.long)])
def test_products_in_float32_bound_the_rank_nearly_as_those_in_float64(count: int) -> None:
    """The exact ranks are of the float64 product of the very weights."""
    widths: dict[torch.dtype, float] = {torch.float32: 0.0, torch.float64: 0.0}
    misses = 0
    for seed in range(count):
        model, given = rounding_network(seed), torch.randn(1, 90)
        matrices = [one.weight.detach().double() for one in model if isinstance(one, nn.Linear)]
        values = torch.linalg.svdvals(matrices[2] @ matrices[1] @ matrices[0])
        true = int((values > 0.1 * values[0]).sum()), int((values > 0.05).sum())
        for dtype in widths:
            # Eight are for the comparison.
            products = 600 + (2 * N_COMPARED if dtype == torch.float32 else 0)
            copied = copy.deepcopy(model).to(dtype)
            layers = evidence(copied, given.to(dtype), products=products, dtype=dtype)
            (found,) = [one for one in layers if one.layer == "2"]
            assert str(dtype).removeprefix("torch.") in found.method
            for row, rank in enumerate(true):
                one = found.evidence.interval(row, relative=row == 0)
                assert one is not None
                misses += not one.low <= rank <= one.high
                widths[dtype] += one.high - one.low
            point = found.evidence.points[0]
            assert point.sigma_low <= float(values[0])
            assert point.sigma_high is not None
            assert point.sigma_high >= float(values[0])
    assert misses <= most_misses(4 * count, 0.05)
    # Two intervals of each network: rounding costs less than half a singular value each.
    assert widths[torch.float32] <= widths[torch.float64] + count


def test_a_tolerance_under_the_rounding_of_float32_is_refused() -> None:
    model = rounding_network(0)
    bounds = Bounds(0.95, 0.0, 100)
    purpose = Purpose("run", 7, 1, bounds, (Tolerance(rtol=0.1), Tolerance(atol=1e-5)), 1.0)
    request = replace(requested(Selection()), dtype=torch.float32)
    with pytest.raises(SettingsError, match=r"layer '0' at atol=1e-05: .* allows --atol") as one:
        layer_evidence(model, torch.randn(1, 90), request, purpose, Modes())
    least = float(one.value.what.split("--atol only from ")[1].split()[0])
    assert 1e-5 < least < 1e-3
    relative = replace(purpose, tolerances=(Tolerance(rtol=1e-5),))
    with pytest.raises(SettingsError, match=r"layer '0' at rtol=1e-05: .* allows --rtol"):
        layer_evidence(model, torch.randn(1, 90), request, relative, Modes())
    # Layers behind it have another largest singular value.
    request = replace(request, selection=Selection(("0",)))
    allowed = replace(purpose, tolerances=(Tolerance(atol=least),))
    assert layer_evidence(model, torch.randn(1, 90), request, allowed, Modes())


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("tolerance", [Tolerance(rtol=0.1), Tolerance(atol=1e-9)])
def test_products_that_vanish_in_float32_alone_are_refused(
    count: int, tolerance: Tolerance
) -> None:
    """1 - tanh^2 is 0 in float32 where it is 2e-8 in float64: the rank is not 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = nn.Linear(6, 6)
        model = nn.Sequential(first, nn.Tanh(), nn.Linear(6, 6))
    nn.init.constant_(first.bias, 9.6)
    bounds = Bounds(0.95, 0.0, 100)
    purpose = Purpose("run", 7, count, bounds, (tolerance,), 1.0)
    request = replace(requested(Selection(("2",))), dtype=torch.float32)
    with pytest.raises(SettingsError, match="layer '2': products in float32 may be off") as one:
        layer_evidence(model, torch.zeros(count, 6), request, purpose, Modes())
    assert str(one.value).endswith("Leave out --dtype float32.")
    precise = copy.deepcopy(model).double()
    request = replace(request, dtype=torch.float64)
    given = torch.zeros(count, 6, dtype=torch.float64)
    (found,) = layer_evidence(precise, given, request, purpose, Modes())
    for one_point, point in zip(found.evidence.points, given, strict=True):
        values = torch.linalg.svdvals(dense(precise, "2", point))
        rank = int((values > max(tolerance.atol, (tolerance.rtol or 0) * values[0])).sum())
        assert 0 < one_point.levels[0].certain <= rank


def test_units_that_are_off_in_both_precisions_are_no_reason_to_refuse() -> None:
    first = nn.Linear(6, 6)
    nn.init.constant_(first.bias, -99.0)
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(6, 6))
    layers = evidence(model, torch.zeros(1, 6), dtype=torch.float32)
    last = layers[1].evidence.interval(0, relative=True)
    assert last is not None
    assert (last.low, last.high) == (0, 0)


@pytest.mark.parametrize("n_points", [4, pytest.param(12, marks=pytest.mark.long)])
def test_intervals_of_a_trained_network_hold_its_ranks(n_points: int) -> None:
    """Of weights that are no random draw: a convolutional network that has learned its labels."""
    model, given = net(), points(12)
    labels = (given.mean(dim=(1, 2, 3)) > 0).long()
    with torch.random.fork_rng(devices=[]):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(150):
            loss = nn.functional.cross_entropy(model(given), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert loss.item() < 0.1
    for parameter in model.parameters():
        parameter.grad = None
    misses = 0
    for index in range(n_points):
        point = given[index : index + 1]
        for layer in evidence(model, point, (index,), products=60):
            values = torch.linalg.svdvals(dense(model, layer.layer, point[0]))
            row = index % 2  # one tolerance each: those of one point share their probes
            at = max(TOLERANCES[row].atol, float((TOLERANCES[row].rtol or 0) * values[0]))
            true = int((values > at).sum())
            found = layer.evidence.interval(row, relative=row == 0)
            assert found is not None
            assert found.certain_low <= true
            misses += not found.low <= true <= found.high
    assert misses <= most_misses(3 * n_points, 0.05)


def test_vectors_that_float32_rounds_are_allowed_for() -> None:
    """The products with 1 are exact, and yet what they give is only the vectors in float32."""
    layer = nn.Linear(40, 40, bias=False)
    nn.init.eye_(layer.weight)
    purpose = Purpose("run", 7, 1, Bounds(0.95, 0.0, 300), (Tolerance(atol=1.0),), 1.0)
    request = replace(requested(Selection()), dtype=torch.float32)
    (found,) = layer_evidence(nn.Sequential(layer), torch.zeros(1, 40), request, purpose, Modes())
    one = found.evidence.interval(0, relative=False)
    assert one is not None
    assert (one.low, one.certain_low) == (0, 0)  # none of the values 1 is above 1
    assert one.high == 40  # within rounding all of them
