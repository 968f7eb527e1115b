"""Singular values of a Jacobian too large to hold, from its blocks."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from localrank_cli.spectrum.gram import add_gram, symmetric_eigenvalues


def streamed_gram(blocks: Iterator[Tensor]) -> Tensor:
    """Eigenvalues of the Gram matrix of the shorter side, summed over blocks of the longer one.

    Each entry is a sum over the whole longer side, so that the error bound of a single product
    holds for any division into blocks.

    Args:
        blocks: Each (some of the longer side, shorter side).

    Returns:
        Shape (shorter side,), float64, CPU, descending; NaN where an entry is not finite.
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
    """R, where Q R are the blocks stacked, one QR after another.

    Backward stable, and the squares of singular values never appear.

    Args:
        blocks: Starts a new walk through the blocks.

    Returns:
        At most (shorter side, shorter side), float64; all NaN where an entry is not finite.
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
        del rows  # nor while what comes after does
    assert triangle is not None
    return triangle
