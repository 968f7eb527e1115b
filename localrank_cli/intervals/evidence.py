"""What products say about a point, and the interval that the points make together.

The interval of a row is formed from this evidence alone, so that points computed apart give the
same interval as together.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from localrank_cli.intervals.beta import largest_count, smallest_count

# Shares of delta: for sigma_1, for the counts of the first probes, and of those on a complement.
_RELATIVE, _ABSOLUTE = (0.1, 0.45, 0.45), (0.0, 0.5, 0.5)
# Probes on the complement of a basis, at each point.
FRESH = 2


@dataclass(frozen=True)
class Level:
    """The evidence about one tolerance at one point."""

    low: float  # bounds of the share of the first probes above the tolerance, rounded outward
    high: float
    certain: int  # singular values that are above the tolerance with certainty
    undecided: bool  # whether one was found within rounding of the tolerance
    bound: int  # what the rank cannot exceed
    # Directions split off, and of the fresh probes |y|^2 on the complement and their share above
    # the tolerance at most; None where nothing was split off.
    deflated: int | None = None
    fresh_square: float = 0.0
    fresh_high: float = 1.0


@dataclass(frozen=True)
class PointEvidence:
    """The evidence about one point."""

    size: int  # d, the smaller side of the Jacobian
    square: float  # |x|^2 of the first probes
    sigma_low: float
    sigma_high: float | None  # None without a relative tolerance: no part of delta is for it
    n_products: int
    levels: tuple[Level, ...]  # of each tolerance
    # Estimates by the first probes: |J|_F, (tr A)^2 / tr A^2, and the Gaussian information.
    norm: float
    participation: float
    information: float


@dataclass(frozen=True)
class Evidence:
    """The evidence about a layer, at the points that count."""

    probes: int  # first probes at each point, fixed for all points of the checkpoint
    delta: float  # 1 - confidence
    points: tuple[PointEvidence, ...]

    def interval(self, row: int, *, relative: bool) -> "Interval | None":
        """Return the interval at the tolerance number `row`; None without points."""
        if not self.points:
            return None
        return interval(self.points, row, self.delta, self.probes, relative=relative)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return asdict(self)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Evidence":
        """Return the evidence that `to_json` described."""
        points = (
            PointEvidence(**(point | {"levels": tuple(Level(**one) for one in point["levels"])}))
            for point in saved["points"]
        )
        return cls(saved["probes"], saved["delta"], tuple(points))


@dataclass(frozen=True)
class Interval:
    """Bounds of the mean rank over points, at one tolerance."""

    low: float
    high: float
    certain_low: float

    @property
    def failed(self) -> bool:
        """Whether the bounds contradict each other, which happens about as often as delta."""
        return self.low > self.high


def shares(delta: float, *, relative: bool) -> tuple[float, float, float]:
    """Return the parts of delta: for sigma_1, for either end by the first probes, by fresh ones."""
    parts = _RELATIVE if relative else _ABSOLUTE
    return delta * parts[0], delta * parts[1] / 2, delta * parts[2] / 2


def probes_of(n_points: int) -> int:
    """Return how many first probes each point has: one for a mean, two for a single point."""
    return 1 if n_points > 1 else 2


def interval(
    points: Sequence[PointEvidence], row: int, delta: float, probes: int, *, relative: bool
) -> Interval:
    """Return the interval of the mean over points at the tolerance number `row`.

    It holds with probability 1 - delta. `probes` is how many first probes each point had, which
    was fixed before the first product.
    """
    levels = [point.levels[row] for point in points]
    _, first, fresh = shares(delta, relative=relative)
    sizes = [point.size for point in points]
    certain = sum(level.certain for level in levels)
    total = sum(sizes)
    squares = [point.square for point in points]
    low_share = _mean([level.low for level in levels], squares)
    high_share = _mean([level.high for level in levels], squares)
    low = max(certain, smallest_count(low_share, first, probes, total))
    high = min(
        sum(level.bound for level in levels), largest_count(high_share, first, probes, total)
    )
    deflated = [level.deflated for level in levels if level.deflated is not None]
    if len(deflated) == len(levels):  # else not every point has fresh probes
        kept = sum(deflated)
        share = _mean(
            [level.fresh_high for level in levels], [level.fresh_square for level in levels]
        )
        high = min(high, kept + largest_count(share, fresh, FRESH, total - kept))
    count = len(points)
    return Interval(low / count, high / count, certain / count)


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    total = math.fsum(weights)
    if total == 0:
        return 0.0
    if min(values) == max(values):
        return values[0]
    return math.fsum(v * w for v, w in zip(values, weights, strict=True)) / total
