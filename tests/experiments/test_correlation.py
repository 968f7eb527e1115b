"""Rank correlations over a sweep against scipy and closed forms, and their intervals."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from localrank_cli.experiments import correlation
from localrank_cli.experiments.correlation import (
    granulated,
    kendall,
    n_groups,
    over_cells,
    partial,
)

CELL = ("a", "b")


def grid(seeds: int = 3, seed: int = 0) -> pd.DataFrame:
    """Networks over two settings of 3 and 4 levels, whose measures are noise."""
    rows = list(product(range(3), range(4), range(seeds)))
    frame = pd.DataFrame(rows, columns=["a", "b", "seed"])
    random = np.random.default_rng(seed)
    return frame.assign(x=random.normal(size=len(frame)), y=random.normal(size=len(frame)))


def every(frame: pd.DataFrame) -> np.ndarray:
    return np.arange(len(frame))


def test_tau_is_scipys() -> None:
    frame = grid()
    assert kendall(frame, "x", "y")(every(frame)) == stats.kendalltau(frame["x"], frame["y"])[0]
    assert math.isnan(kendall(frame.assign(x=1.0), "x", "y")(every(frame)))


def test_granulated_tau_is_the_mean_of_that_within_groups() -> None:
    frame = grid()
    for axis, other in (("a", "b"), ("b", "a")):
        found = granulated(frame, "x", "y", axis, (*CELL, "seed"))(every(frame))
        groups = frame.groupby([other, "seed"])
        expected = np.mean([stats.kendalltau(part["x"], part["y"])[0] for _, part in groups])
        assert found == pytest.approx(expected, rel=1e-12)
        assert n_groups(frame, axis, CELL) == frame[other].nunique()


def test_granulated_tau_sees_no_other_setting() -> None:
    # x and y both grow with b, which makes an overall tau, and oppositely with a (Simpson).
    frame = grid()
    frame = frame.assign(x=10 * frame["b"] + frame["a"], y=10 * frame["b"] - frame["a"])
    assert kendall(frame, "x", "y")(every(frame)) > 0.5
    assert granulated(frame, "x", "y", "a", (*CELL, "seed"))(every(frame)) == -1.0
    assert granulated(frame, "x", "y", "b", (*CELL, "seed"))(every(frame)) == 1.0


def test_rows_that_are_drawn_twice_count_twice() -> None:
    frame = grid(seeds=1)
    rows = np.repeat(every(frame), 2)
    once = granulated(frame, "x", "y", "a", (*CELL, "seed"))
    assert once(rows) == pytest.approx(once(every(frame)))
    assert math.isnan(once(np.array([0])))  # no pair


def test_a_partial_correlation_given_one_measure_has_a_closed_form() -> None:
    frame = grid(seed=1)
    frame["z"] = frame["x"] + frame["y"] + np.random.default_rng(2).normal(size=len(frame))
    r = frame[["x", "y", "z"]].corr(method="spearman").to_numpy()
    expected = (r[0, 1] - r[0, 2] * r[1, 2]) / math.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))
    assert partial(frame, "x", "y", ["z"])(every(frame)) == pytest.approx(expected, rel=1e-10)


def test_what_the_controls_determine_is_not_correlated() -> None:
    frame = grid().assign(z=lambda one: -(one["x"] ** 3))  # of the same order, reversed
    assert math.isnan(partial(frame, "x", "y", ["z"])(every(frame)))


@pytest.mark.parametrize("count", [5, 6])
def test_as_many_controls_as_cells_leave_no_certainty(count: int) -> None:
    # Of 5 values, less their mean and three controls, one direction is left: 1 or -1 by itself.
    random = np.random.default_rng(0)
    frame = pd.DataFrame({name: random.normal(size=count) for name in "xyuvw"})
    frame["cell"] = range(count)
    found = over_cells(frame, ["cell"], partial(frame, "x", "y", ["u", "v", "w"]))
    assert (math.isnan(found.value), math.isnan(found.low)) == (count == 5, True)
    assert found.sign == 0


def test_cells_are_resampled_with_all_of_their_seeds() -> None:
    # Seeds of one cell are alike: 30 copies tell no more than one.
    few, many = (
        pd.concat([grid(1)] * count, ignore_index=True).assign(seed=lambda one: range(len(one)))
        for count in (1, 30)
    )
    found = [over_cells(frame, CELL, kendall(frame, "x", "y")) for frame in (few, many)]
    # Copies are ties, of which tau-b takes no notice in either measure.
    assert found[1].value == pytest.approx(found[0].value, rel=1e-9)
    assert found[1].high - found[1].low >= 0.9 * (found[0].high - found[0].low)


@pytest.mark.parametrize("sweeps", [10, pytest.param(100, marks=pytest.mark.long)])
@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_the_interval_covers_the_true_coefficient(
    slope: float, sweeps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of sweeps of 24 cells; tau of a normal pair is 2/pi asin(rho)."""
    monkeypatch.setattr(correlation, "_RESAMPLES", 200)
    random = np.random.default_rng(3)
    truth = 2 / math.pi * math.asin(slope / math.sqrt(1 + slope**2))
    hits = 0
    for seed in range(sweeps):
        x = random.normal(size=24)
        frame = pd.DataFrame({"cell": range(24), "x": x, "y": slope * x + random.normal(size=24)})
        found = over_cells(frame, ["cell"], kendall(frame, "x", "y"), seed=seed)
        hits += found.low <= truth <= found.high
    # A percentile interval of 24 values covers in about 92 %; 3 standard deviations.
    assert hits >= 0.92 * sweeps - 3 * math.sqrt(0.92 * 0.08 * sweeps)


def test_too_few_cells_have_no_interval_and_no_sign() -> None:
    frame = grid()
    few = frame[frame["a"] == 0]
    found = over_cells(few, CELL, kendall(few, "b", "b"))
    assert found.value == pytest.approx(1.0)
    assert found.sign == 0
    assert found.text == "+1.00 (of too few cells for an interval)"
    along = over_cells(frame, CELL, granulated(frame, "b", "b", "b", (*CELL, "seed")), groups=3)
    assert (along.value, along.sign) == (1.0, 0)
    assert over_cells(frame, CELL, kendall(frame, "b", "b")).sign == 1
