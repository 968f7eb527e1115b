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
lies within delta + (tau + e + 2 s)^2 - tau^2 of tau^2, where s bounds the errors of the SVD's own
singular values: then the true sigma is further than 2 s from tau, and the SVD gives the same count
and reports it as decided. A naive n u lambda_1 is wrong: the error grows with the long side.

Sums over singular values (effective rank, Gaussian information) depend on the errors d_i of all
eigenvalues, |d sigma_i| <= min(sqrt(2 delta), |d_i| / sigma_i). No d_i exceeds delta, and together
they do not exceed the Frobenius norm of the errors (Hoffman and Wielandt):

    sqrt(sum d_i^2) <= delta_F = 1.01 u (l |M|_F^2 + 4 r sqrt(r) lambda_1),

so that a sum of w_i |d_i| stays under |w| delta_F, up to sqrt(r) times less than delta sum w_i.
Each measure turns these two into its own bound (`localrank_cli.measures.table`); where one could
change in the sixth digit, the SVD is used as well.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from localrank_cli.spectrum.svd import rounding

_U = 2.0**-53  # unit roundoff of float64
Sided = Tensor | int

# The largest relative error of a measure; two routes then differ by less than 1e-6.
_MAX_MEASURE_ERROR = 2.5e-7
# Below this sum of squares, squares of small entries have left the range of a double.
_MIN_TRACE = 1e-140


@dataclass(frozen=True)
class Shape:
    """The shape of a Jacobian, and of the matrix M that replaces it."""

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
class Doubt:
    """Eigenvalues of Gram matrices, and bounds on their errors."""

    powers: Tensor  # (points, width), float64, >= 0: computed squares of singular values
    own: Tensor  # (points, width), bool: false for the zeros behind, which are exact
    each: Tensor  # (points,): bound on each error
    together: Tensor  # (points,): bound on the root of the sum of all squared errors


# The largest relative error of a measure at each point, shape (points,).
Bound = Callable[[Doubt], Tensor]


def squared_error(trace: Tensor, first: Tensor, long_side: Sided, short_side: Sided) -> Tensor:
    """Return delta, in the shape of `trace` (|M|_F^2) and `first` (lambda_1)."""
    return 1.01 * _U * (long_side * trace + 4 * short_side * first)


def certify(
    eigenvalues: Tensor,
    errors: Tensor,
    shapes: list[Shape],
    thresholds: Tensor,
    bounds: Sequence[Bound],
    leading: int | None = None,
) -> Tensor:
    """Return which matrices' eigenvalues can be used as they are, shape (points,), bool.

    Args:
        eigenvalues: Of the Gram matrices, shape (points, width), float64, descending, zeros behind.
        errors: e of each matrix, shape (points,).
        shapes: Of each matrix.
        thresholds: Values of tau at which counts are wanted, shape (points, tolerances).
        bounds: Of the measures that are wanted.
        leading: How many must be certain, if the others are computed in another way; None: all.
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
    own = torch.arange(eigenvalues.shape[1], device="cpu") < short_sides.unsqueeze(1)
    doubt = Doubt(eigenvalues.clamp(min=0), own, delta, together)
    held = _counts_hold(eigenvalues, delta, errors + svd, thresholds) & (trace > _MIN_TRACE)
    for bound in bounds:
        held &= bound(doubt) <= _MAX_MEASURE_ERROR
    return held


def _counts_hold(eigenvalues: Tensor, delta: Tensor, error: Tensor, thresholds: Tensor) -> Tensor:
    margin = delta.unsqueeze(1) + (2 * thresholds + error.unsqueeze(1)) * error.unsqueeze(1)
    # tau^2 itself is rounded.
    margin += 4 * _U * thresholds.square()
    held = torch.ones(eigenvalues.shape[0], dtype=torch.bool, device="cpu")
    for column in range(thresholds.shape[1]):
        distance = (eigenvalues - thresholds[:, column : column + 1].square()).abs()
        held &= (distance > margin[:, column : column + 1]).all(dim=1)
    return held
