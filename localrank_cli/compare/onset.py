"""The step from which a measure stays below its first value, and how far it falls."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from localrank_cli.compare.differences import POINTS, check_errors
from localrank_cli.compare.groups import Group, Groups
from localrank_cli.compare.intervals import (
    BOOTSTRAP_FROM,
    Array,
    Intervals,
    holm,
    of_change,
    of_summaries,
)

INTERVAL_FROM = 5  # runs; with fewer, Student's t hangs on their being normally distributed
RANGE = "range over runs"


@dataclass(frozen=True)
class Onset:
    """The fall of a measure in one layer of one group.

    Args:
        over: What the decision rests on: runs, `range over runs`, or `points`.
        first: The mean at the first step.
        last: The mean at the last step.
        step: The onset; None if the measure does not stay below its first value.
        fall: The first value minus the last.
        fall_low: The lower end of the interval of the fall, or of its range over runs; NaN if
            unknown.
        fall_high: The upper end.
        peak: The largest mean of any step.
        peak_step: Its step; None if no step has a value.
    """

    group: str
    layer: str
    n_runs: int
    over: str
    first: float
    last: float
    step: int | None
    fall: float
    fall_low: float
    fall_high: float
    peak: float
    peak_step: int | None


def onsets(groups: Groups, confidence: float, seed: int = 0) -> Iterator[Onset]:
    """Yield the onset of each layer of each group.

    The onset is the first step s such that at every step from s on, the measure is shown to be
    below its value at the first step, for all layers and steps of the group together: by Holm's
    one-sided test of the difference within each run from 5 runs on; with 2 to 4 runs where the
    measure is below in every run; with a single run over its points.
    """
    if len(groups.steps) < 2:
        return
    for group in groups.groups:
        yield from _of_group(group, groups, confidence, seed)


def _of_group(group: Group, groups: Groups, confidence: float, seed: int) -> Iterator[Onset]:
    changes = group.ranks[:, :, 1:] - group.ranks[:, :, :1]
    over, below, cells = _below(group, changes, groups.choice.y, confidence, seed)
    means = group.ranks.mean(0)
    for index, layer in enumerate(groups.layers):
        line, change = means[index], changes[:, index, -1]
        if cells is None:
            low, high = (-change).min(), (-change).max()
        else:
            last = np.ravel_multi_index((index, changes.shape[2] - 1), changes.shape[1:])
            low, high = -cells.high[last], -cells.low[last]
        place = _first_of_rest(below[index])
        known = np.where(np.isnan(line), -np.inf, line)
        has_value = bool(np.isfinite(known).any())
        yield Onset(
            group=group.name,
            layer=layer,
            n_runs=len(group.runs),
            over=over,
            first=float(line[0]),
            last=float(line[-1]),
            step=None if place is None else groups.steps[place + 1],
            fall=float(line[0] - line[-1]),
            fall_low=float(low),
            fall_high=float(high),
            peak=float(known.max()) if has_value else float("nan"),
            peak_step=groups.steps[int(known.argmax())] if has_value else None,
        )


def _below(
    group: Group, changes: Array, y: str, confidence: float, seed: int
) -> tuple[str, np.ndarray, Intervals | None]:
    """Return what decides, where each layer is below its first value, and the intervals if any."""
    n = len(group.runs)
    shape = changes.shape[1:]
    if 1 < n < INTERVAL_FROM:
        return RANGE, np.all(changes < 0, axis=0), None
    if n == 1:
        check_errors(group, y)
        cells = _over_points(group, changes[0], confidence)
        over = POINTS
    else:
        starts = np.broadcast_to(group.ranks[:, :, :1], changes.shape)
        first, later = (part.reshape(n, -1) for part in (starts, group.ranks[:, :, 1:]))
        cells = of_change(first, later, confidence, seed)
        over = "runs, bootstrap" if n >= BOOTSTRAP_FROM else "runs, t"
    with np.errstate(invalid="ignore"):
        below = holm(cells.p_below) <= 1 - confidence
    return over, below.reshape(shape), cells


def _over_points(group: Group, change: Array, confidence: float) -> Intervals:
    errors, points = group.errors[0], group.points[0]
    ends = [np.broadcast_to(part[:, :1], change.shape).ravel() for part in (errors, points)]
    return of_summaries(
        change.ravel(), (errors[:, 1:].ravel(), ends[0]), (points[:, 1:].ravel(), ends[1]),
        confidence,
    )  # fmt: skip


def _first_of_rest(below: np.ndarray) -> int | None:
    """Return the first place from which all that follow are true."""
    if not below[-1]:
        return None
    wrong = np.flatnonzero(~below)
    return int(wrong[-1]) + 1 if len(wrong) else 0
