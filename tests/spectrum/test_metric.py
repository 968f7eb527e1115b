"""J L by every route against numpy's product of a Jacobian made row by row with L."""

import numpy as np
import pytest
import torch

from localrank_cli.jacobian.engine import Modes
from localrank_cli.jacobian.metric_factor import MetricFactor
from localrank_cli.layers.select import Selection
from localrank_cli.measures.points import local_ranks
from localrank_cli.measures.table import demand_of
from localrank_cli.spectrum.layer import LayerSpectrum, Request, layer_spectra
from tests.asking import PLENTY, numbers
from tests.cases import CASES, Case, in_turn
from tests.naive import Array, naive_counts, naive_spectra
from tests.spectrum.routes import ROUTES, TOLERANCES, Route, jacobians
from tests.spectrum.test_naive import BOUND, BOUND_FLOAT32

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")

KINDS = ("scalar", "full", "narrow")


def metric_for(kind: str, n_in: int) -> MetricFactor:
    """A known factor, one of a covariance, and one of fewer points than entries."""
    if kind == "scalar":
        return MetricFactor(torch.tensor(12**-0.5, dtype=torch.float64))
    generator = torch.Generator().manual_seed(3)
    width = n_in if kind == "full" else max(1, n_in // 2)
    factor = torch.randn(n_in, width, generator=generator, dtype=torch.float64)
    return MetricFactor(factor / n_in**0.5, 10 * n_in)


def truth(case: Case, kind: str) -> dict[str, Array]:
    products = {}
    for label, matrices in jacobians(case).items():
        factor = metric_for(kind, matrices.shape[2]).factor.numpy()
        products[label] = matrices * factor if factor.ndim == 0 else matrices @ factor
    return naive_spectra(products)


def found_by(case: Case, route: Route, kind: str, modes: Modes) -> dict[str, LayerSpectrum]:
    model, points = case.build()
    n_in = next(iter(jacobians(case).values())).shape[2]
    memory = PLENTY
    if route.tight:
        memory = max(48 * sigma.shape[1] ** 2 for sigma in truth(case, kind).values())
    request = Request(
        Selection(case.layers, (), case.wrt),
        torch.float64,
        memory,
        demand_of(TOLERANCES),
        metric_for(kind, n_in),
    )
    return {found.layer: found for found in layer_spectra(model, points, request, modes)}


WAYS = [*((route, kind) for route in ROUTES for kind in KINDS[1:]), ("as_chosen", "scalar")]


@pytest.mark.parametrize(("case", "route", "kind"), in_turn(CASES, *WAYS, one_in=2))
def test_spectra_and_counts(case: Case, route: str, kind: str) -> None:
    expected = truth(case, kind)
    taken = ROUTES[route]
    found = found_by(case, taken, kind, taken.modes())
    bound = 10 * (BOUND_FLOAT32 if case.low_precision else BOUND)
    assert list(found) == list(expected)
    for label, spectrum in found.items():
        sigma = expected[label]
        assert spectrum.values.shape == sigma.shape
        assert spectrum.n_varied == jacobians(case)[label].shape[2]
        total = sigma.sum(axis=1, keepdims=True)
        off = np.abs(numbers(spectrum) - sigma)
        assert (off <= bound * sigma[:, :1] + 2.5e-7 * total).all(), label
        for tolerance in TOLERANCES:
            rtol = tolerance.relative(spectrum.n_out, spectrum.n_in)
            tol = np.maximum(tolerance.atol, rtol * sigma[:, :1])
            clear = (np.abs(sigma - tol) > bound * sigma[:, :1]).all(axis=1)
            # Seeds are fixed, so no example is thrown away; 0 > 0 is false where J = 0.
            assert (clear | (sigma[:, 0] == 0)).all()
            counts = local_ranks(spectrum, tolerance).counts.tolist()
            assert counts == naive_counts(sigma, tolerance.atol, rtol), label


def test_the_chain_is_used_in_a_metric_too() -> None:
    case = next(case for case in CASES if case.name == "relu_mlp")
    for kind in KINDS:
        modes = Modes()
        found_by(case, Route(), kind, modes)
        assert modes.routes == ["chain of Linear layers and elementwise operations"]


def test_a_factor_that_is_not_finite_fails_every_point() -> None:
    case = next(case for case in CASES if case.name == "hidden_wrt")
    model, points = case.build()
    metric = MetricFactor(torch.full((7, 7), torch.nan, dtype=torch.float64), 99)
    request = Request(Selection((), (), case.wrt), metric=metric)
    for spectrum in layer_spectra(model, points, request):
        assert not spectrum.finite.any()
