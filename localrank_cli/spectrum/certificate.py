"""Proof, matrix by matrix, that eigenvalues of the Gram matrix give what the SVD would give.

Let M have shape m x k, r = min(m, k), l = max(m, k), u = 2^-53, and let its singular values be
those of the Jacobian J up to an absolute error e (0 where M is J itself). The Gram matrix of the
shorter side is computed in float64:

    fl(M M^T) = M M^T + E,   |E|_2 <= |E|_F <= l u |M|_F^2 / (1 - l u)      (Higham, eq. 3.13)

whatever the order of summation, and LAPACK's symmetric eigenvalues are those of a matrix within
4 r u lambda_1 of it (backward stability; the largest error measured is 36 u lambda_1 at r = 512).
By Weyl's theorem every computed eigenvalue is within

    delta = 1.01 u (l |M|_F^2 + 4 r lambda_1)

of a squared singular value of M. |M|_F^2 is the trace. A count at tau is certain when no eigenvalue
lies within delta + (tau + e + 2 s)^2 - tau^2 of tau^2, where s is how far the SVD's own singular
values may be off: then the true sigma is further than 2 s from tau, the SVD finds the same count,
and finds it decided. A naive n u lambda_1 is wrong: the error grows with the long side.

Sums over singular values (effective rank, Gaussian information) feel the errors d_i of all
eigenvalues, |d sigma_i| <= min(sqrt(2 delta), |d_i| / sigma_i). No d_i exceeds delta, and together
they do not exceed the Frobenius norm of the errors (Hoffman and Wielandt):

    sqrt(sum d_i^2) <= delta_F = 1.01 u (l |M|_F^2 + 4 r sqrt(r) lambda_1),

so that a sum of w_i |d_i| stays under |w| delta_F, up to sqrt(r) times less than delta sum w_i.
Where a sum could move in the sixth digit, the SVD takes over too.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from localrank_cli.spectrum.svd import rounding

_U = 2.0**-53
Sided = Tensor | int

# Of the effective rank, by the certificate; two routes then differ by less than 1e-6.
_SOFT = 2.5e-7
# Below this sum of squares, squares of small entries have left the range of a double.
_LEAST = 1e-140


@dataclass(frozen=True)
class Shape:
    """Of a Jacobian and of the matrix that stands for it."""

    n_out: int
    n_in: int
    long_side: int  # of the matrix
    short_side: int  # of the matrix

    @property
    def longest(self) -> int:
        """max(n_out, n_in)."""
        return max(self.n_out, self.n_in)

    @property
    def width(self) -> int:
        """min(n_out, n_in): how many singular values the Jacobian has."""
        return min(self.n_out, self.n_in)


@dataclass(frozen=True)
class _Deltas:
    """Bounds on the errors of eigenvalues, shape (points,)."""

    each: Tensor  # on the largest
    together: Tensor  # on the root of the sum of their squares


def squared_error(trace: Tensor, first: Tensor, long_side: Sided, short_side: Sided) -> Tensor:
    """Computes delta.

    Args:
        trace: |M|_F^2, any shape, float64.
        first: lambda_1, the same shape.
        long_side: Of M; one, or the same shape.
        short_side: Of M; one, or the same shape.

    Returns:
        The same shape.
    """
    return 1.01 * _U * (long_side * trace + 4 * short_side * first)


def certified(
    eigenvalues: Tensor,
    errors: Tensor,
    shapes: list[Shape],
    thresholds: Tensor,
    noise: float,
    leading: int | None = None,
) -> Tensor:
    """Tells which matrices' eigenvalues serve as they are.

    Args:
        eigenvalues: Of the Gram matrices, shape (points, width), float64, descending, zeros behind.
        errors: e of each matrix, shape (points,).
        shapes: Of each matrix.
        thresholds: Values of tau at which counts are wanted, shape (points, tolerances).
        noise: s of the Gaussian information.
        leading: How many are to serve, the rest being known by other means; None: all.

    Returns:
        Shape (points,), bool.
    """
    shape = shapes[0]
    trace = eigenvalues.clamp(min=0).sum(dim=1)
    first = eigenvalues[:, 0].clamp(min=0)
    long_sides = torch.tensor([s.long_side for s in shapes], dtype=torch.float64, device="cpu")
    short_sides = torch.tensor([s.short_side for s in shapes], dtype=torch.float64, device="cpu")
    delta = squared_error(trace, first, long_sides, short_sides)
    together = squared_error(trace, first, long_sides, short_sides**1.5)
    norm = first.sqrt()
    # The SVD's threshold rtol * sigma_1 has its own sigma_1: 2 s and delta / sigma_1 more.
    svd = 4 * rounding(norm, shape.longest, torch.float64) + delta / norm.clamp(min=1e-300)
    eigenvalues = eigenvalues[:, :leading]
    return (
        _counts_hold(eigenvalues, delta, errors + svd, thresholds)
        & _sums_hold(eigenvalues, _Deltas(delta, together), short_sides, noise)
        & (trace > _LEAST)
    )


def _counts_hold(eigenvalues: Tensor, delta: Tensor, error: Tensor, thresholds: Tensor) -> Tensor:
    margin = delta.unsqueeze(1) + (2 * thresholds + error.unsqueeze(1)) * error.unsqueeze(1)
    # tau^2 itself is rounded.
    margin += 4 * _U * thresholds.square()
    held = torch.ones(eigenvalues.shape[0], dtype=torch.bool, device="cpu")
    for column in range(thresholds.shape[1]):
        distance = (eigenvalues - thresholds[:, column : column + 1].square()).abs()
        held &= (distance > margin[:, column : column + 1]).all(dim=1)
    return held


def _sums_hold(eigenvalues: Tensor, deltas: _Deltas, ranks: Tensor, noise: float) -> Tensor:
    """Bounds what errors of eigenvalues do to the effective rank and the Gaussian information."""
    # For q = sigma / S, |d H| <= sum |d sigma| / S (|log q| + H), which is the relative error of
    # exp(H). Zeros behind a matrix's own eigenvalues are zeros by its shape, and exact.
    own = torch.arange(eigenvalues.shape[1], device="cpu") < ranks.unsqueeze(1)
    delta = deltas.each.unsqueeze(1)
    powers = eigenvalues.clamp(min=0)
    values = torch.maximum(powers, delta).sqrt()
    total = powers.sqrt().sum(dim=1, keepdim=True).clamp(min=1e-150)
    shares = values / total
    logs = shares.log().abs()
    entropy = torch.where(own, shares * logs, 0).sum(dim=1, keepdim=True)
    weights = torch.where(own, (logs + entropy) / total, 0)
    # Where delta says nothing about a value, sqrt(2 delta) bounds its error.
    lost = own & (powers <= 2 * delta)
    steps = torch.where(lost, weights * (2 * delta).sqrt(), 0).sum(dim=1)
    slopes = torch.where(lost, 0, weights / values).square().sum(dim=1).sqrt()
    information = torch.log1p(powers / noise**2).sum(dim=1)
    slips = torch.where(own, 1 / (noise**2 + powers), 0).square().sum(dim=1).sqrt()
    return (steps + slopes * deltas.together <= _SOFT) & (
        slips * deltas.together <= _SOFT * information
    )
