"""One point and means over points, from products alone."""

import math
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch

from localrank_cli.intervals import deflation
from localrank_cli.intervals.evidence import Level, PointEvidence, interval
from localrank_cli.intervals.operator import Operator, of_matrix
from localrank_cli.intervals.point import (
    Terms,
    Threshold,
    TooRoughError,
    examine_point,
    generators_of,
)
from tests.intervals.planted import examined, generator, most_misses, planted, rank_of


def test_a_gap_closes_the_interval() -> None:
    values = torch.cat([torch.linspace(1, 0.5, 20), torch.full((180,), 1e-3)]).double()
    terms = Terms((Threshold(rtol=0.1),))
    _, (found,) = examined([of_matrix(planted(values, 300, 200, generator(0)))], terms, 1)
    assert (found.low, found.high, found.certain_low) == (20, 20, 20)


def test_a_value_at_the_tolerance_is_undecided_and_bounded_on_both_sides() -> None:
    """F3: 3 values are above 0.25, and 4 are at least that."""
    values = torch.tensor([1, 0.5, 0.5, 0.25, 0.01, 0.01]).double()
    terms = Terms((Threshold(atol=0.25), Threshold(rtol=0.25)))
    (point,), found = examined([of_matrix(torch.diag(values))], terms, 1)
    assert [one.certain_low for one in found] == [3, 3]
    assert [one.low for one in found] == [3, 3]
    assert [one.high for one in found] == [4, 4]
    assert [level.undecided for level in point.levels] == [True, True]


def test_a_basis_that_is_not_orthonormal_bounds_nothing() -> None:
    """Copies of directions have values above sigma_1, and bounds of sigma_1 are then wrong too."""
    values = torch.cat([torch.linspace(1, 0.5, 20), torch.full((80,), 1e-3)]).double()

    def careless(*given: Any) -> deflation.Basis:
        found = deflation.strongest(*given)
        return replace(found, values=1.5 * found.values, defect=1e-3)

    with mock.patch("localrank_cli.intervals.point.strongest", careless):
        terms = Terms((Threshold(rtol=0.1),))
        (one,), (found,) = examined([of_matrix(torch.diag(values))], terms, 1)
    assert one.sigma_low <= 1
    assert one.levels[0].deflated is None
    assert found.low <= 20 <= found.high


def test_bounds_that_contradict_each_other_are_left_as_they_are() -> None:
    """F4: neither swapped nor clipped, and not tried again."""
    level = Level(0.9, 0.95, certain=0, undecided=False, bound=100, deflated=3, fresh_high=0.0)
    point = PointEvidence(100, 100.0, 1.0, 1.0, 10, (level,), 1.0, 1.0, 1.0)
    found = interval([point], 0, 0.05, 2, relative=True)
    assert found.low > found.high
    assert found.failed
    assert found.high == 3


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-20, 1.0, 1e200, 1e290])
def test_the_scale_of_a_matrix_changes_nothing(scale: float) -> None:
    values = torch.arange(1, 61).double() ** -0.7
    matrix = planted(values, 60, 70, generator(0))
    terms = Terms((Threshold(rtol=0.1), Threshold(atol=0.2 * scale)))
    (point,), found = examined([of_matrix(matrix * scale)], terms, 4)
    assert [one.high for one in found] == [rank_of(values, 0.1), rank_of(values, 0.2)]
    assert [one.low for one in found] == [rank_of(values, 0.1), rank_of(values, 0.2)]
    assert point.sigma_low <= scale * (1 + 1e-12)
    assert point.sigma_high is not None
    assert point.sigma_high >= scale * (1 - 1e-12)
    # 1/2 sum log(1 + sigma^2). Two probes estimate sum sigma^2, which it is where all are small,
    # with a standard deviation of 0.4 of it: sqrt(2 / (2 x 6)), 6 being the participation ratio.
    ratios = (values * scale).tolist()
    information = sum(
        0.5 * math.log1p(r * r) if r < 1 else math.log(math.hypot(1, r)) for r in ratios
    )
    assert point.information == pytest.approx(information, rel=0.8)


