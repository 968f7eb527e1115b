"""Every case by every route that may spare the SVD, against numpy's SVD of rows made one by one."""

import numpy as np
import pytest
import torch

from localrank_cli.jacobian.engine import Modes
from localrank_cli.measures.layer import measure
from localrank_cli.measures.points import local_ranks
from localrank_cli.measures.table import demand_of
from localrank_cli.spectrum.layer import LayerSpectrum
from tests.asking import PLENTY, numbers, spectra_of
from tests.cases import CASES, Case, in_turn
from tests.functions import NumpyTanh, apply
from tests.naive import Array, naive_counts, naive_jacobians, naive_spectra
from tests.networks import ab
from tests.spectrum.routes import ROUTES, TOLERANCES, Route, truth
from tests.spectrum.test_naive import BOUND, BOUND_FLOAT32

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")

EVERY = ROUTES | {"blocks_svd": Route(chain=False, tight=True, demand=demand_of(None))}


def by_route(case: Case, route: Route) -> tuple[dict[str, LayerSpectrum], Modes]:
    model, points = case.build()
    memory = PLENTY
    if route.tight:
        # The least that is not refused is 5 r^2 + r doubles, r the short side of the largest.
        memory = max(48 * sigma.shape[1] ** 2 for sigma in truth(case).values())
    modes = route.modes()
    found = spectra_of(
        model, points, case.layers, case.wrt, memory=memory, modes=modes, demand=route.demand
    )
    return found, modes


@pytest.mark.parametrize(("case", "route"), in_turn(CASES, *EVERY))
def test_counts_and_measures(case: Case, route: str) -> None:
    found, _ = by_route(case, EVERY[route])
    bound = BOUND_FLOAT32 if case.low_precision else BOUND
    assert list(found) == list(truth(case))
    for label, spectrum in found.items():
        sigma = truth(case)[label]
        total = sigma.sum(axis=1, keepdims=True)
        # The certificate lets small values be off by 2.5e-7 of their sum, and no more.
        off = np.abs(numbers(spectrum) - sigma)
        assert (off <= bound * sigma[:, :1] + 2.5e-7 * total).all(), label
        for tolerance in TOLERANCES:
            rtol = tolerance.relative(spectrum.n_out, spectrum.n_in)
            ranks = local_ranks(spectrum, tolerance)
            assert ranks.counts.tolist() == naive_counts(sigma, tolerance.atol, rtol), label
            assert not ranks.undecided.any()
        # The contract: measures agree to 1e-6; float32 parts err by more themselves.
        expected = float(np.mean([effective_rank(row) for row in sigma]))
        mean = measure(spectrum, TOLERANCES, 1.0).soft["effective_rank"].mean
        assert mean == pytest.approx(expected, rel=1e-4 if case.low_precision else 1e-6)


def effective_rank(sigma: Array) -> float:
    kept = sigma[sigma > sigma.size * 2.0**-40 * sigma[0]] if sigma[0] > 0 else sigma[:0]
    if not kept.size:
        return 0.0
    shares = kept / kept.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def test_each_route_is_used() -> None:
    def routes(name: str, route: str) -> str:
        case = next(case for case in CASES if case.name == name)
        return " ".join(by_route(case, EVERY[route])[1].routes)

    assert routes("relu_mlp", "as_chosen").startswith("chain")
    told = {route: routes("conv3d", route) for route in EVERY}
    assert "forward" in routes("conv2d", "no_chain")
    assert "forward" not in told["reverse"]
    assert "blocks of" in told["blocks"]
    assert "reverse, blocks of" in told["blocks_in_reverse"]
    assert "reverse, row by row" in told["row_by_row"]
    refused = routes("numpy_function", "as_chosen")  # at b; a comes before the numpy function
    assert refused.endswith("a: reverse b: reverse, row by row")


@pytest.mark.parametrize(
    ("memory", "name"),
    [
        (PLENTY, "b: reverse, row by row"),
        # A third of it holds no Jacobian of 10 x 400, and half of it several rows at once.
        (30_000, "b: reverse, row by row, blocks of 54 columns"),
    ],
)
def test_a_backward_that_refuses_several_rows_at_once(memory: int, name: str) -> None:
    torch.manual_seed(0)
    model = ab(lambda m, x: m["b"](apply(NumpyTanh, m["a"](x))), 400, 10, 10).double()
    points = torch.randn(3, 400, dtype=torch.float64)
    modes = Modes(narrow=False)
    (found,) = spectra_of(model, points, ("b",), memory=memory, modes=modes).values()
    expected = naive_spectra(naive_jacobians(model, points, ("b",)))["b"]
    assert modes.routes[1:] == [name]  # after the reason why it is no chain
    assert sum("rows are computed one by one" in note for note in modes.notes) == 1
    # The squares of the blocks are summed: half of the digits of the smallest value.
    assert (np.abs(numbers(found) - expected) <= 1e-7 * expected[:, :1]).all()
