"""All measures of one layer at one checkpoint, averaged over the points."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from localrank_cli.measures import soft
from localrank_cli.measures.average import Average, average
from localrank_cli.measures.ranks import local_ranks
from localrank_cli.spectrum.spectra import LayerSpectrum
from localrank_cli.spectrum.tolerance import Tolerance

SOFT_MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    "effective_rank": soft.effective_rank,
    "stable_rank": soft.stable_rank,
    "participation_ratio": soft.participation_ratio,
    "spectral_norm": soft.spectral_norm,
    "jacobian_norm": soft.jacobian_norm,
}


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
    good = spectrum.values[spectrum.finite]
    measures = {name: average(formula(good).tolist()) for name, formula in SOFT_MEASURES.items()}
    information = soft.gaussian_information(good, noise)
    measures["gaussian_information"] = average(information.tolist())
    return LayerMeasures(
        n_points=good.shape[0],
        n_failed=spectrum.values.shape[0] - good.shape[0],
        ranks=tuple(_summary(spectrum, tolerance) for tolerance in tolerances),
        soft=measures,
    )


def _summary(spectrum: LayerSpectrum, tolerance: Tolerance) -> RankSummary:
    ranks = local_ranks(spectrum, tolerance)
    counts = ranks.counts.tolist()
    return RankSummary(
        tolerance=tolerance,
        rtol=tolerance.relative(spectrum.n_out, spectrum.n_in),
        local_rank=average(counts),
        rank_min=min(counts, default=None),
        rank_max=max(counts, default=None),
        near_tol=average(ranks.near.double().tolist()).mean,
        n_undecided=int(ranks.undecided.sum()),
    )