def test_a_matrix_of_denormal_numbers_has_bounds() -> None:
    """They have few digits, so that only the order of magnitude is checked."""
    (point,), (found,) = examined(
        [of_matrix(1e-315 * torch.eye(3).double())], Terms((Threshold(rtol=0.1),)), 1
    )
    assert found.low <= 3 <= found.high
    assert point.sigma_low == pytest.approx(1e-315, rel=1e-3)


def test_a_product_that_is_not_finite_leaves_the_point_out() -> None:
    matrix = torch.eye(5).double()
    matrix[2, 2] = torch.nan
    assert examine_point(of_matrix(matrix), Terms((Threshold(rtol=0.1),)), generators_of(0)) is None


@pytest.mark.parametrize("products", [10, 60, 200])
@pytest.mark.parametrize("n_points", [1, 4])
def test_no_more_products_than_allowed(products: int, n_points: int) -> None:
    values = torch.arange(1, 201).double() ** -0.5
    operator = of_matrix(planted(values, 200, 200, generator(0)))
    made = [0]

    def counted(operator: Operator) -> Operator:
        def apply(vectors: torch.Tensor) -> torch.Tensor:
            made[0] += vectors.shape[0]
            return operator.apply(vectors)

        def transpose(vectors: torch.Tensor) -> torch.Tensor:
            made[0] += vectors.shape[0]
            return operator.transpose(vectors)

        return replace(operator, apply=apply, transpose=transpose)

    thresholds = (Threshold(rtol=0.3), Threshold(rtol=0.1))
    terms = Terms(thresholds, products=products, n_points=n_points)
    found = examine_point(counted(operator), terms, generators_of(1))
    assert found is not None
    assert found.n_products == made[0] <= products


def test_a_width_that_is_reached_ends_the_search() -> None:
    values = torch.arange(1, 401).double() ** -0.5
    matrix = planted(values, 400, 400, generator(0))
    terms = Terms((Threshold(rtol=0.1),), products=600)
    (narrow,), _ = examined([of_matrix(matrix)], terms, 1)
    (wide,), (found,) = examined([of_matrix(matrix)], replace(terms, width=0.5), 1)
    assert wide.n_products < narrow.n_products
    assert found.high - found.low <= 0.5 * 400


def test_a_mean_over_points_takes_the_points_in_any_division() -> None:
    thresholds = (Threshold(rtol=0.1), Threshold(atol=0.2))
    spectra = [torch.arange(1, 81).double() ** -p for p in (0.5, 0.7, 1.0, 1.5)]
    operators = [
        of_matrix(planted(s, 90, 80, generator(i))) for i, s in enumerate(spectra)
    ]  # fmt: skip
    terms = Terms(thresholds, n_points=4)
    together, found = examined(operators, terms, 7)
    alone = [
        examine_point(of_matrix(planted(s, 90, 80, generator(i))), terms, generators_of(7000 + i))
        for i, s in enumerate(spectra)
    ]
    assert alone == list(together)
    true = [
        sum(rank_of(s, 0.1) for s in spectra) / 4,
        sum(int((s > 0.2).sum()) for s in spectra) / 4,
    ]
    assert all(one.low <= t <= one.high for one, t in zip(found, true, strict=True))
    assert all(one.certain_low <= t for one, t in zip(found, true, strict=True))


def test_each_purpose_draws_its_own_numbers() -> None:
    generators = generators_of(3)
    drawn = [
        float(torch.randn(1, generator=generators(purpose)))
        for purpose in ("count", "sigma", "basis", "fresh")
    ]
    assert len(set(drawn)) == 4
    assert float(torch.randn(1, generator=generators("count"))) == drawn[0]


def test_moments_estimate_their_sums() -> None:
    """On a multiple of an orthogonal matrix every probe gives them exactly."""
    matrix = planted(torch.full((50,), 0.5).double(), 50, 60, generator(0))
    (point,), _ = examined([of_matrix(matrix)], Terms((Threshold(atol=0.1),), noise=0.5), 0)
    assert point.norm == pytest.approx(math.sqrt(0.25 * 50), rel=1e-12)
    assert point.participation == pytest.approx(50, rel=1e-12)
    assert point.information == pytest.approx(0.5 * math.log(2) * 50, rel=1e-12)


