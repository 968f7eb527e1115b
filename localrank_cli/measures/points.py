"""All measures of one layer at every point, which journals keep, before they are averaged.

Local rank counts singular values above a tolerance (Patel & Shwartz-Ziv, 2410.07687).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from localrank_cli.intervals.evidence import Evidence
from localrank_cli.measures.table import AVERAGED, MEASURES
from localrank_cli.spectrum.layer import LayerSpectrum
from localrank_cli.spectrum.tolerance import Tolerance, thresholds


@dataclass(frozen=True)
class Ranks:
    """Counts at one tolerance, point by point."""

    counts: Tensor  # (points,), int64: #{i: sigma_i > tol}
    near: Tensor  # (points,), bool: the counts on both sides of tol differ
    undecided: Tensor  # (points,), bool: a sigma is closer to tol than its rounding


def count_above(values: Tensor, bounds: Tensor) -> Tensor:
    """Return how many singular values are strictly above each bound: all ranks are counted here.

    The values have shape (points, r), float64, finite; the bounds (points, any number), float64,
    and the result the same shape, int64.
    """
    columns = [(values > one.unsqueeze(1)).sum(dim=1) for one in bounds.unbind(dim=1)]
    return torch.stack(columns, dim=1)


def local_ranks(spectrum: LayerSpectrum, tolerance: Tolerance) -> Ranks:
    """Return the counts at the finite points of singular values > tol = max(atol, rtol * sigma_1).

    sigma_1 is the spectrum's own, or its scale. The rule is that of torch.linalg.matrix_rank and of
    the paper's own code.
    """
    values = spectrum.computed[spectrum.finite]
    rounding = spectrum.rounding[spectrum.finite].unsqueeze(1)
    slack = rounding
    if spectrum.scale is not None:
        off = spectrum.scale.rounding[spectrum.finite].unsqueeze(1)
        # The tolerance itself is off by as much of that rounding as it is of sigma_1.
        slack = rounding + tolerance.relative(spectrum.n_out, spectrum.n_in) * off
    tol = _thresholds(spectrum, [tolerance])
    bounds = tol * tol.new_tensor(tolerance.COUNTED_AT)
    counts, below, above = count_above(values, bounds).unbind(1)
    return Ranks(
        counts=counts,
        near=below != above,
        undecided=((values - tol).abs() <= slack).any(dim=1) & (rounding[:, 0] > 0),
    )


def mean_ranks(spectrum: LayerSpectrum, tolerances: Sequence[Tolerance]) -> Tensor:
    """Return the counts of `local_ranks`, averaged over the finite points: (tolerances,), float64.

    There must be a finite point. The means are those of `average`, since sums of counts are exact.
    """
    counts = count_above(spectrum.computed[spectrum.finite], _thresholds(spectrum, tolerances))
    return counts.sum(dim=0).double() / counts.shape[0]


def _thresholds(spectrum: LayerSpectrum, tolerances: Sequence[Tolerance]) -> Tensor:
    """Return tol at each finite point for each tolerance; shape (points, tolerances)."""
    first = spectrum.computed[:, 0] if spectrum.scale is None else spectrum.scale.values
    return thresholds(tolerances, first[spectrum.finite], (spectrum.n_out, spectrum.n_in))


@dataclass(frozen=True)
class PointRanks:
    """Local rank at one tolerance, with one entry for each position of each point that counts."""

    tolerance: Tolerance
    rtol: float  # the number used
    counts: tuple[int, ...]  # of each position of each point
    near: tuple[bool, ...]
    undecided: tuple[bool, ...]


@dataclass(frozen=True)
class PointMeasures:
    """One layer at one checkpoint, point by point."""

    n_in: int
    n_out: int
    finite: tuple[bool, ...]  # every point: whether it counts
    ranks: tuple[PointRanks, ...]  # one for each tolerance
    soft: dict[str, tuple[float, ...]]  # in the order of the table; as in `PointRanks`
    n_positions: int = 1  # Jacobians of each point
    evidence: Evidence | None = None  # of intervals, in place of counts


def point_measures(
    spectrum: LayerSpectrum,
    tolerances: Sequence[Tolerance],
    noise: float,
    names: Sequence[str] = AVERAGED,
) -> PointMeasures:
    """Return the named measures at the points with a finite Jacobian, in order.

    `noise` is s of the Gaussian information.
    """
    good = spectrum.values[spectrum.finite]
    formulas = {name: MEASURES[name].compute for name in names}
    values = {
        name: tuple(compute(good, noise).tolist())
        for name, compute in formulas.items()
        if compute is not None
    }
    return PointMeasures(
        n_in=spectrum.n_in,
        n_out=spectrum.n_out,
        # All positions of a point count, or none.
        finite=tuple(spectrum.finite[:: spectrum.n_positions].tolist()),
        ranks=tuple(_ranks(spectrum, tolerance) for tolerance in tolerances),
        soft=values,
        n_positions=spectrum.n_positions,
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
