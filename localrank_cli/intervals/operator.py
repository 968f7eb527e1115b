"""A matrix of which only products are known."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]


@dataclass
class Operator:
    """A matrix J, n_out x n_in, as its products with vectors, which are counted.

    Vectors are rows: `apply` maps (k, n_in) to (k, n_out), each row v to J v, and `transpose` maps
    (k, n_out) to (k, n_in), each row u to J^T u. They take and give float64.
    """

    n_out: int
    n_in: int
    apply: Product
    transpose: Product
    device: torch.device = field(default=torch.device("cpu"))
    # Bound on |J_computed - J| over sigma_1, beside the rounding of float64.
    error: float = 0.0
    n_products: int = 0

    @property
    def size(self) -> int:
        """d, the smaller side."""
        return min(self.n_out, self.n_in)

    @property
    def rounding(self) -> float:
        """How far a singular value may be off, over sigma_1."""
        return self.rounding_of_float64 + self.error

    @property
    def rounding_of_float64(self) -> float:
        """The part of it that is there in any case."""
        return max(self.n_out, self.n_in) * torch.finfo(torch.float64).eps

    def square(self, vectors: Tensor) -> Tensor:
        """Return A v for rows v of d entries, A being J^T J or J J^T, whichever is smaller."""
        self.n_products += 2 * vectors.shape[0]
        if self.n_in <= self.n_out:
            return self.transpose(self.apply(vectors))
        return self.apply(self.transpose(vectors))


def of_matrix(matrix: Tensor) -> Operator:
    """Return the operator of a matrix that is known."""
    matrix = matrix.to(torch.float64)
    return Operator(
        matrix.shape[0],
        matrix.shape[1],
        lambda vectors: vectors @ matrix.T,
        lambda vectors: vectors @ matrix,
        matrix.device,
    )
