"""Singular values of one matrix: by the float64 SVD, by its Gram matrix, in blocks."""

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from localrank_cli.threads import n_threads

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
Number = TypeVar("Number", float, Tensor)

# Above this sum of squares, sums of their products may leave a double's range. Below the least,
# squares of small entries have left it, and LAPACK's iteration may not converge on the others.
_MAX_TRACE = 1e140
MIN_TRACE = 1e-140
# Up to this size one call of LAPACK for a whole stack of matrices beats a call for each.
MAX_STACKED_SIZE = 24
# Rows of a large Gram matrix that are computed at once.
_GRAM_ROWS = 256
# From this size on a GPU's eigenvalue solver is worth the call.
_MIN_DEVICE_SIZE = 512


def thread_map(
    work: Callable[[_Item], _Result],
    items: Iterable[_Item],
    *,
    are_small: bool,
    at_once: int | None = None,
) -> list[_Result]:
    """Return the results for all items, in order, from workers that share torch's threads.

    One thread a matrix beats all threads on one matrix: two of size 3072 take 1.4 s instead of 2.1.
    torch lets other threads run while LAPACK works. The first error, if there is one, is raised.

    Args:
        work: Computes a result.
        items: What of.
        are_small: Whether more than one thread for an item is never faster.
        at_once: How many items fit in memory together; None: any number.
    """
    listed = list(items)
    threads = torch.get_num_threads()
    workers = min(threads, len(listed), at_once or threads)
    share = 1 if are_small else threads // max(1, workers)
    with n_threads(share):
        if workers < 2:
            return [work(item) for item in listed]
        # In the workers too: the number of threads is kept for each thread.
        with ThreadPoolExecutor(workers, "", torch.set_num_threads, (share,)) as pool:
            return list(pool.map(work, listed))


def singular_values(jacobians: Tensor) -> Tensor:
    """Return singular values in float64, by LAPACK on the CPU, descending.

    Jacobians of shape (..., n_out, n_in) give (..., min(n_out, n_in)); NaN for a matrix that is not
    finite.
    """
    matrices = jacobians.detach().to(device="cpu", dtype=torch.float64)
    if math.isfinite(float(matrices.sum())):  # no copy of a matrix that fills the memory
        whole: Tensor = torch.linalg.svdvals(matrices)
        return whole
    # One NaN makes LAPACK refuse the whole stack, and inf silently gives NaN. A sum may overflow
    # where no entry is infinite.
    finite = torch.isfinite(matrices).all(-1).all(-1)[..., None, None]
    values: Tensor = torch.linalg.svdvals(torch.where(finite, matrices, 0))
    return torch.where(finite.squeeze(-1), values, torch.nan)


def rounding(spectral_norm: Number, longest: int, precision: torch.dtype) -> Number:
    """Bound the error of a computed singular value, given sigma_1 (float64).

    A backward-stable SVD of A gives the singular values of A + E with |E| <= p(m, n) u |A|, and so
    (Weyl) each is off by at most p u sigma_1. LAPACK documents p as a modest function of the sizes;
    the largest error that was measured is 9022 u sigma_1 on a 10 x 150528 matrix, where the longest
    side times machine epsilon (2 u) allows 301056 u sigma_1. It is also the tolerance below which
    numpy and torch call a matrix rank deficient by default. Where the entries of the Jacobian
    themselves were computed in a lower precision, that precision's epsilon counts.
    """
    return spectral_norm * (longest * torch.finfo(precision).eps)


def gram_eigenvalues(matrices: Tensor) -> Tensor:
    """Return the eigenvalues of M M^T or M^T M, whichever is smaller.

    M has shape (..., m, k), any floating type and device, and gives (..., min(m, k)), float64, CPU,
    descending. NaN where an entry is not finite, or squares of entries leave a double's range.
    """
    matrices = matrices.detach().to(torch.float64)
    wide = matrices.shape[-2] <= matrices.shape[-1]
    tall = matrices.mT if wide else matrices
    if matrices.dim() > 2:
        return symmetric_eigenvalues(tall.mT @ tall)
    return symmetric_eigenvalues(gram_matrix(tall))


