"""Singular values by the float64 SVD, and how far they may be off."""

import torch
from torch import Tensor


def singular_values(jacobians: Tensor) -> Tensor:
    """Singular values in float64, by LAPACK on the CPU.

    Args:
        jacobians: Shape (..., n_out, n_in), finite or not.

    Returns:
        Shape (..., min(n_out, n_in)), float64, CPU, descending; NaN for a matrix that is not
        finite.
    """
    matrices = jacobians.detach().to(device="cpu", dtype=torch.float64)
    # One NaN makes LAPACK refuse the whole stack, and inf gives NaN without a word.
    finite = torch.isfinite(matrices.sum((-2, -1)))[..., None, None]
    if not bool(finite.all()):  # a sum may overflow where no entry is infinite
        finite = torch.isfinite(matrices).all(-1).all(-1)[..., None, None]
    if bool(finite.all()):  # no copy of a matrix that fills the memory
        whole: Tensor = torch.linalg.svdvals(matrices)
        return whole
    values: Tensor = torch.linalg.svdvals(torch.where(finite, matrices, 0))
    return torch.where(finite.squeeze(-1), values, torch.nan)


def rounding(spectral_norm: Tensor, longest: int, precision: torch.dtype) -> Tensor:
    """How far a computed singular value may be from the true one.

    A backward-stable SVD of A gives the singular values of A + E with |E| <= p(m, n) u |A|, and so
    (Weyl) each is off by at most p u sigma_1. LAPACK documents p as a modest function of the
    sizes; the largest error that was measured is 9022 u sigma_1 on a 10 x 150528 matrix, where the
    longest side times machine epsilon (2 u) allows 301056 u sigma_1. It is also the tolerance below
    which numpy and torch call a matrix rank deficient by default. Where the entries of the
    Jacobian themselves were computed in a lower precision, that precision's epsilon counts.

    Args:
        spectral_norm: sigma_1 at each point, any shape, float64.
        longest: max(n_out, n_in).
        precision: The lowest floating-point type on the way.

    Returns:
        The bound, in the shape of `spectral_norm`.
    """
    return spectral_norm * (longest * torch.finfo(precision).eps)
