"""The onset of a fall: planted ones, and how often one is found where there is none."""

import math

import numpy as np
import pytest

from localrank_cli.compare import intervals
from localrank_cli.compare.groups import Choice, Group, Groups
from localrank_cli.compare.intervals import Array
from localrank_cli.compare.onset import Onset, onsets

STEPS = (0, 1, 2, 4, 8, 16)


def groups_of(ranks: Array, errors: float = math.nan) -> Groups:
    """Runs of one group; shape (runs, layers, steps)."""
    group = Group(
        "g",
        tuple(f"r{index}" for index in range(len(ranks))),
        (),
        ranks,
        np.full(ranks.shape, errors),
        np.full(ranks.shape, 64.0),
    )
    layers = tuple(f"layer{index}" for index in range(ranks.shape[1]))
    return Groups((group,), layers, STEPS, Choice(), "atol=0.01", ())


def found(ranks: Array, errors: float = math.nan) -> list[Onset]:
    return list(onsets(groups_of(ranks, errors), 0.95))


def course(*values: float) -> Array:
    return np.array([[values]], dtype=float)


def test_the_peak_is_reported_and_is_never_the_reference() -> None:
    # 70 at the peak; below the first 50 only from step 8 on.
    noise = np.arange(3)[:, None, None] * np.array([0, 0.5, -0.5, 1, 0, -1])
    (one,) = found(course(50, 70, 60, 55, 45, 40) + noise)
    assert (one.step, one.peak, one.peak_step) == (8, 70.5, 1)
    assert (one.fall, one.fall_low, one.fall_high) == (11.0, 10.0, 12.0)
    assert one.over == "range over runs"


def test_a_run_that_comes_back_has_no_onset_before_its_return() -> None:
    ranks = np.repeat(course(50, 40, 40, 51, 40, 40), 3, axis=0)
    assert found(ranks)[0].step == 8
    assert found(np.repeat(course(50, 40, 40, 40, 40, 50), 3, axis=0))[0].step is None


def test_with_few_runs_every_one_must_have_fallen() -> None:
    ranks = np.repeat(course(50, 49, 48, 47, 46, 45), 4, axis=0)
    assert found(ranks)[0].step == 1
    ranks[2, 0, :4] = 50
    assert found(ranks)[0].step == 8


def test_a_single_run_is_judged_over_its_points() -> None:
    (one,) = found(course(50, 49, 40, 40, 40, 40), errors=1.0)
    # 49 is less than a standard error of the difference, 1.4, below.
    assert (one.step, one.over) == (2, "points")
    assert one.fall_low == pytest.approx(10 - 1.978971 * math.sqrt(2), rel=1e-6)


def test_missing_values_show_no_fall() -> None:
    ranks = np.repeat(course(50, 40, math.nan, 40, 40, 40), 3, axis=0)
    assert found(ranks)[0].step == 4
    (nothing,) = found(np.full((3, 1, 6), np.nan))
    assert (nothing.step, nothing.peak_step) == (None, None)


@pytest.mark.parametrize(
    ("runs", "sets"),
    [
        *((5, 300), (8, 300), (10, 60)),
        *(pytest.param(runs, 1000, marks=pytest.mark.long) for runs in (5, 8, 10)),
    ],
)
def test_an_onset_is_rarely_found_before_the_fall_begins(
    runs: int, sets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of sets with a fall from step 4 on, in two layers of three; by chance at most 5 %."""
    monkeypatch.setattr(intervals, "_FEWEST_RESAMPLES", 1000)  # the least that the cells need
    random = np.random.default_rng(runs)
    means = np.array([[0, 0, 0, -6, -6, -6]] * 2 + [[0] * 6], dtype=float)
    early, late = 0, 0
    for _ in range(sets):
        steps = [one.step for one in found(means + random.normal(0, 1, (runs, *means.shape)))]
        early += any(step is not None and step < 4 for step in steps[:2]) or steps[2] is not None
        late += steps[:2] == [4, 4]
    assert early / sets <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / sets)
    # A fall of 6 in values that differ by sqrt(2) is found, from 8 runs on nearly always.
    assert late / sets >= (0.3 if runs == 5 else 0.9)


def test_one_step_has_no_onset() -> None:
    groups = groups_of(np.ones((3, 1, 6)))
    one = Groups(groups.groups, groups.layers, (0,), groups.choice, "", ())
    assert list(onsets(one, 0.95)) == []
