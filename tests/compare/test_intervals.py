"""Intervals and p-values against scipy, against their definitions, and by simulation."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from localrank_cli.compare import intervals
from localrank_cli.compare.intervals import (
    Array,
    Intervals,
    holm,
    of_change,
    of_difference,
    of_summaries,
)

CELLS, RUNS_TO_BOOTSTRAP = 6, intervals.BOOTSTRAP_FROM


def of_mean(values: Array, confidence: float, seed: int = 0) -> Intervals:
    return of_change(np.zeros_like(values), values, confidence, seed)


def draw(seed: int, *counts: int) -> tuple[Array, ...]:
    random = np.random.default_rng(seed)
    return tuple(random.normal(index, 1 + index, (n, CELLS)) for index, n in enumerate(counts))


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_two_groups_as_scipys_welch_test(confidence: float) -> None:
    first, second = draw(0, 4, 7)
    found = of_difference(first, second, confidence)
    expected = stats.ttest_ind(second, first, equal_var=False)
    ends = expected.confidence_interval(confidence)
    # Both are closed forms in float64.
    np.testing.assert_allclose(found.p, expected.pvalue, rtol=1e-10)
    np.testing.assert_allclose(found.low, ends.low, rtol=1e-10)
    np.testing.assert_allclose(found.high, ends.high, rtol=1e-10)
    together = expected.confidence_interval(1 - (1 - confidence) / CELLS)
    np.testing.assert_allclose(found.low_all, together.low, rtol=1e-10)
    np.testing.assert_allclose(found.high_all, together.high, rtol=1e-10)


def test_one_group_as_scipys_t_test() -> None:
    (values,) = draw(1, 5)
    found = of_mean(values, 0.95)
    two, one = (stats.ttest_1samp(values, 0, alternative=kind) for kind in ("two-sided", "less"))
    np.testing.assert_allclose(found.p, two.pvalue, rtol=1e-10)
    np.testing.assert_allclose(found.p_below, one.pvalue, rtol=1e-10)
    np.testing.assert_allclose(found.high, two.confidence_interval(0.95).high, rtol=1e-10)


def test_summaries_as_scipys_test_from_statistics() -> None:
    means, deviations, counts = np.array([[3.0], [5.0]]), np.array([[1.0], [2.0]]), (64.0, 60.0)
    errors = [deviations[i] / math.sqrt(counts[i]) for i in (0, 1)]
    found = of_summaries(
        means[1] - means[0], (errors[0], errors[1]), (np.array([64.0]), np.array([60.0])), 0.95
    )
    expected = stats.ttest_ind_from_stats(
        means[1], deviations[1], 60, means[0], deviations[0], 64, equal_var=False
    )
    np.testing.assert_allclose(found.p, expected.pvalue, rtol=1e-10)


def test_values_without_spread_have_no_interval_and_the_p_value_of_their_order() -> None:
    equal = np.array([[0.1, -2.0], [0.1, -2.0], [0.1, -2.0]])
    one = of_mean(equal, 0.95)
    assert np.isnan(one.low).all()
    assert np.isnan(one.high_all).all()
    assert one.p.tolist() == [0.25, 0.25]  # 3 signs alike: 2 / 2^3
    assert one.p_below.tolist() == [1.0, 0.125]
    two = of_difference(equal, np.full((2, 2), 0.1), 0.95)
    # One of the C(5, 2) = 10 divisions puts both values on one side, and one on the other.
    np.testing.assert_allclose(two.p, [1.0, 0.2], rtol=1e-12)


@pytest.mark.parametrize("runs", [3, 10])
def test_differences_that_are_apart_by_rounding_alone_have_no_spread(runs: int) -> None:
    first = 10.1 + 3.7 * np.arange(runs)[:, None] + np.zeros((runs, 3))
    second = first + np.array([2.2, 0.0, 1.0])  # 2.2, give or take an ulp
    first[:, 2] = [float(f"{value:.9g}") for value in 1e3 + np.arange(runs) / 64]
    second[:, 2] = [float(f"{value:.9g}") for value in 995 + np.arange(runs) / 64]
    found = of_change(first, second, 0.95)
    np.testing.assert_allclose(found.estimate, [2.2, 0.0, -5.0], atol=1e-5)
    assert found.estimate[1] == 0.0
    assert np.isnan([found.low, found.high]).all()
    assert found.p.tolist() == [2 / 2**runs, 1.0, 2 / 2**runs]


def test_resamples_of_equal_values_are_beyond_every_quantile() -> None:
    # One run of ten differs, and in 0.9^10 = 35 % of the resamples it is not there.
    first, second = np.full((10, 1), 10.0), np.full((10, 1), 10.3)
    first[0], second[0] = 9.7, 9.6
    assert of_difference(first, second, 0.95).low == -np.inf


def test_a_missing_value_is_not_known_and_spoils_no_other_cell() -> None:
    (values,) = draw(2, 5)
    whole = of_mean(values, 0.95)
    values[0, 0] = np.nan
    found = of_mean(values, 0.95)
    assert np.isnan([found.estimate[0], found.p[0], found.low[0]]).all()
    np.testing.assert_array_equal(found.low[1:], whole.low[1:])


def test_holms_procedure_by_its_definition() -> None:
    p = np.array([0.01, 0.04, np.nan, 0.03, 0.005])
    # Holm 1979: the i-th smallest of m is compared with alpha / (m - i + 1), up to the first that
    # is not below. Here m is 5, since the cell without a value could have been any.
    assert holm(p).tolist()[:2] == pytest.approx([0.04, 0.09])
    for alpha in (0.024, 0.026, 0.039, 0.041, 0.089, 0.091):
        rejected: set[int] = set()
        for place, index in enumerate(np.argsort(p)[:4]):
            if p[index] > alpha / (5 - place):
                break
            rejected.add(int(index))
        assert set(np.flatnonzero(holm(p) <= alpha)) == rejected


def skewed(random: np.random.Generator, shape: tuple[int, int]) -> Array:
    return random.gamma(4.0, 0.5, shape) - 2.0


CASES: dict[str, tuple[Callable[[np.random.Generator, tuple[int, int]], Array], int, int]] = {
    "normal, 3 and 4 runs": (lambda random, shape: random.normal(0, 1, shape), 3, 4),
    "normal, 2 and 9 runs": (lambda random, shape: random.normal(0, 1, shape), 2, 9),
    "normal, 9 and 2 runs": (lambda random, shape: random.normal(0, 1, shape), 9, 2),
    "normal, 3 and 8 runs": (lambda random, shape: random.normal(0, 1, shape), 3, 8),
    "normal, 8 and 5 runs": (lambda random, shape: random.normal(0, 1, shape), 8, 5),
    "normal, 10 and 12 runs": (lambda random, shape: random.normal(0, 1, shape), 10, 12),
    "skewed, 15 and 20 runs": (skewed, 15, 20),
}


@pytest.mark.parametrize(
    ("name", "sets"),
    [
        # Resamples take most of the time, and are those of a few sets in each run of the tests.
        pytest.param(name, sets, marks=() if sets == quick else pytest.mark.long)
        for name, (_, first, second) in CASES.items()
        for quick in [150 if min(first, second) >= RUNS_TO_BOOTSTRAP else 300]
        for sets in sorted({quick, 1000})
    ],
)
def test_intervals_of_known_differences_cover_as_often_as_they_say(
    name: str, sets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "_FEWEST_RESAMPLES", 1000)  # the least that 6 cells need is used
    draw_from, first, second = CASES[name]
    random = np.random.default_rng(3)
    alone, together, wrong = 0, 0, 0
    for seed in range(sets):
        groups = draw_from(random, (first, CELLS)), 2 * draw_from(random, (second, CELLS))
        found = of_difference(*groups, 0.95, seed)
        alone += int(((found.low > 0) | (found.high < 0)).sum())
        together += int(((found.low_all > 0) | (found.high_all < 0)).any())
        wrong += int((holm(found.p_joint) <= 0.05).any())
    # 3 standard deviations of a count of sets at 5 %: the 6 cells of a set are not independent.
    misses = 0.05 + 3 * math.sqrt(0.05 * 0.95 / sets)
    # Of 2 values of twice the spread of 9 others, Welch's intervals miss in 11 to 12 %.
    assert alone / (sets * CELLS) <= misses + (0.05 if name == "normal, 9 and 2 runs" else 0)
    # Welch's approximation of the degrees of freedom errs in the far tail, most for 5 values of
    # twice the spread of 8 others: there 6 cells together miss in 7 to 8 % of sets, as docs say.
    allowed = misses + (0.02 if name == "normal, 8 and 5 runs" else 0)
    assert together / sets <= allowed
    assert wrong / sets <= allowed
    # And they are not wide for safety.
    assert alone / (sets * CELLS) >= 0.025


def test_pairs_are_compared_within_and_not_between() -> None:
    random = np.random.default_rng(5)
    seeds = random.normal(0, 10, (6, CELLS))  # what a pair has in common
    first, second = seeds + random.normal(0, 0.1, seeds.shape), seeds + 1
    assert (of_mean(second - first, 0.95).low > 0.5).all()
    assert (of_difference(first, second, 0.95).low < 0).all()


@pytest.mark.parametrize("cells", [1, 40])
def test_the_bootstrap_is_the_same_for_the_same_seed_and_in_blocks(
    cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(6).normal(1, 1, (RUNS_TO_BOOTSTRAP, cells))

    def ends(seed: int) -> Intervals:
        return of_mean(values, 0.95, seed)

    whole = ends(1)
    monkeypatch.setattr(intervals, "_BLOCK", 1)
    # Another order of the same sums: a few roundings of values of about 1.
    np.testing.assert_allclose(whole.low_all, ends(1).low_all, rtol=1e-11, atol=1e-13)
    assert not np.array_equal(whole.low, ends(2).low)


def test_the_bootstrap_agrees_with_students_t_for_many_normal_runs() -> None:
    values = np.random.default_rng(7).normal(0.3, 1, (400, CELLS))
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = of_mean(values, 0.95)
    # The quantiles of 10,000 resamples have a standard error of about 3 %.
    np.testing.assert_allclose(found.high - found.low, expected.high - expected.low, rtol=0.1)
    np.testing.assert_allclose(
        found.low, expected.low, atol=0.1 * (expected.high - expected.low).max()
    )


def test_an_interval_beyond_every_resample_is_unbounded_and_not_too_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intervals, "_MOST_RESAMPLES", 500)
    found = of_mean(np.random.default_rng(8).normal(9, 1, (10, 100)), 0.95)
    assert np.isinf(found.low_all).all()
    assert np.isinf(found.high_all).all()
    assert np.isfinite(found.low).all()
    assert (holm(found.p_joint) > 0.05).all()
