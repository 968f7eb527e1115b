"""Small singular values of a deficient matrix, apart from the others, by products with the matrix.

Its Gram matrix does not resolve small values: every squared singular value is off by up to
delta. The large ones stand that; the small ones are taken here from M itself. Let M be tall, of
shape m x n, with singular values that fall by a factor of 30 or more after the (n - k)-th, V an
orthonormal basis (n x k) close to the right singular vectors of the last k, V1 one of the rest,
A = M V1 and B = M V (V is rounded, as is the product; both are errors of M of a few u |M|, like
the SVD's own). With C = V1^T M^T B, which would be 0 for the exact subspace, and Q R = A,

    M [V1 V] = Q' [[R, F], [0, B_]],    F = R^-T C,    B_ = B - A (A^T A)^-1 C,

and a rotation by X = R^-1 F decouples the blocks up to relative errors of |X|^2 and a block
|B_| |X| below the diagonal, which counts by its square (Li and Li, 2005). Together

    |sigma_(n-k+j)(M) - sigma_j(B_)| <= b x^2 (1/2 + b / (a - b)),    b = |B_|, x = |X|,

where a, the least singular value of A, is at least the root of lambda_(n-k) - delta - |C| once that
is above |B|^2 (Weyl, and a count of who can be above). B_ comes from one step of refinement with
the Cholesky factor of G = M^T M + 2 delta: Z = (1 - V V^T) G^-1 C, B_ = B - M Z. What the step
leaves, C_ = C - V1^T M^T M Z, moves a singular value by |C_| / a at most. Both are computed; where
their sum is not far below the rounding of the SVD, nothing is returned.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from localrank_cli.spectrum.certificate import squared_error
from localrank_cli.spectrum.svd import (
    cholesky,
    gram_matrix,
    rounding,
    singular_values,
    symmetric_eigenvalues,
)

_U = 2.0**-53  # unit roundoff of float64
# From this short side on this is faster than the SVD.
MIN_DEFLATED_SIZE = 192
# lambda_(n-k) over lambda_(n-k+1): each iteration brings the subspace closer by about this factor.
_GAP = 1e3
_ITERATIONS = 4
# If a larger share of the values is small, the SVD costs less.
_MAX_SMALL_SHARE = 1 / 5
# The bound may be this share of the SVD's own rounding, so that the values are as exact as its own.
_MAX_LOSS_SHARE = 0.25


@dataclass(frozen=True)
class GramPair:
    """A tall matrix M, its Gram matrix and the eigenvalues of that."""

    matrix: Tensor  # (m, n), m >= n, float64
    gram: Tensor  # (n, n), float64, the lower triangle of M^T M
    eigenvalues: Tensor  # (n,), of gram, float64, CPU, descending

    @cached_property
    def squares(self) -> list[float]:
        """The eigenvalues as numbers, of which single ones are read faster than of tensors."""
        found: list[float] = self.eigenvalues.tolist()
        return found

    @cached_property
    def trace(self) -> float:
        """|M|_F^2."""
        return float(self.eigenvalues.clamp(min=0).sum())

    @cached_property
    def error(self) -> float:
        """Delta: how far an eigenvalue may be from a squared singular value."""
        return squared_error(
            self.trace, self.squares[0], self.matrix.shape[0], self.matrix.shape[1]
        )


def gram_pair(matrix: Tensor) -> GramPair:
    """Return a matrix or its transpose, whichever is tall, with its Gram matrix and eigenvalues.

    It may have any floating type and device.
    """
    if matrix.requires_grad or matrix.dtype != torch.float64:
        matrix = matrix.detach().to(torch.float64)
    tall = matrix.mT if matrix.shape[0] < matrix.shape[1] else matrix
    gram = gram_matrix(tall)
    return GramPair(tall, gram, symmetric_eigenvalues(gram))


def has_small_values(eigenvalues: Tensor) -> bool:
    """Return whether a gap may set small values apart, so that `small_values` finds them."""
    squares = eigenvalues.tolist()
    least = squares[0] * _U  # the error of an eigenvalue is larger
    return _small_ones(squares, least) > 0


def small_values(pair: GramPair) -> Tensor | None:
    """Return the singular values that the Gram matrix cannot distinguish from zero.

    These are the last k, shape (k,), float64, CPU, descending, as good as the SVD's; None where no
    gap sets them apart, they are too many, or the bound above is not small.
    """
    count = _small_ones(pair.squares, pair.error)
    if count == 0:
        return None
    gram = pair.gram.cpu()
    factor = cholesky(gram, 2 * pair.error)
    if factor is None:
        return None
    basis = _subspace(factor, count)
    rest = _refined(pair, gram, factor, basis)
    return None if rest is None else singular_values(torch.linalg.qr(rest, mode="r").R)


def _small_ones(squares: Sequence[float], error: float) -> int:
    """Return how many eigenvalues are below the widest gap; 0 if it is not wide enough."""
    most = int(len(squares) * _MAX_SMALL_SHARE)
    count, gap = widest_gap(squares, range(1, most + 1), error)
    return count if gap >= _GAP else 0


def widest_gap(squares: Sequence[float], counts: range, error: float) -> tuple[int, float]:
    """Return which of some numbers of last eigenvalues the widest gap sets apart, and its ratio.

    Eigenvalues below their `error` count as that. Of gaps of one width it is the first, which has
    more values behind it.
    """
    best, widest = 0, 0.0
    for count in reversed(counts):
        above, below = squares[-count - 1], squares[-count]
        gap = max(above, error) / max(below, error) if below > 0 or error > 0 else 0.0
        if gap > widest:
            best, widest = count, gap
    return best, widest


def _subspace(factor: Tensor, count: int) -> Tensor:
    """Return an orthonormal basis, (n, count), by inverse iteration from random vectors."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    basis = torch.randn(
        factor.shape[0], count, dtype=torch.float64, device="cpu", generator=generator
    )
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(torch.cholesky_solve(basis, factor)).Q
    return basis


