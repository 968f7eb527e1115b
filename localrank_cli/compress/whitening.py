"""The best factors of a matrix under a metric on either side.

The product L R of rank r that minimizes tr((W - L R)^T G (W - L R) C) is A^(-T) M_r B^(-1), where
M_r is the truncated SVD of M = A^T W B, and A A^T = G and B B^T = C. With the covariance C of the
inputs alone that is SVD-LLM (arXiv 2403.07378); with the second moments G of the output's gradients
too, it is GFWSVD (arXiv 2505.17974).

Any roots A and B give the same product: two of them differ by a rotation, which the SVD undoes.
Those of Cholesky take a tenth of the time of an eigendecomposition, and their inverses need not be
formed.
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


class RootOf:
    """The root of the last metric: methods have that of the inputs in common."""

    def __init__(self) -> None:
        self._known: tuple[Tensor, Tensor] | None = None

    def __call__(self, metric: Tensor | None) -> Tensor | None:
        """Return the root of a damped metric; None for the identity."""
        if metric is None:
            return None
        if self._known is None or not torch.equal(self._known[0], metric):
            self._known = metric, _root(metric)
        return self._known[1]


def factorize(
    matrix: Tensor,
    most: int,
    *,
    left: Tensor | None = None,
    right: Tensor | None = None,
    right_root_of: RootOf | None = None,
) -> Factors:
    """Return the best factors of a matrix up to a largest rank.

    `left` is the metric of its outputs, (out, out) or the diagonal (out,), `right` that of its
    inputs, (in, in); None is the identity. Computed in float64.
    """
    root = None if left is None else _root(left)
    right_root = (right_root_of or RootOf())(right)
    weighted = _times(root, matrix.detach().to("cpu", torch.float64))
    weighted = _times(right_root, weighted.T).T
    u, values, v = torch.linalg.svd(weighted, full_matrices=False)
    return Factors(
        values,
        _solved(root, u[:, :most]).contiguous(),
        _solved(right_root, v[:most].T).T.contiguous(),
    )


def _times(root: Tensor | None, matrix: Tensor) -> Tensor:
    """Return A^T times a matrix."""
    if root is None:
        return matrix
    return root[:, None] * matrix if root.ndim == 1 else root.T @ matrix


def _solved(root: Tensor | None, matrix: Tensor) -> Tensor:
    """Return A^(-T) times a matrix."""
    if root is None:
        return matrix
    if root.ndim == 1:
        return matrix / root[:, None]
    found: Tensor = torch.linalg.solve_triangular(root.T, matrix, upper=True)
    return found


def _root(metric: Tensor) -> Tensor:
    """Return a root A of a damped metric A A^T: a lower triangle, or the diagonal of a diagonal."""
    metric = metric.to("cpu", torch.float64)
    is_diagonal = metric.ndim == 1
    # Rounding leaves sums of squares that are 0 a little below it.
    diagonal = (metric if is_diagonal else metric.diagonal()).clamp(min=0)
    mean = max(float(diagonal.mean()), _LEAST_MEAN)
    if is_diagonal:
        return (diagonal + DAMPING * mean).sqrt()
    damped = metric.clone()
    damped.diagonal().add_(DAMPING * mean)
    # Positive definite, however few directions the data have shown: rounding moves eigenvalues by
    # up to 2e-16 times the length and the largest of them, which is up to the length times the
    # mean. At a length of 16,384 that is 6e-8 of the mean, and damping adds 1e-4.
    root: Tensor = torch.linalg.cholesky(damped)
    return root
