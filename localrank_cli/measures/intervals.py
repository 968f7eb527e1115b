"""The contents of an interval row: bounds on the mean rank, and estimated measures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from localrank_cli.intervals.evidence import Evidence, PointEvidence
from localrank_cli.intervals.layer import LayerEvidence
from localrank_cli.measures.points import PointMeasures, PointRanks
from localrank_cli.measures.table import ESTIMATED
from localrank_cli.spectrum.tolerance import Tolerance


@dataclass(frozen=True)
class IntervalSummary:
    """The interval of a row, and what it took."""

    low: float
    high: float
    certain_low: float
    confidence: float
    sigma_low: float  # bounds of the mean of sigma_1
    sigma_high: float | None  # None without a relative tolerance
    n_products: int

    @property
    def failed(self) -> bool:
        """Whether the bounds contradict each other."""
        return self.low > self.high


def interval_measures(found: LayerEvidence, tolerances: Sequence[Tolerance]) -> PointMeasures:
    """Return what is known of a layer at every point, with the evidence in place of counts."""
    points = found.evidence.points
    return PointMeasures(
        n_in=found.n_in,
        n_out=found.n_out,
        finite=found.finite,
        ranks=tuple(
            PointRanks(
                tolerance,
                tolerance.relative(found.n_out, found.n_in),
                counts=(),
                near=(),
                undecided=tuple(point.levels[row].undecided for point in points),
            )
            for row, tolerance in enumerate(tolerances)
        ),
        soft={name: tuple(_estimate(point, name) for point in points) for name in ESTIMATED},
        evidence=found.evidence,
    )


def _estimate(point: PointEvidence, name: str) -> float:
    if name == "stable_rank":
        return (point.norm / point.sigma_low) ** 2 if point.sigma_low > 0 else 0.0
    if name == "participation_ratio":
        return point.participation
    return point.norm if name == "jacobian_norm" else point.information


def root_mean_square(values: Sequence[float]) -> float | None:
    """Return the norm whose square is the mean of squares, which probes estimate without a bias.

    A mean of roots, as for exact norms, would be too small.
    """
    if not values:
        return None
    largest = max(values)
    if largest == 0:
        return 0.0
    return largest * math.sqrt(math.fsum((v / largest) ** 2 for v in values) / len(values))


def interval_summaries(
    evidence: Evidence, tolerances: Sequence[Tolerance]
) -> list[IntervalSummary | None]:
    """Return the interval at each tolerance; None where no point counts."""
    points, found = evidence.points, list[IntervalSummary | None]()
    for row, tolerance in enumerate(tolerances):
        one = evidence.interval(row, relative=tolerance.rtol != 0)
        if one is None:
            found.append(None)
            continue
        highs = [point.sigma_high for point in points if point.sigma_high is not None]
        found.append(
            IntervalSummary(
                one.low,
                one.high,
                one.certain_low,
                1 - evidence.delta,
                math.fsum(point.sigma_low for point in points) / len(points),
                math.fsum(highs) / len(points) if len(highs) == len(points) else None,
                sum(point.n_products for point in points),
            )
        )
    return found
