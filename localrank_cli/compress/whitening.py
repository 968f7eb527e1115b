"""The best factors of a matrix under a metric on either side.

The product L R of rank r that minimizes tr((W - L R)^T G (W - L R) C) is G^(-1/2) M_r C^(-1/2),
where M_r is the truncated SVD of M = G^(1/2) W C^(1/2). With the covariance C of the inputs alone
that is SVD-LLM (arXiv 2403.07378); with the second moments G of the output's gradients too, it is
GFWSVD (arXiv 2505.17974).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# As a share of the mean eigenvalue: directions that the calibration data never showed keep a small
# weight, and the inverse of the root magnifies rounding by no more than about 1 / sqrt(1e-4).
DAMPING = 1e-4
# In place of a mean eigenvalue of 0; its root and the inverse of that are ordinary floats.
_LEAST_MEAN = 1e-30


@dataclass(frozen=True)
class Factors:
    """The factors of a matrix at every rank up to a largest one."""

    values: Tensor  # (min(out, in),), singular values of the weighted matrix, largest first
    left: Tensor  # (out, most)
    right: Tensor  # (most, in)

    def at(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return the two factors of a rank, (out, rank) and (rank, in), of similar norms."""
        roots = self.values[:rank].sqrt()
        return self.left[:, :rank] * roots, roots[:, None] * self.right[:rank]

    def to(self, dtype: torch.dtype) -> "Factors":
        """Return the same with factors of a dtype, on the CPU; values stay in float64."""
        return Factors(self.values, self.left.to("cpu", dtype), self.right.to("cpu", dtype))

    @property
    def errors(self) -> Tensor:
        """The weighted squared error of each rank from 0, (min(out, in) + 1,)."""
        tails = self.values.square().flip(0).cumsum(0).flip(0)
        return torch.cat([tails, tails.new_zeros(1)])


Roots = tuple[Tensor | None, Tensor | None]


class RootsOf:
    """The roots of metrics, each computed once: several methods have a metric in common."""

    def __init__(self) -> None:
        self._known: list[tuple[Tensor, Roots]] = []

    def __call__(self, metric: Tensor | None, length: int) -> Roots:
        """Return the root of a damped metric and its inverse; None for the identity."""
        if metric is None:
            return None, None
        for known, roots in self._known:
            if known.shape == metric.shape and torch.equal(known, metric):
                return roots
        found = _roots(metric, length)
        self._known.append((metric, found))
        return found


def factorize(
    matrix: Tensor,
    most: int,
    *,
    left: Tensor | None = None,
    right: Tensor | None = None,
    roots_of: RootsOf | None = None,
) -> Factors:
    """Return the best factors of a matrix up to a largest rank.

    `left` is the metric of its outputs, (out, out) or the diagonal (out,), `right` that of its
    inputs, (in, in); None is the identity. Computed in float64.
    """
    roots_of = roots_of or RootsOf()
    root, inverse = roots_of(left, matrix.shape[0])
    right_root, right_inverse = roots_of(right, matrix.shape[1])
    weighted = _times(root, matrix.detach().to("cpu", torch.float64))
    weighted = _times(right_root, weighted.T).T
    u, values, v = torch.linalg.svd(weighted, full_matrices=False)
    return Factors(
        values,
        _times(inverse, u[:, :most]).contiguous(),
        _times(right_inverse, v[:most].T).T.contiguous(),
    )


def _times(root: Tensor | None, matrix: Tensor) -> Tensor:
    if root is None:
        return matrix
    return root[:, None] * matrix if root.ndim == 1 else root @ matrix


def _roots(metric: Tensor, length: int) -> Roots:
    """Return the root of a damped metric and its inverse; both symmetric."""
    metric = metric.to("cpu", torch.float64)
    is_diagonal = metric.ndim == 1
    values, vectors = (metric, None) if is_diagonal else torch.linalg.eigh(metric)
    mean = max(float(values.sum()) / length, _LEAST_MEAN)
    # Rounding leaves eigenvalues a little below 0.
    roots = (values.clamp(min=0) + DAMPING * mean).sqrt()
    if vectors is None:
        return roots, 1 / roots
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T
