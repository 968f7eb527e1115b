"""A Jacobian with a NaN or infinite entry has no rank, and affects no other."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from localrank_cli.measures.layer import measure
from localrank_cli.spectrum.tolerance import Tolerance
from tests.asking import numbers, spectra_of
from tests.cases import CASES, Case, params
from tests.naive import naive_jacobians, naive_spectra
from tests.networks import Net, ab, bias, mlp, weight
from tests.spectrum.routes import ROUTES

BAD = pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
EACH = pytest.mark.parametrize("route", ["as_chosen", "no_chain", "reverse", "row_by_row"])

# Other points may be computed in a batch of another size: k u per layer, as in test_properties.
SAME = 5 * 12 * 2.0**-53 * 1000

POISONED = (
    "relu_mlp", "tanh_mlp", "in_place_relu", "residual", "batchnorm_dropout", "conv1d", "conv2d",
    "encoder_batch_first", "data_dependent_if",
    "old_function", "numpy_function", "one_at_a_time", "subtracts_batch_mean", "windows_of_points",
)  # fmt: skip


def failed(
    model: nn.Module, points: Tensor, route: str = "as_chosen", **ask: Any
) -> dict[str, list[int]]:
    """Which points failed at each layer, after checking that exactly those hold NaN."""
    found = spectra_of(model, points, modes=ROUTES[route].modes(), **ask)
    result = {}
    for label, spectrum in found.items():
        assert torch.equal(torch.isnan(spectrum.values).any(dim=1), ~spectrum.finite)
        assert torch.isnan(spectrum.values[~spectrum.finite]).all()
        result[label] = torch.nonzero(~spectrum.finite).flatten().tolist()
    return result


@pytest.mark.cover(1)
@EACH
@BAD
@pytest.mark.parametrize("index", [0, 1, -1])
def test_one_bad_point_fails_alone(bad: float, index: int, route: str) -> None:
    torch.manual_seed(0)
    model, points = mlp(6, 8, 7, 5).double(), torch.randn(4, 6, dtype=torch.float64)
    clean = spectra_of(model, points)
    points[index, 2] = bad
    found = spectra_of(model, points, modes=ROUTES[route].modes())
    keep = [row for row in range(4) if row != index % 4]
    for label, spectrum in found.items():
        assert spectrum.finite.tolist() == [row in keep for row in range(4)]
        expected = numbers(clean[label])[keep]
        assert (np.abs(numbers(spectrum)[keep] - expected) <= SAME * expected[:, :1]).all()


@pytest.mark.cover(1)
@pytest.mark.parametrize("case", params(case for case in CASES if case.name in POISONED))
@BAD
def test_bad_points_fail_where_the_naive_computation_does(case: Case, bad: float) -> None:
    model, points = case.build()
    points[1].view(-1)[0] = bad
    expected = naive_spectra(naive_jacobians(model, points, case.layers))
    found = spectra_of(model, points, case.layers)
    assert list(found) == list(expected)
    for label, spectrum in found.items():
        sigma = expected[label]
        assert np.isnan(sigma[1]).all()
        good = ~np.isnan(sigma).any(axis=1)
        assert spectrum.finite.tolist() == good.tolist(), label
        off = np.abs(numbers(spectrum)[good] - sigma[good])
        assert (off <= SAME * sigma[good, :1]).all(), label


def test_a_recurrence_that_saturates_at_an_infinite_point_is_one_thing_on_all_routes() -> None:
    case = next(case for case in CASES if case.name == "lstm_batch_first")
    model, points = case.build()
    points[1, 0, 0] = torch.inf
    forward = failed(model, points, "as_chosen", layers=case.layers)
    assert forward == failed(model, points, "reverse", layers=case.layers)


@EACH
@BAD
def test_bad_weights_fail_every_point_from_there_on(bad: float, route: str) -> None:
    torch.manual_seed(1)
    model, points = mlp(5, 6, 6, 6, 3).double(), torch.randn(3, 5, dtype=torch.float64)
    weight(model, "2")[4, 1] = bad
    bias(model, "2")[:] = 1
    bias(model, "0")[1] = 1e3  # the unit that meets the bad weight is on
    every = [0, 1, 2]
    assert failed(model, points, route) == {"0": [], "2": every, "4": every, "6": every}


@EACH
def test_a_nan_unit_does_not_drop_out_behind_a_relu(route: str) -> None:
    # NaN > 0 is false: a mask would call the unit dead and the rank finite.
    torch.manual_seed(2)
    model, points = mlp(5, 6, 4).double(), torch.randn(3, 5, dtype=torch.float64)
    bias(model, "0")[2] = torch.nan
    weight(model, "2")[:, 2] = 0
    assert failed(model, points, route) == {"0": [0, 1, 2], "2": [0, 1, 2]}


@pytest.mark.cover(1)
@EACH
@pytest.mark.parametrize(
    "hide",
    [torch.nan_to_num, torch.sigmoid, lambda t: t.nan_to_num().clamp(-1, 1), torch.isnan],
    ids=["nan_to_num", "sigmoid", "clamp", "isnan"],
)
@pytest.mark.parametrize("layers", [(), ("b",)], ids=["all", "only_the_deeper"])
def test_a_later_layer_does_not_hide_an_earlier_one(
    hide: Any, layers: tuple[str, ...], route: str
) -> None:
    def run(net: Net, x: Tensor) -> Any:
        return net["b"](torch.tanh(x[:, :1]) + hide(net["a"](x)).to(x.dtype))

    torch.manual_seed(3)
    model, points = ab(run, 5, 6, 4).double(), torch.rand(4, 5, dtype=torch.float64)
    points[2] *= 1e300
    weight(model, "a").abs_().mul_(1e10)  # overflows at point 2 only
    wanted = layers or ("a", "b")
    assert failed(model, points, route, layers=layers) == {name: [2] for name in wanted}


@EACH
def test_an_infinite_derivative_of_a_finite_value(route: str) -> None:
    # sqrt at 0 is 0, its slope is infinite.
    model = ab(lambda m, x: m["b"](m["a"](x).sqrt()), 3, 3, 2).double()
    weight(model, "a").copy_(torch.eye(3))
    bias(model, "a").zero_()
    points = torch.tensor([[1, 2, 3], [1, 0, 3], [3, 2, 1]], dtype=torch.float64)
    assert failed(model, points, route) == {"a": [], "b": [1]}


@EACH
def test_a_product_of_weights_that_overflows(route: str) -> None:
    # At x = 0 every pre-activation is 0, and J_2 = 1e400.
    model = mlp(3, 3, 3, act=nn.Identity, bias=False).double()
    for name in "02":
        weight(model, name).copy_(1e200 * torch.eye(3, dtype=torch.float64))
    points = torch.zeros(2, 3, dtype=torch.float64)
    assert failed(model, points, route) == {"0": [], "2": [0, 1]}


@pytest.mark.parametrize("scale", [1e-200, 1e-150, 1e150, 1e200])
def test_extreme_scales_are_finite(scale: float) -> None:
    torch.manual_seed(4)
    model = mlp(6, 4, bias=False).double()
    points = torch.zeros(2, 6, dtype=torch.float64)
    before = numbers(spectra_of(model, points)["0"])
    weight(model, "0").mul_(scale)
    after = numbers(spectra_of(model, points)["0"])
    # The entries are rounded once more, and LAPACK scales such matrices.
    assert (np.abs(after / scale - before) <= SAME * before[:, :1]).all()


def test_a_huge_layer_before_a_tiny_one() -> None:
    # A row of the first has a norm of 2e308, which a QR cannot hold; powers of two change no digit.
    torch.manual_seed(4)
    model = mlp(400, 8, 4, bias=False).double()
    weight(model, "0").normal_()
    points = 1e-3 * torch.randn(3, 400, dtype=torch.float64)
    before = numbers(spectra_of(model, points, ("2",))["2"])
    weight(model, "0").mul_(2.0**1020)
    weight(model, "2").mul_(2.0**-1020)
    after = numbers(spectra_of(model, points, ("2",))["2"])
    assert (np.abs(after - before) <= SAME * before[:, :1]).all()


def test_everything_failed_is_not_rank_zero() -> None:
    model, points = mlp(4, 5, 3).double(), torch.randn(3, 4, dtype=torch.float64)
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    for spectrum in spectra_of(model, points).values():
        summary = measure(spectrum, [Tolerance(atol=0.01), Tolerance(rtol=0.1)], noise=1.0)
        assert (summary.n_points, summary.n_failed) == (0, 3)
        assert {average.mean for average in summary.soft.values()} == {None}
        for rank in summary.ranks:
            assert (rank.local_rank.mean, rank.local_rank.error) == (None, None)
            assert (rank.rank_min, rank.rank_max, rank.near_tol) == (None, None, None)
            assert rank.n_undecided == 0
