"""Squared singular values from the Gram matrix of the shorter side, in float64."""

import torch
from torch import Tensor

# Above this sum of squares, sums of their products may leave the range of a double.
_MOST = 1e140
# Up to this size one call of LAPACK for a whole stack of matrices beats a call for each.
TINY = 24
# Rows of a large Gram matrix that are multiplied at once.
_ROWS = 256
# From this size on a GPU's eigenvalue solver is worth the call.
_DEVICE_SIZE = 512


def gram_eigenvalues(matrices: Tensor) -> Tensor:
    """Eigenvalues of M M^T or M^T M, whichever is smaller.

    Args:
        matrices: Shape (..., m, k), any floating type, any device.

    Returns:
        Shape (..., min(m, k)), float64, CPU, descending. NaN where an entry is not finite, or so
        large that its square is not.
    """
    matrices = matrices.detach().to(torch.float64)
    wide = matrices.shape[-2] <= matrices.shape[-1]
    tall = matrices.mT if wide else matrices
    if matrices.dim() > 2:
        return symmetric_eigenvalues(tall.mT @ tall)
    return symmetric_eigenvalues(add_gram(tall.new_zeros(tall.shape[1], tall.shape[1]), tall))


def add_gram(total: Tensor, rows: Tensor) -> Tensor:
    """Adds R^T R, of which only the lower triangle is looked at.

    Where that triangle can be walked in portions large enough for the machine, this takes little
    more than half of the operations of the whole product.

    Args:
        total: Shape (n, n), float64; changed in place.
        rows: R, shape (k, n), float64.

    Returns:
        `total`.
    """
    n = rows.shape[1]
    size = _ROWS if n >= 2 * _ROWS else n
    for start in range(0, n, size):
        stop = min(start + size, n)
        total[start:stop, :stop].addmm_(rows[:, start:stop].mT, rows[:, :stop])
    return total


def symmetric_eigenvalues(gram: Tensor) -> Tensor:
    """Eigenvalues of Gram matrices.

    Args:
        gram: Shape (..., n, n), float64, any device; the lower triangle counts.

    Returns:
        Shape (..., n), float64, CPU, descending; NaN as in `gram_eigenvalues`.
    """
    if gram.shape[-1] < _DEVICE_SIZE:
        gram = gram.cpu()
    # |M|_F^2; a NaN or inf anywhere in M stands on the diagonal of the Gram matrix too.
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    sound = trace < _MOST
    if bool(sound.all()):
        whole: Tensor = torch.linalg.eigvalsh(gram)
        return whole.flip(-1).cpu()
    # LAPACK must not see a NaN: it refuses the whole stack, or worse.
    values = torch.linalg.eigvalsh(torch.where(sound[..., None, None], gram, 0)).flip(-1)
    return torch.where(sound.unsqueeze(-1), values, torch.nan).cpu()
