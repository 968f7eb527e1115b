"""The factor L of a metric or covariance L L^T of the varied tensor: J L in place of J.

With L L^T the covariance of the varied tensor, the singular values of J L are those of J
Sigma^(1/2): how far the layer moves when the data move by one standard deviation. Every route gives
J L without J: it differentiates z -> f(x + L z) at z = 0.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_U = 2.0**-53  # unit roundoff of float64
_ROWS_AT_ONCE = 4096  # of the data, in one step of the QR


@dataclass(frozen=True)
class MetricFactor:
    """The factor L."""

    factor: Tensor  # (): the same factor for every entry; (n_in, k): a matrix
    n_cov: int | None = None  # points that the covariance comes from; None: it is known exactly
    # (m,) int64: the entries that are varied, m in place of n_in above; None: all
    entries: Tensor | None = None

    def n_varied(self, n_in: int) -> int:
        """Return how many entries are varied: n_in, or the size of the slice."""
        return n_in if self.entries is None else self.entries.shape[0]

    def width(self, n_in: int) -> int:
        """Return the columns of J L: n_in, or fewer where the sample spans no more."""
        return self.n_varied(n_in) if self.factor.dim() == 0 else self.factor.shape[1]

    def step(self, steps: Tensor, n_in: int) -> Tensor:
        """Return L z, shape (points, n_in), of z with shape (points, k)."""
        factor = self.factor.to(steps)
        moved = steps * factor if factor.dim() == 0 else steps @ factor.mT
        if self.entries is None:
            return moved
        # Entries that stay index a zero behind the others: indexing, unlike a write in place, is
        # supported by every transform.
        source = torch.full((n_in,), self.entries.shape[0], device=steps.device)
        source[self.entries.to(steps.device)] = torch.arange(
            self.entries.shape[0], device=steps.device
        )
        still = torch.zeros_like(moved[:, :1])
        return torch.cat([moved, still], dim=1).index_select(1, source)

    def weigh(self, weight: Tensor) -> tuple[Tensor, float]:
        """Return W L, (n_out, k), for a layer that sees the varied tensor itself, and its error.

        W has shape (n_out, n_in). The error bounds the Frobenius norm of what rounding added: n_in
        terms in each sum (Higham, Accuracy and Stability, eq. 3.13).
        """
        factor = self.factor.to(weight)
        if self.entries is not None:
            weight = weight.index_select(1, self.entries.to(weight.device))
        if factor.dim() == 0:
            return weight * factor, _U * float(factor.abs() * torch.linalg.matrix_norm(weight))
        sizes = torch.linalg.matrix_norm(weight) * torch.linalg.matrix_norm(factor)
        return weight @ factor, weight.shape[1] * _U * float(sizes)


def mean_of(chunks: Iterable[Tensor]) -> tuple[Tensor, int]:
    """Return the mean of rows, shape (n_in,), and their number.

    Each chunk is (some rows, n_in), float64; there is at least one row in all.
    """
    total: Tensor | None = None
    count = 0
    for chunk in chunks:
        part = chunk.sum(dim=0)
        total = part if total is None else total + part
        count += chunk.shape[0]
    assert total is not None
    return total / count, count


def covariance_factor(chunks: Iterable[Tensor], mean: Tensor, count: int) -> Tensor:
    """Return L with L L^T = sum (x - mean) (x - mean)^T / (N - 1); mean and N are from `mean_of`.

    X_c^T itself where there are no more points than entries: a matrix of n_in^2 entries never
    appears that is larger than the data. Else R^T of X_c = Q R, one part of the rows after the
    other: backward stable, and the covariance, whose condition number is the square, is not formed.
    L has shape (n_in, min(N, n_in)), float64; NaN throughout where a value is not finite.
    """
    n_in = mean.shape[0]
    scale = (count - 1) ** 0.5
    if not bool(torch.isfinite(mean).all()):
        return mean.new_full((n_in, min(count, n_in)), torch.nan)
    if count <= n_in:
        rows = torch.cat([chunk - mean for chunk in chunks])
        wide: Tensor = rows.mT.contiguous() / scale
        return wide
    triangle = mean.new_zeros(0, n_in)
    for chunk in chunks:
        for rows in torch.split(chunk - mean, _ROWS_AT_ONCE):
            triangle = torch.linalg.qr(torch.cat([triangle, rows]), mode="r").R
    factor: Tensor = triangle.mT.contiguous() / scale
    return factor
