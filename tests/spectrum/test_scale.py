"""Relative tolerances of a part that refer to the whole, held against numpy on the whole."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from localrank_cli.jacobian.metric_factor import MetricFactor
from localrank_cli.layers.select import Selection
from localrank_cli.measures.points import local_ranks, point_measures
from localrank_cli.measures.table import demand_of
from localrank_cli.spectrum.layer import LayerSpectrum, Request, Scale, _with_scale, layer_spectra
from localrank_cli.spectrum.tolerance import Tolerance
from tests.cases import Case, in_turn
from tests.measures.spectra import spectrum_of
from tests.naive import Array
from tests.spectrum.routes import Route, jacobians
from tests.spectrum.test_slices import CHOSEN, OUTPUTS_OTHERWISE, SLICED

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
RELATIVE = (Tolerance(rtol=0.3), Tolerance(rtol=0.02), Tolerance(rtol=1e-4))
BOTH_WAYS = [case for case in SLICED if case.name not in OUTPUTS_OTHERWISE]


def found_by(
    case: Case, selection: Selection, route: Route, metric: MetricFactor | None = None
) -> dict[str, LayerSpectrum]:
    model, points = case.build()
    memory = 2**31
    if route.tight:
        memory = max(48 * min(j.shape[1:]) ** 2 for j in jacobians(case).values())
    request = Request(
        selection, torch.float64, memory, demand_of(RELATIVE), metric, scaled_by_whole=True
    )

    modes = route.modes()
    return {found.layer: found for found in layer_spectra(model, points, request, modes)}


def counts(part: Array, whole: Array, rtol: float, slack: float) -> list[set[int]]:
    """By numpy's SVD of both matrices at each point: counts at rtol, a little less and more."""
    found = []
    for one, every in zip(part, whole, strict=True):
        sigma = np.linalg.svd(one, compute_uv=False)
        top = np.linalg.svd(every, compute_uv=False)[0]
        found.append({int((sigma > rtol * top * (1 + off)).sum()) for off in (-slack, 0, slack)})
    return found


# By the route that it takes one case in three, and every case at test-long; by all routes those
# that each route has its own way with.
EACH = in_turn(BOTH_WAYS, "as_chosen", one_in=3)
EACH += [
    pytest.param(case, route, id=f"{case.name}-{route}")
    for case in BOTH_WAYS
    for route in CHOSEN
    if case.name in {"relu_mlp", "conv2d", "hidden_wrt"} and route != "as_chosen"
]


@pytest.mark.parametrize(("case", "route"), EACH)
def test_counts_are_numpys_on_the_whole_jacobian(case: Case, route: str) -> None:
    selection = Selection(case.layers, (), case.wrt, input_slice="-1", output_slice=":2")
    slack = 1e-4 if case.low_precision else 1e-9
    for label, spectrum in found_by(case, selection, CHOSEN[route]).items():
        whole = jacobians(case)[label]
        part = whole[:, : spectrum.n_out, -(spectrum.n_varied or 0) :]
        assert spectrum.scale is not None
        tops = np.linalg.svd(whole, compute_uv=False)[:, 0]
        np.testing.assert_allclose(spectrum.scale.values.numpy(), tops, rtol=slack, atol=1e-300)
        for tolerance in RELATIVE:
            ranks = local_ranks(spectrum, tolerance).counts.tolist()
            expected = counts(part, whole, tolerance.rtol or 0, slack)
            assert all(rank in these for rank, these in zip(ranks, expected, strict=True)), label


def test_the_same_counts_by_every_route() -> None:
    case = next(case for case in SLICED if case.name == "relu_mlp")
    selection = Selection(case.layers, (), case.wrt, input_slice=":2", output_slice=":2")
    every = [found_by(case, selection, route) for route in CHOSEN.values()]
    for label in every[0]:
        first, *others = [point_measures(one[label], RELATIVE, 1.0).ranks for one in every]
        assert all(other == first for other in others)


def test_a_known_answer() -> None:
    # The whole has sigma = 8, 4, 2, 1; the part that is looked at 2 and 1.
    layer = nn.Linear(4, 4, bias=False).double()
    net = nn.Sequential(layer)
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0])))
    points = torch.ones(3, 4, dtype=torch.float64)
    request = Request(Selection(output_slice="2:"), demand=demand_of((Tolerance(rtol=0.2),)))
    (own,) = layer_spectra(net, points, request)
    (full,) = layer_spectra(net, points, replace(request, scaled_by_whole=True))
    assert own.scale is None
    assert local_ranks(own, Tolerance(rtol=0.2)).counts.tolist() == [2] * 3  # above 0.4
    assert local_ranks(full, Tolerance(rtol=0.2)).counts.tolist() == [1] * 3  # above 1.6
    assert local_ranks(full, Tolerance(rtol=0.9)).counts.tolist() == [0] * 3  # above 7.2
    # Absolute tolerances and all other measures are those of the part.
    for tolerance in (Tolerance(atol=0.5), Tolerance(atol=1.5)):
        both = [local_ranks(one, tolerance).counts.tolist() for one in (own, full)]
        assert both[0] == both[1]
    soft = [point_measures(one, (), 1.0).soft for one in (own, full)]
    assert soft[0] == soft[1]


def test_an_output_slice_in_a_metric_is_scaled_in_that_metric() -> None:
    case = next(case for case in SLICED if case.name == "relu_mlp")
    n_in = next(iter(jacobians(case).values())).shape[2]
    factor = torch.randn(
        n_in, n_in, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    selection = Selection(case.layers, (), case.wrt, output_slice="-1")
    for label, spectrum in found_by(case, selection, Route(), MetricFactor(factor, 99)).items():
        tops = np.linalg.svd(jacobians(case)[label] @ factor.numpy(), compute_uv=False)[:, 0]
        assert spectrum.scale is not None
        np.testing.assert_allclose(spectrum.scale.values.numpy(), tops, rtol=1e-10)


def test_a_point_whose_whole_jacobian_is_not_finite_fails() -> None:
    part = spectrum_of([[1.0, 0.5], [1.0, 0.5]])
    full = _with_scale(part, spectrum_of([[4.0, 1.0, 0.5], [float("nan")] * 3]))
    assert part.finite.tolist() == [True, True]
    assert full.finite.tolist() == [True, False]
    assert local_ranks(full, Tolerance(rtol=0.2)).counts.tolist() == [1]


def test_the_rounding_of_the_whole_decides_too() -> None:
    # sigma = 1 is 1e-10 from 0.5 * 2: decided by its own rounding, not by that of the whole.
    part = spectrum_of([[1.0 + 1e-10, 0.5]])
    top = torch.tensor([2.0], dtype=torch.float64)
    for off, undecided in ((1e-12, False), (1e-9, True)):
        rounding = torch.tensor([off], dtype=torch.float64)
        scaled = replace(part, scale=Scale(top, rounding))
        ranks = local_ranks(scaled, Tolerance(rtol=0.5))
        assert ranks.undecided.tolist() == [undecided]
        assert ranks.counts.tolist() == [1]
        assert ranks.near.tolist() == [True]
