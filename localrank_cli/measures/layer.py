"""All measures of one layer at one checkpoint, as means over points.

`average` is the one place where values are reduced, for single runs and merges alike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from localrank_cli.measures.points import PointMeasures, PointRanks, point_measures
from localrank_cli.spectrum.layer import LayerSpectrum
from localrank_cli.spectrum.tolerance import Tolerance
from localrank_cli.threads import one_thread


@dataclass(frozen=True)
class Average:
    """A mean over points with its standard error."""

    mean: float | None  # None without points
    error: float | None  # sample standard deviation / sqrt(n); None under 2 points


def average(values: Sequence[float]) -> Average:
    """Return the mean and standard error of per-point values, in the order of the point indices.

    They are summed exactly (`math.fsum`), so that the result does not depend on how the points were
    divided.
    """
    count = len(values)
    if count == 0:
        return Average(None, None)
    if count > 1 and min(values) == max(values):
        return Average(float(values[0]), 0.0)  # a quotient of sums may miss this value by an ulp
    # Sums of values near the largest double would overflow; a power of two changes no digit.
    scale = 2.0**64 if max(map(abs, values)) > 1e300 else 1.0
    mean = math.fsum(value / scale for value in values) / count * scale
    if count < 2:
        return Average(mean, None)
    deviations = [value - mean for value in values]
    largest = max(map(abs, deviations))
    if largest == 0:
        return Average(mean, 0.0)
    variance = math.fsum((d / largest) * (d / largest) for d in deviations) / (count - 1)
    return Average(mean, largest * math.sqrt(variance / count))


@dataclass(frozen=True)
class RankSummary:
    """Local rank at one tolerance."""

    tolerance: Tolerance
    rtol: float  # the number used
    local_rank: Average
    rank_min: int | None
    rank_max: int | None
    near_tol: float | None
    n_undecided: int


@dataclass(frozen=True)
class LayerMeasures:
    """One layer at one checkpoint."""

    n_points: int
    n_failed: int
    ranks: tuple[RankSummary, ...]  # one for each tolerance
    soft: dict[str, Average]  # in the order of the table


def reduce_points(points: PointMeasures) -> LayerMeasures:
    """Return the measures over the points with a finite Jacobian, from one run or several."""
    n_points = sum(points.finite)
    return LayerMeasures(
        n_points=n_points,
        n_failed=len(points.finite) - n_points,
        ranks=tuple(_summary(ranks, points.n_positions) for ranks in points.ranks),
        soft={
            name: _over_points(values, points.n_positions) for name, values in points.soft.items()
        },
    )


@one_thread()  # a few numbers for each value
def measure(
    spectrum: LayerSpectrum, tolerances: Sequence[Tolerance], noise: float
) -> LayerMeasures:
    """Return the measures of a spectrum; `noise` is s of the Gaussian information."""
    return reduce_points(point_measures(spectrum, tolerances, noise))


def _over_points(values: Sequence[float], n_positions: int) -> Average:
    """Return the average over points of the means over each point's positions.

    Positions of one point are not independent, so that the error is over points.
    """
    if n_positions == 1:
        return average(values)
    means = []
    for start in range(0, len(values), n_positions):
        mean = average(values[start : start + n_positions]).mean
        means.append(0.0 if mean is None else mean)
    return average(means)


def _summary(ranks: PointRanks, n_positions: int) -> RankSummary:
    return RankSummary(
        tolerance=ranks.tolerance,
        rtol=ranks.rtol,
        local_rank=_over_points(ranks.counts, n_positions),
        rank_min=min(ranks.counts, default=None),
        rank_max=max(ranks.counts, default=None),
        near_tol=average([float(near) for near in ranks.near]).mean,
        n_undecided=sum(ranks.undecided),
    )
