"""Measures of the pooled matrices of one layer, for `--pooled`: counts and one effective rank."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from localrank_cli.measures.points import count_above
from localrank_cli.measures.table import effective_rank
from localrank_cli.spectrum.pooled import PooledSpectrum
from localrank_cli.spectrum.tolerance import Tolerance, thresholds


@dataclass(frozen=True)
class PooledRanks:
    """Counts at one tolerance."""

    pooled: int  # singular values of E[J]
    active: int  # square roots of the eigenvalues of E[J^T J]
    undecided: int  # of both, closer to the tolerance than their rounding


@dataclass(frozen=True)
class PooledMeasures:
    """The pooled matrices of one layer at one checkpoint."""

    ranks: tuple[PooledRanks, ...]  # one for each tolerance
    active_effective_rank: float


def pooled_measures(
    spectrum: PooledSpectrum | None, tolerances: Sequence[Tolerance]
) -> PooledMeasures | None:
    """Return the measures; None without a point, or where a square leaves the range of a double.

    A relative tolerance refers to the largest value of the matrix itself. Values under their
    rounding are 0: where the Jacobians of the points cancel, the mean is 0 and not noise.
    """
    if spectrum is None or not math.isfinite(spectrum.rounding):
        return None
    n_out, n_columns = spectrum.shape
    counts = torch.zeros(3, len(tolerances), dtype=torch.int64)
    for index, computed in enumerate((spectrum.mean, spectrum.active)):
        values = torch.where(computed > spectrum.rounding, computed, 0).unsqueeze(0)
        tol = thresholds(tolerances, values[:, 0], (n_out, n_columns))
        counts[index] = count_above(values, tol)[0]
        # A relative tolerance is off by as much of the rounding as it is of the largest value.
        slack = [spectrum.rounding * (1 + one.relative(n_out, n_columns)) for one in tolerances]
        if spectrum.rounding > 0:
            near = (computed.unsqueeze(1) - tol).abs() <= tol.new_tensor(slack)
            counts[2] += near.sum(dim=0)
    active = torch.where(spectrum.active > spectrum.rounding, spectrum.active, 0)
    return PooledMeasures(
        ranks=tuple(PooledRanks(*of_one) for of_one in counts.T.tolist()),
        active_effective_rank=float(effective_rank(active.unsqueeze(0), 0.0)),
    )