def test_what_the_network_cannot_exceed_bounds_the_rank() -> None:
    matrix = planted(torch.ones(50).double(), 50, 60, generator(0))
    terms = Terms((Threshold(rtol=0.1),), bound=20, products=20)
    _, (found,) = examined([of_matrix(matrix)], terms, 0)
    assert found.high == 20


@pytest.mark.parametrize("rtol", [0.0, 0.1])
def test_bounds_allow_for_products_that_are_off(rtol: float) -> None:
    """What is computed has five values just under the tolerance that are just above it, or back."""
    off = 1e-4
    for sign in (-1, 1):
        values = torch.tensor([1.0] * 5 + [0.1 - sign * off / 2] * 5 + [1e-6] * 50).double()
        threshold = Threshold(rtol=rtol) if rtol else Threshold(atol=0.1)
        matrix = planted(values, 60, 90, generator(0))
        exact, inexact = of_matrix(matrix), replace(of_matrix(matrix), error=off)
        _, (careless,) = examined([exact], Terms((threshold,)), 1)
        _, (careful,) = examined([inexact], Terms((threshold,)), 1)
        wrong, right = (5, 10) if sign > 0 else (10, 5)
        assert (careless.low, careless.high) == (wrong, wrong)
        assert careful.low <= right <= careful.high


def test_a_tolerance_under_four_times_that_is_refused() -> None:
    operator = replace(of_matrix(torch.eye(5).double()), error=0.01)
    terms = Terms((Threshold(rtol=0.1), Threshold(rtol=0.03)))
    with pytest.raises(TooRoughError) as one:
        examine_point(operator, terms, generators_of(0))
    assert (one.value.row, round(one.value.least, 6)) == (1, 0.04)
    absolute = Terms((Threshold(atol=0.3),))
    scaled = replace(of_matrix(8 * torch.eye(5).double()), error=0.01)
    with pytest.raises(TooRoughError) as one:
        examine_point(scaled, absolute, generators_of(0))
    assert round(one.value.least, 6) == 0.32


@pytest.mark.parametrize("n_points", [1, 3])
def test_without_a_step_nothing_is_known(n_points: int) -> None:
    terms = Terms((Threshold(rtol=0.1), Threshold(atol=0.1)), products=1, n_points=n_points)
    operators = [of_matrix(torch.eye(30).double()) for _ in range(n_points)]
    points, found = examined(operators, terms, 0)
    assert [(one.low, one.high, one.certain_low) for one in found] == [(0, 30, 0)] * 2
    assert [point.sigma_high for point in points] == [math.inf] * n_points


def test_directions_that_a_basis_missed_are_bounded_by_fresh_probes() -> None:
    """F5: of twenty equal values a block of eight vectors finds eight, as if there were no more.

    The block itself, as a probe of what is left, would say so each time.
    """
    values = torch.tensor([1.0] * 20 + [0.1] * 30 + [1e-3] * 30).double()
    misses = 0
    for seed in range(12):
        matrix = planted(values, 80, 90, generator(seed))
        (point,), (found,) = examined([of_matrix(matrix)], Terms((Threshold(atol=0.12),)), seed)
        assert point.levels[0].deflated == 8
        misses += not found.low <= 20 <= found.high
    assert misses <= most_misses(12, 0.05)


@pytest.mark.parametrize("n_points", [1, 2])
def test_the_largest_singular_value_is_bounded_from_above(n_points: int) -> None:
    """By few steps, which do not find it beside as many that are nearly as large."""
    values = torch.cat([torch.ones(1), torch.linspace(0.9, 0.1, 399)]).double()
    low, misses = [], 0
    terms = Terms((Threshold(rtol=0.1),), products=16, n_points=n_points)
    for seed in range(40):
        # Both bounds are of J, and do not depend on its singular vectors.
        (point,), _ = examined([of_matrix(torch.diag(values))], terms, seed)
        low.append(point.sigma_low)
        assert point.sigma_low <= 1
        assert point.sigma_high is not None
        misses += point.sigma_high < 1
    assert sum(low) / len(low) < 0.97  # not found, nearly every time
    assert misses <= most_misses(40, 0.1 * 0.05)
