"""Local rank: how many singular values exceed a tolerance (Patel & Shwartz-Ziv, 2410.07687)."""

from dataclasses import dataclass

from torch import Tensor

from localrank_cli.spectrum.spectra import LayerSpectrum
from localrank_cli.spectrum.tolerance import Tolerance


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
    slack, first = rounding, values[:, 0]
    if spectrum.scale is not None:
        first = spectrum.scale.values[spectrum.finite]
        off = spectrum.scale.rounding[spectrum.finite].unsqueeze(1)
        # The tolerance itself is off by as much of that rounding as it is of sigma_1.
        slack = rounding + tolerance.relative(spectrum.n_out, spectrum.n_in) * off
    tol = tolerance.threshold(first, spectrum.n_out, spectrum.n_in).unsqueeze(1)
    below = (values > 0.99 * tol).sum(dim=1)
    above = (values > 1.01 * tol).sum(dim=1)
    return Ranks(
        counts=(values > tol).sum(dim=1),
        near=below != above,
        undecided=((values - tol).abs() <= slack).any(dim=1) & (rounding[:, 0] > 0),
    )
