"""All measures of one layer at one checkpoint, averaged over the points."""

from collections.abc import Sequence
from dataclasses import dataclass

from localrank_cli.measures.average import Average, average
from localrank_cli.measures.points import PointMeasures, PointRanks, point_measures
from localrank_cli.spectrum.spectra import LayerSpectrum
from localrank_cli.spectrum.tolerance import Tolerance


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
    """Averages over the points.

    Args:
        points: From one run, or put together from several.

    Returns:
        The measures over the points with a finite Jacobian.
    """
    n_points = sum(points.finite)
    return LayerMeasures(
        n_points=n_points,
        n_failed=len(points.finite) - n_points,
        ranks=tuple(_summary(ranks) for ranks in points.ranks),
        soft={name: average(values) for name, values in points.soft.items()},
    )


def measure(
    spectrum: LayerSpectrum, tolerances: Sequence[Tolerance], noise: float
) -> LayerMeasures:
    """Reduces a spectrum to measures.

    Args:
        spectrum: Of one layer.
        tolerances: For the local rank.
        noise: s of the Gaussian information.

    Returns:
        The measures over the points with a finite Jacobian.
    """
    return reduce_points(point_measures(spectrum, tolerances, noise))


def _summary(ranks: PointRanks) -> RankSummary:
    return RankSummary(
        tolerance=ranks.tolerance,
        rtol=ranks.rtol,
        local_rank=average(ranks.counts),
        rank_min=min(ranks.counts, default=None),
        rank_max=max(ranks.counts, default=None),
        near_tol=average([float(near) for near in ranks.near]).mean,
        n_undecided=sum(ranks.undecided),
    )
