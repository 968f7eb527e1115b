"""Local rank: how many singular values exceed a tolerance (Patel & Shwartz-Ziv, 2410.07687)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from localrank_cli.spectrum.spectra import LayerSpectrum
from localrank_cli.spectrum.tolerance import Tolerance, thresholds


@dataclass(frozen=True)
class Ranks:
    """Counts at one tolerance, point by point."""

    counts: Tensor  # (points,), int64: #{i: sigma_i > tol}
    near: Tensor  # (points,), bool: the counts at 0.99 tol and at 1.01 tol differ
    undecided: Tensor  # (points,), bool: a sigma is closer to tol than its rounding


def local_ranks(spectrum: LayerSpectrum, tolerance: Tolerance) -> Ranks:
    """Counts singular values strictly above tol = max(atol, rtol * sigma_1).

    sigma_1 is the spectrum's own, or its scale. The rule is that of torch.linalg.matrix_rank and of
    the paper's own code.

    Args:
        spectrum: Of one layer; only its finite points are counted.
        tolerance: The rule for tol.

    Returns:
        The counts at the finite points, in order.
    """
    values = spectrum.computed[spectrum.finite]
    rounding = spectrum.rounding[spectrum.finite].unsqueeze(1)
    slack = rounding
    if spectrum.scale is not None:
        off = spectrum.scale.rounding[spectrum.finite].unsqueeze(1)
        # The tolerance itself is off by as much of that rounding as it is of sigma_1.
        slack = rounding + tolerance.relative(spectrum.n_out, spectrum.n_in) * off
    tol = _thresholds(spectrum, [tolerance])
    return Ranks(
        counts=_above(values, tol).squeeze(1),
        near=(_above(values, 0.99 * tol) != _above(values, 1.01 * tol)).squeeze(1),
        undecided=((values - tol).abs() <= slack).any(dim=1) & (rounding[:, 0] > 0),
    )


def mean_ranks(spectrum: LayerSpectrum, tolerances: Sequence[Tolerance]) -> Tensor:
    """Average the counts of `local_ranks` over the finite points, at many tolerances at once.

    Args:
        spectrum: Of one layer, with at least one finite point.
        tolerances: Any number.

    Returns:
        Shape (tolerances,), float64: as `average` gives them, since sums of counts are exact.
    """
    counts = _above(spectrum.computed[spectrum.finite], _thresholds(spectrum, tolerances))
    return counts.sum(dim=0).double() / counts.shape[0]


def _thresholds(spectrum: LayerSpectrum, tolerances: Sequence[Tolerance]) -> Tensor:
    """Return tol at each finite point for each tolerance; shape (points, tolerances)."""
    first = spectrum.computed[:, 0] if spectrum.scale is None else spectrum.scale.values
    return thresholds(tolerances, first[spectrum.finite], (spectrum.n_out, spectrum.n_in))


def _above(values: Tensor, tol: Tensor) -> Tensor:
    """Count the values of each point that are strictly above each tol, as `tol` is shaped."""
    ordered = values.sort(dim=1).values
    return ordered.shape[1] - torch.searchsorted(ordered, tol, right=True)
