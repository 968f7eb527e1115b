"""Small singular values of a deficient matrix, apart from the others, by products with the matrix.

Its Gram matrix cannot tell zero from what is small: every squared singular value is off by up to
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

from dataclasses import dataclass

import torch
from torch import Tensor

from localrank_cli.spectrum.certificate import squared_error
from localrank_cli.spectrum.svd import add_gram, rounding, singular_values, symmetric_eigenvalues

_U = 2.0**-53
# From this short side on the detour is shorter than the SVD.
DEFLATED = 192
# lambda_(n-k) over lambda_(n-k+1): each iteration brings the subspace closer by about this factor.
_GAP = 1e3
_ITERATIONS = 4
# Of n: with more small ones than that, the SVD costs less.
_MOST = 1 / 5
# Of the SVD's own rounding: what may be lost besides.
_SHARE = 0.25


@dataclass(frozen=True)
class Squared:
    """A tall matrix M, with its Gram matrix and what is known from that."""

    matrix: Tensor  # (m, n), m >= n, float64
    gram: Tensor  # (n, n), float64, the lower triangle of M^T M
    eigenvalues: Tensor  # (n,), of gram, float64, CPU, descending

    @property
    def error(self) -> float:
        """Delta: how far an eigenvalue may be from a squared singular value."""
        trace = self.eigenvalues.clamp(min=0).sum()
        return float(squared_error(trace, self.eigenvalues[0], *self.matrix.shape))


def squares(matrix: Tensor) -> Squared:
    """Computes the Gram matrix of the shorter side, and its eigenvalues.

    Args:
        matrix: Any shape (m, k), any floating type, any device.

    Returns:
        M or its transpose, whichever is tall.
    """
    matrix = matrix.detach().to(torch.float64)
    tall = matrix.mT if matrix.shape[0] < matrix.shape[1] else matrix
    gram = add_gram(tall.new_zeros(tall.shape[1], tall.shape[1]), tall)
    return Squared(tall, gram, symmetric_eigenvalues(gram))


def small_values(squared: Squared) -> Tensor | None:
    """Computes the singular values that the Gram matrix cannot tell from zero.

    Args:
        squared: The matrix and its Gram matrix.

    Returns:
        The last k singular values, shape (k,), float64, CPU, descending, as good as the SVD's; None
        where no gap sets them apart, they are too many, or the bound above is not small.
    """
    count = _small_ones(squared.eigenvalues, squared.error)
    if count == 0:
        return None
    gram = squared.gram.cpu()
    shifted = gram.clone()
    shifted.diagonal().add_(2 * squared.error)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    del shifted
    if int(failed):
        return None
    basis = _subspace(factor, count)
    rest = _refined(squared, gram, factor, basis)
    return None if rest is None else singular_values(torch.linalg.qr(rest, mode="r").R)


def _small_ones(eigenvalues: Tensor, error: float) -> int:
    """How many stand behind the widest gap; 0 where it is not wide enough."""
    n = eigenvalues.shape[0]
    behind = eigenvalues.clamp(min=error)
    gaps = behind[:-1] / behind[1:]
    first = n - int(n * _MOST)
    gaps[: first - 1] = 0
    if not bool((gaps >= _GAP).any()):
        return 0
    return n - 1 - int(gaps.argmax())


def _subspace(factor: Tensor, count: int) -> Tensor:
    """Inverse iteration from random vectors: an orthonormal basis, shape (n, count)."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    basis = torch.randn(
        factor.shape[0], count, dtype=torch.float64, device="cpu", generator=generator
    )
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(torch.cholesky_solve(basis, factor)).Q
    return basis


def _refined(squared: Squared, gram: Tensor, factor: Tensor, basis: Tensor) -> Tensor | None:
    """B_, shape (m, k), or None where its singular values are not proved close to M's."""
    # Vectors lie in rows: a product of a large matrix with a narrow one takes ten times as long
    # where the narrow one lies in columns.
    matrix, rows = squared.matrix, basis.mT.contiguous()

    def apart(vectors: Tensor) -> Tensor:
        return vectors - (vectors @ basis) @ rows

    product = rows.to(matrix.device) @ matrix.mT
    coupling = apart((product @ matrix).cpu())
    step = apart(torch.cholesky_solve(coupling.mT, factor).mT)
    left = apart(coupling - _symmetric_product(step, gram))
    before = float(product.norm())
    rest = product.addmm_(step.to(matrix.device), matrix.mT, alpha=-1).cpu().mT
    delta = squared.error
    frobenius = float(squared.eigenvalues.clamp(min=0).sum().sqrt())
    size = float(rest.norm())
    rounded = 2 * matrix.shape[0] * _U * frobenius * size
    coupled = float(coupling.norm()) + rounded
    behind = float(squared.eigenvalues[-basis.shape[1] - 1]) - delta - coupled
    if not behind > 4 * max(size, before) ** 2:
        return None
    least = behind**0.5
    # Once for the rounding of the Gram matrix, once for that of the product with it.
    leak = (float(left.norm()) + 2 * delta * float(step.norm()) + rounded) / least
    turn = float(step.norm()) + leak / least
    lost = leak + size * turn**2 * (0.5 + size / (least - size))
    norm = squared.eigenvalues[:1].sqrt()
    allowed = _SHARE * float(rounding(norm, matrix.shape[0], torch.float64))
    return rest if lost <= allowed else None


def _symmetric_product(rows: Tensor, lower: Tensor) -> Tensor:
    """The product with a symmetric matrix of which the lower triangle is given."""
    full = lower.tril()
    return rows @ full + rows @ full.tril(-1).mT