def gram_matrix(rows: Tensor) -> Tensor:
    """Return R^T R; only the lower triangle of (n, n) counts. R is float64."""
    n = rows.shape[1]
    return rows.mT @ rows if n < 2 * _GRAM_ROWS else add_gram(rows.new_zeros(n, n), rows)


def add_gram(total: Tensor, rows: Tensor) -> Tensor:
    """Return `total` plus R^T R, added in place; only the lower triangle of (n, n) counts.

    Where that triangle can be walked in portions large enough for the machine, this takes little
    more than half of the operations of the whole product. R and `total` are float64.
    """
    n = rows.shape[1]
    size = _GRAM_ROWS if n >= 2 * _GRAM_ROWS else n
    for start in range(0, n, size):
        stop = min(start + size, n)
        total[start:stop, :stop].addmm_(rows[:, start:stop].mT, rows[:, :stop])
    return total


def symmetric_eigenvalues(gram: Tensor) -> Tensor:
    """Return the eigenvalues of Gram matrices, (..., n), float64, CPU, descending.

    Only the lower triangle counts; NaN as in `gram_eigenvalues`.
    """
    if gram.shape[-1] < _MIN_DEVICE_SIZE:
        gram = gram.cpu()
    # |M|_F^2; a NaN or inf anywhere in M is on the diagonal of the Gram matrix too.
    trace = gram.trace() if gram.dim() == 2 else gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    sound = None
    # A number is compared faster than a tensor, which counts where matrices are small and many.
    if gram.dim() > 2 or not MIN_TRACE < float(trace) < _MAX_TRACE:
        sound = ((trace > MIN_TRACE) | (trace == 0)) & (trace < _MAX_TRACE)
    if sound is None or bool(sound.all()):
        whole: Tensor = torch.linalg.eigvalsh(gram)
        return whole.flip(-1).cpu()
    # LAPACK must not get a NaN: it refuses the whole stack, or crashes.
    values = torch.linalg.eigvalsh(torch.where(sound[..., None, None], gram, 0)).flip(-1)
    return torch.where(sound.unsqueeze(-1), values, torch.nan).cpu()


def cholesky(gram: Tensor, shift: float) -> Tensor | None:
    """Return the lower factor of a Gram matrix, (n, n), on the CPU, with its diagonal shifted.

    Only the lower triangle counts. None where the sum is not positive definite.
    """
    n = gram.shape[0]
    if n % 256:
        shifted = gram.clone()
        shifted.diagonal().add_(shift)
    else:
        # Columns that are a power of two apart share places of the cache: 3.3 ms at size 512, where
        # 520 take 1.5.
        shifted = torch.eye(n + 8, dtype=gram.dtype, device=gram.device)
        shifted[:n, :n] = gram
        shifted.diagonal()[:n] += shift
    factor, failed = torch.linalg.cholesky_ex(shifted)
    return None if int(failed) else factor[:n, :n]


def streamed_gram(blocks: Iterator[Tensor]) -> Tensor:
    """Return the eigenvalues of the shorter side's Gram matrix, summed over blocks of the longer.

    Each entry is a sum over the whole longer side, so that the error bound of a single product
    holds for any division into blocks. Each block is (some of the longer side, shorter side). The
    result is float64, CPU, descending; NaN where an entry is not finite.
    """
    total: Tensor | None = None
    for block in blocks:
        rows = block.to(torch.float64)
        if total is None:
            total = rows.new_zeros(rows.shape[1], rows.shape[1])
        add_gram(total, rows)
    assert total is not None
    return symmetric_eigenvalues(total)


def streamed_triangle(blocks: Callable[[], Iterator[Tensor]]) -> Tensor:
    """Return R, where Q R are the blocks stacked, by one QR after another.

    Backward stable, and the squares of singular values never appear. `blocks` starts a new walk. R
    is at most (shorter side, shorter side), float64; all NaN where an entry is not finite.
    """
    triangle: Tensor | None = None
    for block in blocks():
        rows = block.to(torch.float64)
        if not bool(torch.isfinite(rows).all()):
            return rows.new_full((rows.shape[1], rows.shape[1]), torch.nan)
        if triangle is not None:
            rows = torch.cat([triangle, rows])
        del block, triangle  # no more than one copy of each is held while the QR works
        triangle = torch.linalg.qr(rows, mode="r").R
        del rows  # nor while the next block is computed
    assert triangle is not None
    return triangle
