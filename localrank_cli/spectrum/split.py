"""Singular values in two parts: those in a subspace that is known to be large, and the others.

The product of layers behind one of rank h (up to the rounding of its weights) has h large singular
values, and many that are next to nothing and yet count in an effective rank. Where h columns A
whose span is close to that of the large left singular vectors are known beforehand, the eigenvalues
of the whole Gram matrix are not needed. Let M have shape m x w, Q (m x h) be orthonormal and

    T = Q^T M,    Z = (1 - Q Q^T) M.

[T; Z] has the singular values of M, as [Q^T; 1 - Q Q^T] has orthonormal columns. Let T and Z be the
computed ones, and |.|_F the Frobenius norm. Q is off by w_Q (`lowest.skew`), so that they are those
of a matrix whose singular values are within

    e = 1.01 |M|_F (2 (m sqrt(h) u + w_Q) + w_Q + (h sqrt(h) + 2) u)        (Higham, eq. 3.13)

of M's: once for T, once for what its error does in Z, and for the product and the difference there.
With C = T Z^T and a the least singular value of T, the same argument as in `spectrum.lowest` (with
[T; Z]^T in place of M' [Q V]) gives, if a is above |Z|,

    |sigma_i(M)^2 - sigma_i(T)^2| <= |C| + 2 sigma_i e + e^2,    i <= h,
    |sigma_(h+j)(M) - sigma_j(Z)| <= e + 2 |C| / a.

The squares come from Gram matrices of T and Z, whose error is small as Z is: that of sigma_j(Z) is
1e-7 |Z|. No assumption about A is made: one that is far from the subspace shows in C.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from localrank_cli.spectrum.deflation import gram_pair
from localrank_cli.spectrum.lowest import FINE, Lowest, skew

_U = 2.0**-53  # unit roundoff of float64


@dataclass(frozen=True)
class Split:
    """The singular values of a matrix, of which the last were computed apart."""

    eigenvalues: Tensor  # (short side,), float64, CPU, descending: the squares of all
    lowest: Lowest
    error: float  # bound on the errors of the others, beside that of a Gram matrix


def split_values(matrix: Tensor, columns: Tensor) -> Split | None:
    """Return the singular values of a matrix whose large ones are in the span of some columns.

    None where they are most of them, or the bounds above are too large for sums over all values.

    Args:
        matrix: Shape (m, w), float64.
        columns: Shape (m, h), h at most m.
    """
    n_rows, width = matrix.shape
    short, count = min(n_rows, width), columns.shape[1]
    if not 0 < 2 * count <= short:
        return None
    basis = torch.linalg.qr(columns).Q
    rows = basis.mT.contiguous()
    top = rows @ matrix
    rest = torch.addmm(matrix, basis, top, alpha=-1)
    large, small = gram_pair(top), gram_pair(rest)
    left = short - count  # the others of the rest are zeros that the projection leaves
    size_large = (large.trace + count * large.error) ** 0.5
    size_small = (small.trace + short * small.error) ** 0.5
    size = math.hypot(size_large, size_small)
    tilt = skew(rows)
    terms = 2 * (n_rows * count**0.5 * _U + tilt) + tilt + (count**1.5 + 2) * _U
    shifted = 1.01 * 1.01 * terms * size  # |M|_F is that of T and Z, up to e
    product = float(torch.linalg.vector_norm(top @ rest.mT))
    coupled = 1.01 * (product + width * _U * size_large * size_small)
    least = large.squares[-1] - large.error
    if not least > 1.01 * (small.squares[0] + small.error):
        return None
    slack = shifted + 2 * coupled / least**0.5 + small.error**0.5
    error = shifted + coupled / least**0.5
    eigenvalues = torch.cat([large.eigenvalues, small.eigenvalues[:left]]).clamp_(min=0)
    values = eigenvalues.sqrt()
    if not slack * left + error * count <= FINE * float(values.sum()):
        return None
    return Split(eigenvalues, Lowest(values[count:], slack), error)
