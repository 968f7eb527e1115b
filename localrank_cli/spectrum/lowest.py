"""The lowest singular values, apart from the others, as precisely as sums over them need.

An eigenvalue of the Gram matrix is off by up to delta, so that a singular value under sqrt(delta)
may be anything from 0 to that: too much for an effective rank, whose logarithm weighs small values
most. Few values of a matrix are that small, or all of them are next to nothing. Both can be
computed from M itself, with an error that is computed, too.

Let M be tall, m x n, and [Q V] orthogonal, V having k columns: those that are close to the right
singular vectors of the last k values. Let A and B be the computed M Q and M V. They are exact for
a matrix M' within

    e = n u |M|_F sqrt(columns) + |M| w       (Higham, eq. 3.13; w: how far from orthonormal)

of M. With Q' R = A and C = A^T B,

    M' [Q V] = Q'' [[R, F], [0, B_]],    F = R^-T C,    B_^T B_ = B^T B - F^T F,

so that leaving F out moves a singular value by |F| at most (Weyl), and B_ has those of B up to |F|:

    |sigma_(n-k+j)(M) - sigma_j(B)| <= e + 2 |F| <= e + 2 |C| / a,

if a, the least singular value of A, is above |B|. A^T A and B^T B are the diagonal blocks of
(M' [Q V])^T (M' [Q V]), and leaving out C moves an eigenvalue by |C| at most. So if n - k of
the blocks' eigenvalues exceed |B|^2, they are those of A^T A, and

    a^2 >= (sqrt(lambda_(n-k) - delta) - e)^2 - |C|.

No gap is needed between the last k values and the others, and no assumption about how V was found.
A vector that has not converged shows in C. If only a bound is needed, any matrix X of rank n - k
serves: sigma_(n-k+j)(M) <= |M - X| (Eckart and Young).
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from localrank_cli.spectrum.deflation import GramPair, widest_gap
from localrank_cli.spectrum.svd import cholesky, rounding, singular_values

_U = 2.0**-53  # unit roundoff of float64
# Eigenvalues up to this many deltas are left to this module. Above it the error of a singular
# value is 1/20 of sqrt(delta), 2e-8 of sigma_1 in a matrix of size 200, which the sums bear. With
# 30, matrices of a tanh network went to the SVD; with 5000, twice as many vectors were iterated on.
_DOUBTFUL = 100
# If a larger share of the values is that small, they are not iterated on.
_MAX_SHARE = 1 / 5
# Entries of a matrix up to which several copies of it take no memory worth counting.
_MAX_COPIED = 2**20
# How many more vectors are iterated on than are wanted. The ratio of the largest wanted eigenvalue
# to the first that is left out is what a step of the iteration gains.
_MORE = 4
# Above this ratio at the gap itself two steps are enough, and no more vectors are needed.
_WIDE = 1e6
_STEPS = 3
# Random numbers up to which they are kept, as many small matrices need the same: 0.5 MiB.
_MOST_KEPT = 2**16
_ROUNDS = 3
# The sum of the errors over that of all values that another round would not improve on: times the
# logarithms of an entropy (30), this is half of what the certificate allows.
FINE = 4e-9


@dataclass(frozen=True)
class Lowest:
    """The last k singular values of a matrix."""

    values: Tensor  # (k,), float64, CPU, descending
    slack: float  # bound on the error of each; 0: as good as the SVD's


def lowest_values(pair: GramPair) -> Lowest | None:
    """Return the singular values that the Gram matrix does not resolve; None where it does.

    These are all of them if many are small and not next to nothing. None is also returned where no
    bound is found; whether it is small enough is left to the certificate.
    """
    squares, error = pair.squares, pair.error
    n, doubtful = len(squares), _DOUBTFUL * error
    if squares[-1] > doubtful:
        return None
    count = sum(one <= doubtful for one in squares)
    if count in {0, n}:
        return None
    if count <= n * _MAX_SHARE:
        # A few more are taken where that sets them apart from the others better.
        apart, _ = widest_gap(squares, range(count, min(count + _MORE, n - 1) + 1), error)
        return _by_iteration(pair, max(count, apart), error)
    return _by_triangle(pair, count)


def _by_iteration(pair: GramPair, count: int, error: float) -> Lowest | None:
    """Return the last values from inverse iteration with the Cholesky factor of M^T M + 2 delta."""
    n = len(pair.squares)
    factor = cholesky(pair.gram.cpu(), 2 * error)
    if factor is None:
        return None
    above, below = (max(pair.squares[-k], error) for k in (count + 1, count))
    is_wide = above > _WIDE * below
    basis = _random(n, count if is_wide else min(3 * count + 2 * _MORE, n))
    found = None
    for _ in range(_ROUNDS):
        for _ in range(2 if is_wide else _STEPS):
            basis = torch.linalg.qr(torch.cholesky_solve(basis, factor)).Q
        found = _at(pair, basis, count, error)
        if found is not None and found.slack * count <= _allowed(pair):
            break
    return found


def _allowed(pair: GramPair) -> float:
    return FINE * float(pair.eigenvalues.clamp(min=0).sqrt().sum())


def _at(pair: GramPair, basis: Tensor, count: int, error: float) -> Lowest | None:
    """Return the last values in the span of a basis, (n, k or more)."""
    # Vectors are rows: a product of a large matrix with a narrow one takes ten times as long if the
    # vectors are columns.
    matrix = pair.matrix
    n_rows, n = matrix.shape
    image = (basis.mT.contiguous().to(matrix.device) @ matrix.mT).cpu()
    if basis.shape[1] > count:
        turned = torch.linalg.eigh(image @ image.mT).eigenvectors[:, :count]
        basis = basis @ turned
    rows = basis.mT.contiguous()
    there = rows.to(matrix.device)
    image = there @ matrix.mT
    pulled = (image @ matrix).cpu()
    coupling = pulled - (pulled @ basis) @ rows
    values = singular_values(torch.linalg.qr(image.cpu().mT, mode="r").R)
    norm, size = _norms(pair, error)
    own = float(image.norm())
    tilt = skew(rows)
    shifted = n * _U * size * count**0.5 + norm * tilt
    products = (n_rows + (n + count) * count + 2) * _U + 3 * tilt
    coupled = 1.01 * (float(coupling.norm()) + products * size * own)
    largest = float(values[0])
    lost = _lost(pair, 1.01 * shifted, coupled, count, largest, error)
    if lost is None:
        return None
    return Lowest(values, lost + rounding(largest, n_rows, torch.float64))


def _by_triangle(pair: GramPair, count: int) -> Lowest | None:
    """Return bounds on the last values, if they are next to nothing; else all values by the SVD.

    With Q R = M, the first n - k rows of R are a matrix of that rank, and the others are left: 0 up
    to rounding for a matrix of this rank whose first columns are independent. R is that of a matrix
    within 8 m n u |M|_F (Higham, Thm. 19.4, with its constant). Its SVD costs less than M's.
    """
    matrix = pair.matrix
    n_rows, n = matrix.shape
    if matrix.numel() > _MAX_COPIED:
        return None
    triangle = torch.linalg.qr(matrix, mode="r").R
    _, size = _norms(pair, pair.error)
    slack = float(triangle[n - count :].norm()) + 8 * n_rows * n * _U * size
    if slack * count <= _allowed(pair):
        return Lowest(torch.zeros(count, dtype=torch.float64, device="cpu"), slack)
    return Lowest(singular_values(triangle), 0.0)


def _lost(
    pair: GramPair, shifted: float, coupled: float, count: int, largest: float, error: float
) -> float | None:
    """Return e + 2 |C| / a, given e, |C| and |B|; None where a is not above |B|."""
    behind = pair.squares[-count - 1] - error
    if not behind > 0:
        return None
    square = max(behind**0.5 - shifted, 0.0) ** 2 - coupled
    if not square > 1.01 * largest**2:
        return None
    return shifted + 2 * coupled / math.sqrt(square)


def _norms(pair: GramPair, error: float) -> tuple[float, float]:
    """Return bounds on |M| and |M|_F."""
    return (pair.squares[0] + error) ** 0.5, (pair.trace + len(pair.squares) * error) ** 0.5


def skew(rows: Tensor) -> float:
    """Bound how far rows are from the nearest orthonormal ones, in the Frobenius norm."""
    count, n = rows.shape
    off = rows @ rows.mT
    off.diagonal().sub_(1)
    return float(off.norm()) + n * _U * count


def _random(rows: int, columns: int) -> Tensor:
    """Return the same standard normal numbers each time, which nothing may change."""
    return (_kept_draw if rows * columns <= _MOST_KEPT else _draw)(rows, columns)


def _draw(rows: int, columns: int) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(0)
    return torch.randn(rows, columns, dtype=torch.float64, device="cpu", generator=generator)


_kept_draw = lru_cache(maxsize=8)(_draw)
