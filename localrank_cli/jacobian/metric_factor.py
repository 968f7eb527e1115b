"""The factor L of a metric or covariance L L^T of the varied tensor: J L in place of J.

With L L^T the covariance of the varied tensor, the singular values of J L are those of J
Sigma^(1/2): how far the layer moves when the data move by one standard deviation. Where the whole
tensor is varied, every route gives J L without J: it differentiates z -> f(x + L z) at z = 0. Where
single positions are, each with a covariance of its own, J is small and is multiplied by L.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product

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

    def pulled(self, rows: Tensor) -> Tensor:
        """Return L^T u, shape (points, k), of u with shape (points, n_in)."""
        factor = self.factor.to(rows)
        if self.entries is not None:
            rows = rows.index_select(1, self.entries.to(rows.device))
        return rows * factor if factor.dim() == 0 else rows @ factor

    def part(self, rows: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
        """Return some rows and columns of L, where all entries are varied."""
        factor = self.factor.to(device=rows.device, dtype=dtype)
        if factor.dim() == 0:
            return (rows.unsqueeze(1) == columns) * factor
        return factor[rows.unsqueeze(1), columns]

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


IDENTITY = MetricFactor(torch.ones((), dtype=torch.float64, device="cpu"))


@dataclass(frozen=True)
class PositionFactors:
    """A factor for each position of the varied tensor, where single positions are varied."""

    factors: Tensor  # (): the same factor for every entry; (positions, n_features, k)
    places: Tensor  # (positions,) int64, ascending: whose they are
    n_cov: int | None = None  # as in `MetricFactor`

    def width(self, n_features: int) -> int:
        """Return the columns of J L: n_features, or fewer where the sample spans no more."""
        return n_features if self.factors.dim() == 0 else self.factors.shape[2]

    def at(self, place: int) -> Tensor:
        """Return the factor of one position, () or (n_features, k)."""
        if self.factors.dim() == 0:
            return self.factors
        return self.factors[int(torch.searchsorted(self.places, place))]

    def weigh(self, block: Tensor, places: Tensor) -> Tensor:
        """Return J L of each position, written into J's own memory.

        `block` has shape (points, parts, r, n_features), and `places` (points, parts).
        """
        if self.factors.dim() == 0:
            return block.mul_(self.factors.to(block))
        width = self.width(block.shape[3])
        for point, part in product(range(block.shape[0]), range(block.shape[1])):
            factor = self.at(int(places[point, part])).to(block)
            block[point, part, :, :width] = block[point, part] @ factor
        return block[..., :width]


Metric = MetricFactor | PositionFactors


class CovarianceSum:
    """The factor of a covariance, of rows that come in chunks of (rows, ..., n_in), float64.

    All chunks pass twice: first through `add_to_mean`, then through `add`. Axes between rows and
    entries are those of several covariances at once.
    """

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._triangle: Tensor | None = None
        self._rows: list[Tensor] = []
        self.count = 0

    def add_to_mean(self, chunk: Tensor) -> None:
        """Add rows to the mean."""
        part = chunk.sum(dim=0)
        self._total = part if self._total is None else self._total + part
        self.count += chunk.shape[0]

    @property
    def mean(self) -> Tensor:
        """The mean of the rows, of which there is at least one, shape (..., n_in)."""
        assert self._total is not None
        return self._total / self.count

    def add(self, chunk: Tensor) -> None:
        """Add rows to the factor, once the mean is that of all rows."""
        centred = (chunk - self.mean).movedim(0, -2)
        # Of a covariance that is not finite nothing is computed.
        sound = torch.isfinite(self.mean).all(dim=-1)[..., None, None]
        centred = torch.where(sound, centred, 0)
        if self.count <= chunk.shape[-1]:
            self._rows.append(centred)
            return
        for rows in torch.split(centred, _ROWS_AT_ONCE, dim=-2):
            stack = rows if self._triangle is None else torch.cat([self._triangle, rows], dim=-2)
            self._triangle = torch.linalg.qr(stack, mode="r").R

    def factor(self) -> Tensor:
        """Return L with L L^T = sum (x - mean) (x - mean)^T / (N - 1).

        X_c^T itself where there are no more points than entries: a matrix of n_in^2 entries never
        appears that is larger than the data. Else R^T of X_c = Q R, one part of the rows after the
        other: backward stable, and the covariance, whose condition number is the square, is not
        formed. L has shape (..., n_in, min(N, n_in)); NaN throughout where a value is not finite.
        """
        rows = torch.cat(self._rows, dim=-2) if self._rows else self._triangle
        assert rows is not None
        self._rows.clear()
        factor: Tensor = rows.div_((self.count - 1) ** 0.5).mT.contiguous()
        sound = torch.isfinite(self.mean).all(dim=-1)[..., None, None]
        return factor.masked_fill_(~sound, torch.nan)


def covariance_factor(chunks: Callable[[], Iterable[Tensor]]) -> Tensor:
    """Return the factor of the covariance of all chunks, see `CovarianceSum`.

    `chunks` yields the same ones each time that it is called.
    """
    found = CovarianceSum()
    for chunk in chunks():
        found.add_to_mean(chunk)
    for chunk in chunks():
        found.add(chunk)
    return found.factor()
