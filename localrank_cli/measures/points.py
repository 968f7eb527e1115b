"""All measures of one layer at every point, before they are averaged: what journals keep."""

from collections.abc import Sequence
from dataclasses import dataclass

from localrank_cli.measures.ranks import local_ranks
from localrank_cli.measures.table import MEASURES
from localrank_cli.spectrum.spectra import LayerSpectrum
from localrank_cli.spectrum.tolerance import Tolerance


@dataclass(frozen=True)
class PointRanks:
    """Local rank at one tolerance; one entry for each point that counts."""

    tolerance: Tolerance
    rtol: float  # the number used
    counts: tuple[int, ...]
    near: tuple[bool, ...]
    undecided: tuple[bool, ...]


@dataclass(frozen=True)
class PointMeasures:
    """One layer at one checkpoint, point by point."""

    n_in: int
    n_out: int
    finite: tuple[bool, ...]  # every point: whether it counts
    ranks: tuple[PointRanks, ...]  # one for each tolerance
    soft: dict[str, tuple[float, ...]]  # in the order of the table; points that count


def point_measures(
    spectrum: LayerSpectrum, tolerances: Sequence[Tolerance], noise: float
) -> PointMeasures:
    """Reduces each point's singular values to numbers.

    Args:
        spectrum: Of one layer.
        tolerances: For the local rank.
        noise: s of the Gaussian information.

    Returns:
        The measures at the points with a finite Jacobian, in order.
    """
    good = spectrum.values[spectrum.finite]
    values = {
        name: tuple(one.compute(good, noise).tolist())
        for name, one in MEASURES.items()
        if one.compute is not None
    }
    return PointMeasures(
        n_in=spectrum.n_in,
        n_out=spectrum.n_out,
        finite=tuple(spectrum.finite.tolist()),
        ranks=tuple(_ranks(spectrum, tolerance) for tolerance in tolerances),
        soft=values,
    )


def _ranks(spectrum: LayerSpectrum, tolerance: Tolerance) -> PointRanks:
    ranks = local_ranks(spectrum, tolerance)
    return PointRanks(
        tolerance=tolerance,
        rtol=tolerance.relative(spectrum.n_out, spectrum.n_in),
        counts=tuple(ranks.counts.tolist()),
        near=tuple(ranks.near.tolist()),
        undecided=tuple(ranks.undecided.tolist()),
    )