def _refined(pair: GramPair, gram: Tensor, factor: Tensor, basis: Tensor) -> Tensor | None:
    """Return B_, (m, k), or None where its singular values are not proved close to M's."""
    # Vectors are rows: a product of a large matrix with a narrow one takes ten times as long if the
    # vectors are columns.
    matrix, rows = pair.matrix, basis.mT.contiguous()

    def apart(vectors: Tensor) -> Tensor:
        """Return the part of rows that is orthogonal to the basis."""
        return vectors - (vectors @ basis) @ rows

    product = rows.to(matrix.device) @ matrix.mT
    coupling = apart((product @ matrix).cpu())
    step = apart(torch.cholesky_solve(coupling.mT, factor).mT)
    left = apart(coupling - _symmetric_product(step, gram))
    before = float(product.norm())
    rest = product.addmm_(step.to(matrix.device), matrix.mT, alpha=-1).cpu().mT
    delta = pair.error
    frobenius = pair.trace**0.5
    size = float(rest.norm())
    rounded = 2 * matrix.shape[0] * _U * frobenius * size
    coupled = float(coupling.norm()) + rounded
    behind = pair.squares[-basis.shape[1] - 1] - delta - coupled
    if not behind > 4 * max(size, before) ** 2:
        return None
    least = behind**0.5
    # Once for the rounding of the Gram matrix, once for that of the product with it.
    leak = (float(left.norm()) + 2 * delta * float(step.norm()) + rounded) / least
    turn = float(step.norm()) + leak / least
    lost = leak + size * turn**2 * (0.5 + size / (least - size))
    norm = max(pair.squares[0], 0.0) ** 0.5
    allowed = _MAX_LOSS_SHARE * rounding(norm, matrix.shape[0], torch.float64)
    return rest if lost <= allowed else None


def _symmetric_product(rows: Tensor, lower: Tensor) -> Tensor:
    """Return the product with a symmetric matrix whose lower triangle is given."""
    full = lower.tril()
    return rows @ full + rows @ full.tril(-1).mT
