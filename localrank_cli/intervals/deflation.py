"""A basis of the strongest directions: certain lower bounds, and what is left for an upper one.

By Cauchy, A restricted to any orthonormal V has no more eigenvalues above a threshold than A, and
A has no more than k beyond its restriction to the complement of k orthonormal directions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from localrank_cli.intervals.bracket import SLACK
from localrank_cli.intervals.lanczos import project_out
from localrank_cli.intervals.operator import Operator

BLOCK = 8
# Above this V V^T differs from 1 by more than rounding, and nothing is certified by V.
MAX_DEFECT = 1e-9
# A direction whose length drops to this share is what rounding left of it.
_DEAD = 1e-10
_STABLE = 2  # blocks without a further value above the threshold
Draw = Callable[[int], Tensor]  # how many standard normal rows


@dataclass(frozen=True)
class Basis:
    """Orthonormal rows with A restricted to them."""

    vectors: Tensor  # Ritz vectors, (k, d), descending
    values: Tensor  # Ritz values, (k,)
    residuals: Tensor  # |A v - value v|, (k,)
    defect: float  # the largest entry of |V V^T - 1|

    @property
    def is_sound(self) -> bool:
        """Whether the rows are orthonormal, up to rounding."""
        return self.defect <= MAX_DEFECT

    def count(self, at: float) -> int:
        """Return how many Ritz values are above a threshold, for certain; 0 if V is not sound."""
        if not self.is_sound:
            return 0
        # V is within `k defect` of an orthonormal matrix, which moves eigenvalues in proportion.
        slip = 2 * len(self.values) * self.defect
        return int((self.values * (1 - slip) > at).sum())


def orthonormal(block: Tensor, basis: Tensor, draw: Draw) -> Tensor:
    """Return orthonormal rows, orthogonal to a basis, that span a block's rows.

    A block on an exhausted Krylov space has rows that are rounding; normalized, they would be
    copies of the basis. Fresh random rows take their place. There are fewer rows where the space
    has no more dimensions.
    """
    room = basis.shape[1] - basis.shape[0]
    rows: list[Tensor] = []
    for row in block[:room]:
        candidate = row.unsqueeze(0)
        others = torch.cat(rows) if rows else basis[:0]
        for _ in range(4):
            before = float(candidate.norm())
            rest = project_out(project_out(candidate, basis), others)
            length = float(rest.norm())
            if before > 0 and length > _DEAD * before:
                rest = project_out(project_out(rest / length, basis), others)
                rows.append(rest / rest.norm())
                break
            candidate = draw(1)
    return torch.cat(rows) if rows else basis[:0]


def strongest(
    operator: Operator, draw: Draw, thresholds: list[float], room: int, budget: int
) -> Basis:
    """Return Ritz vectors of a block Krylov space that has settled above all thresholds.

    It grows until the counts stay the same and these vectors have converged, or until there are
    `room` rows, or no `budget` of products is left.
    """
    d = operator.size
    room = min(room, d)
    start = draw(min(BLOCK, room))
    storage = start.new_empty(room + BLOCK, d)
    images = start.new_empty(room + BLOCK, d)
    matrix = start.new_empty(room + BLOCK, room + BLOCK)
    block = orthonormal(start, storage[:0], draw)
    used, counts, settled = 0, [-1] * len(thresholds), 0
    while True:
        size = block.shape[0]
        storage[used : used + size] = block
        images[used : used + size] = operator.square(block)
        budget -= 2 * size
        used += size
        before, now = slice(used - size), slice(used - size, used)
        matrix[:used, now] = storage[:used] @ images[now].T
        matrix[now, before] = storage[now] @ images[before].T
        known = storage[:used], images[:used], matrix[:used, :used]
        values = torch.linalg.eigvalsh((known[2] + known[2].T) / 2)
        new = [int((values > at).sum()) for at in thresholds]
        settled = settled + 1 if new == counts else 0
        counts = new
        if settled >= _STABLE:
            found = _restricted(*known)
            if all(_converged(found, at, n) for at, n in zip(thresholds, counts, strict=True)):
                return found
        block = orthonormal(images[used - size : used], storage[:used], draw)
        size = block.shape[0]
        if size == 0 or used + size > room or 2 * size > budget:
            return _restricted(*known)


def _converged(found: Basis, at: float, count: int) -> bool:
    if count == 0:
        return True
    gaps = (found.values[:count] - at).clamp(min=0)
    # Coupled with a direction below, a value moves by the square of its residual over the gap.
    return bool((found.residuals[:count].square() <= 0.01 * at * gaps.clamp(min=SLACK * at)).all())


def _restricted(rows: Tensor, images: Tensor, matrix: Tensor) -> Basis:
    values, turns = torch.linalg.eigh((matrix + matrix.T) / 2)
    values, turns = values.flip(0), turns.flip(1)
    vectors = turns.T @ rows
    residuals = (turns.T @ images - values.unsqueeze(1) * vectors).norm(dim=1)
    gram = vectors @ vectors.T
    gram.diagonal().sub_(1)
    return Basis(vectors, values, residuals, float(gram.abs().max()))
