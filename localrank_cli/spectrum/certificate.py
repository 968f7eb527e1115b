"""Proof, matrix by matrix, that eigenvalues of the Gram matrix give what the SVD would give.

Let M have shape m x k, r = min(m, k), l = max(m, k), u = 2^-53, and let its singular values be
those of the Jacobian J up to an absolute error e (0 where M is J itself). The Gram matrix of the
shorter side is computed in float64:

    fl(M M^T) = M M^T + E,   |E|_2 <= |E|_F <= l u |M|_F^2 / (1 - l u)      (Higham, eq. 3.13)

whatever the order of summation, and LAPACK's symmetric eigenvalues are those of a matrix G + E',
G being the computed one, with

    |E'|_2 <= 4 (r + 10) u lambda_1,    |E'|_F <= 4 (r + 10) u |lambda|.

(Backward stability: each of r reflections, and each rotation, adds a few u |G|_F at most. The
largest errors measured are 24 u lambda_1 and 18 u |lambda| at r = 5, 68 and 25 at r = 512, 100 and
37 at r = 1024; measured in float32, whose solver is the same, against float64.) By Weyl's theorem
every computed eigenvalue is within

    delta = 1.01 u (l |M|_F^2 + 4 (r + 10) lambda_1)

of a squared singular value of M. |M|_F^2 is the trace. A count at tau is certain when no eigenvalue
lies within delta + (tau + e + 2 s)^2 - tau^2 of tau^2, where s bounds the errors of the SVD's own
singular values: then the true sigma is further than 2 s from tau, and the SVD gives the same count
and reports it as decided. A naive n u lambda_1 is wrong: the error grows with the long side.

Sums over singular values (effective rank, Gaussian information) depend on the errors d_i of all
eigenvalues, |d sigma_i| <= min(sqrt(2 delta), |d_i| / sigma_i). No d_i exceeds delta, and together
they do not exceed the Frobenius norm of the errors (Hoffman and Wielandt):

    sqrt(sum d_i^2) <= delta_F = 1.01 u (l |M|_F^2 + 4 (r + 10) |lambda|),

so that a sum of w_i |d_i| stays under |w| delta_F, up to sqrt(r) times less than delta sum w_i.
Each measure turns these two into its own bound (`localrank_cli.measures.table`). Only the
effective rank ever needs more, for values under about 1e-5 sigma_1: these are computed apart, with
an error of their own (`localrank_cli.spectrum.lowest`). Where a measure could still change in the
sixth digit, or a count is uncertain, the SVD is used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from localrank_cli.spectrum.svd import MIN_TRACE, Number, rounding

_U = 2.0**-53  # unit roundoff of float64

# The largest relative error of a measure; two routes then differ by less than 1e-6.
_MAX_MEASURE_ERROR = 2.5e-7


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
    """Eigenvalues of Gram matrices, and bounds on their errors.

    Values that were computed apart are not among the matrix's own.
    """

    powers: Tensor  # (points, width), float64, >= 0: computed squares of singular values
    own: Tensor  # (points, width), bool: false for the zeros behind, which are exact
    each: Tensor  # (points,): bound on each error of the own
    together: Tensor  # (points,): bound on the root of the sum of their squared errors
    # (points, width): bounds on the errors of singular values that were computed apart, 0 for the
    # others; None: there are none.
    slack: Tensor | None = None

    @property
    def slips(self) -> Tensor:
        """Bounds on the errors of the squares of values that were computed apart; 0 for others."""
        if self.slack is None:
            return torch.zeros_like(self.powers)
        return self.slack * (2 * self.powers.sqrt() + self.slack)


# The largest relative error of a measure at each point, shape (points,).
Bound = Callable[[Doubt], Tensor]


def squared_error(
    trace: Number, size: Number, long_side: Number | int, short_side: Number | int
) -> Number:
    """Return delta, in the shape of `trace` (|M|_F^2) and `size` (lambda_1).

    With |lambda| as the size it is delta_F.
    """
    return 1.01 * _U * (long_side * trace + 4 * (short_side + 10) * size)


@dataclass(frozen=True)
class Apart:
    """Values at the end of each row of eigenvalues that were computed apart."""

    counts: Tensor  # (points,), int64
    # (points,), float64: bound on the errors of these singular values; 0: as good as the SVD's, so
    # that counts among them are those of the SVD.
    slack: Tensor


def certify(
    eigenvalues: Tensor,
    errors: Tensor,
    shapes: list[Shape],
    thresholds: Tensor,
    bounds: Sequence[Bound],
    apart: Apart | None = None,
) -> Tensor:
    """Return which matrices' eigenvalues can be used as they are, shape (points,), bool.

    Args:
        eigenvalues: Of the Gram matrices, shape (points, width), float64, descending, zeros behind;
            of values that were computed apart, their squares.
        errors: e of each matrix, shape (points,).
        shapes: Of each matrix.
        thresholds: Values of tau at which counts are wanted, shape (points, tolerances).
        bounds: Of the measures that are wanted.
        apart: The values that were computed apart; None: there are none.
    """
    shape = shapes[0]
    powers = eigenvalues.clamp(min=0)
    trace, first = powers.sum(dim=1), powers[:, 0]
    long_sides = torch.tensor([s.long_side for s in shapes], dtype=torch.float64, device="cpu")
    short_sides = torch.tensor([s.short_side for s in shapes], dtype=torch.float64, device="cpu")
    delta = squared_error(trace, first, long_sides, short_sides)
    length = torch.linalg.vector_norm(powers, dim=1)
    together = squared_error(trace, length, long_sides, short_sides)
    norm = first.sqrt()
    # The SVD's threshold rtol * sigma_1 has its own sigma_1: 2 s and delta / sigma_1 more.
    svd = 4 * rounding(norm, shape.longest, torch.float64) + delta / norm.clamp(min=1e-300)
    place = torch.arange(eigenvalues.shape[1], device="cpu")
    own = place < short_sides.unsqueeze(1)
    slack = None
    if apart is not None:
        lowest = own & (place >= (short_sides - apart.counts).unsqueeze(1))
        own &= ~lowest
        slack = torch.where(lowest, apart.slack.unsqueeze(1), 0)
    doubt = Doubt(powers, own, delta, together, slack)
    held = trace > MIN_TRACE
    if apart is None or slack is None:
        each = delta.unsqueeze(1)
        held &= _counts_hold(eigenvalues, each, (errors + svd).unsqueeze(1), thresholds)
    else:
        each = torch.where(lowest, 0, delta.unsqueeze(1))
        error = (errors + svd).unsqueeze(1) + slack
        safe = lowest & (slack == 0)
        held &= _counts_hold(eigenvalues, each, error, thresholds, safe)
    for bound in bounds:
        held &= bound(doubt) <= _MAX_MEASURE_ERROR
    return held


def _counts_hold(
    eigenvalues: Tensor,
    each: Tensor,
    error: Tensor,
    thresholds: Tensor,
    safe: Tensor | None = None,
) -> Tensor:
    """Return where every eigenvalue is on a sure side of every threshold; those in `safe` are."""
    held = torch.ones(eigenvalues.shape[0], dtype=torch.bool, device="cpu")
    for column in range(thresholds.shape[1]):
        tau = thresholds[:, column : column + 1]
        # tau^2 itself is rounded.
        margin = each + (2 * tau + error) * error + 4 * _U * tau.square()
        sure = (eigenvalues - tau.square()).abs() > margin
        held &= (sure if safe is None else sure | safe).all(dim=1)
    return held
