"""Lanczos runs from several probes in lockstep, with full reorthogonalization."""

from collections.abc import Sequence

import torch
from torch import Tensor

from localrank_cli.intervals.operator import Operator

_EPS = torch.finfo(torch.float64).eps


def project_out(vectors: Tensor, basis: Tensor) -> Tensor:
    """Return rows with their components along orthonormal rows removed, twice for accuracy."""
    if basis.shape[-2] == 0:
        return vectors
    for _ in range(2):
        vectors = vectors - (vectors @ basis.mT) @ basis
    return vectors


class Runs:
    """Tridiagonal matrices of A, or of A on the complement of a basis, each from its own probe.

    Args:
        operator: The matrix J, of which A is the smaller square.
        probes: Rows of standard normal entries, (s, d).
        max_steps: How many steps there is room for.
        away: Orthonormal rows, (k, d): all vectors are orthogonal to them.
    """

    def __init__(
        self,
        operator: Operator,
        probes: Tensor,
        max_steps: int,
        away: Tensor | None = None,
    ) -> None:
        self._operator = operator
        self._away = probes.new_empty(0, probes.shape[1]) if away is None else away
        probes = project_out(probes, self._away)
        self.squares: list[float] = probes.square().sum(dim=1).tolist()
        s, d = probes.shape
        self._dimension = d - self._away.shape[0]
        self.max_steps = min(max_steps, self._dimension)
        # Pages of it are taken only as they are written.
        self._basis = probes.new_empty(s, self.max_steps + 1, d)
        self._basis[:, 0] = probes / probes.norm(dim=1, keepdim=True).clamp(min=1e-300)
        self.diagonals: list[list[float]] = [[] for _ in range(s)]
        # beta_1, ..., beta_nu: the last one leads out of the matrix, and is 0 where it ends.
        self.next: list[list[float]] = [[] for _ in range(s)]
        self._active = [lane for lane in range(s) if self.squares[lane] > 0]
        self.n_steps = 0

    @property
    def is_done(self) -> bool:
        """Whether no run has a further step."""
        return not self._active or self.n_steps == self.max_steps

    @property
    def cost(self) -> int:
        """Products of the next step."""
        return 2 * len(self._active)

    def step(self) -> None:
        """Take one step in every run that has not ended."""
        index, lanes = self.n_steps, self._active
        current = self._basis[lanes, index]
        found = self._operator.square(current)
        diagonals = (found * current).sum(dim=1)
        found = project_out(found, self._away)
        for row, lane in enumerate(lanes):
            known = self._basis[lane, : index + 1]
            rest = project_out(found[row : row + 1], known)[0]
            beta = float(rest.norm())
            self.diagonals[lane].append(float(diagonals[row]))
            scale = max(*self.diagonals[lane], *self.next[lane], 0.0)
            if beta <= 8 * _EPS * scale or index + 1 == self._dimension:
                beta = 0.0  # what is left is rounding
            else:
                self._basis[lane, index + 1] = rest / beta
            self.next[lane].append(beta)
        self._active = [lane for lane in lanes if self.next[lane][-1] > 0]
        self.n_steps += 1

    def ritz_values(self, lane: int) -> Tensor:
        """Return the Ritz values of a run, ascending."""
        matrix = tridiagonal(self.diagonals[lane], self.next[lane][:-1])
        values: Tensor = torch.linalg.eigvalsh(matrix)
        return values

    def defect(self, lane: int) -> float:
        """Return how far the basis of a run is from orthonormal, the largest entry of V V^T - 1."""
        known = self._basis[lane, : len(self.diagonals[lane])]
        gram = known @ known.T
        gram.diagonal().sub_(1)
        return float(gram.abs().max())

    @property
    def largest(self) -> float:
        """The largest Ritz value."""
        lanes = [lane for lane, diagonal in enumerate(self.diagonals) if diagonal]
        return max((float(self.ritz_values(lane)[-1]) for lane in lanes), default=0.0)


def tridiagonal(diagonal: Sequence[float], beside: Sequence[float]) -> Tensor:
    """Return the symmetric tridiagonal matrix of its entries."""
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64, device="cpu"))
    if len(beside):
        other = torch.tensor(beside, dtype=torch.float64, device="cpu")
        matrix.diagonal(1).copy_(other)
        matrix.diagonal(-1).copy_(other)
    return matrix
