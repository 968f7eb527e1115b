"""The links of a chain: layers, and what each of them sees of the outputs of earlier ones.

A link's input is the sum of earlier outputs, each times a factor entry by entry: a single one
behind an activation, several behind a skip connection or a gate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from localrank_cli.layers.capture import Call

_U = 2.0**-53  # unit roundoff of float64


@dataclass(frozen=True)
class Term:
    """A part of what a link sees: the output of an earlier link, times a factor entry by entry."""

    parent: int  # index of the link
    slope: Tensor  # (points, units of the parent)

    @cached_property
    def diagonals(self) -> "Diagonals":
        """The slope as diagonal matrices."""
        return Diagonals(self.slope)


@dataclass(frozen=True)
class Norm:
    """The derivative of a LayerNorm or RMSNorm: dy = s (dx - mean(dx) - h mean(h dx)).

    A RMSNorm does not subtract the mean of dx.
    """

    scale: Tensor  # s, (points, units): the weight over the standard deviation
    unit: Tensor  # h, (points, units): the normalized input without weight and bias
    is_centered: bool

    def times(self, point: int, matrix: Tensor, rows: Tensor | None) -> Tensor:
        """Return the rows with some indices (None: all) of the product with (units, w)."""
        unit, scale = self.unit[point], self.scale[point]
        along = unit @ matrix / len(unit)
        mean = matrix.mean(dim=0) if self.is_centered else None
        if rows is not None:
            matrix = matrix.index_select(0, rows)
            unit, scale = unit.index_select(0, rows), scale.index_select(0, rows)
        left = torch.addr(matrix, unit, along, alpha=-1)
        if mean is not None:
            left -= mean
        return left.mul_(scale.unsqueeze(1))

    def transposed(self, cotangents: Tensor) -> Tensor:
        """Return u^T times the derivative at every point, (points, units)."""
        scaled = cotangents * self.scale
        along = (scaled * self.unit).mean(dim=1, keepdim=True)
        mean = scaled.mean(dim=1, keepdim=True) if self.is_centered else 0
        return scaled - self.unit * along - mean

    def error(self, point: int, error: float, size: float) -> float:
        """Bound the error of the product with a matrix of an error and a Frobenius norm.

        |dy| <= max |s| |dx| (2 + |h|^2 / n), as each mean is that of a vector of norm sqrt(n) or
        |h|; both have sums of n terms, and four operations follow (Higham, eq. 3.13).
        """
        units = self.unit.shape[1]
        largest = float(self.scale[point].abs().amax())
        factor = 2 + float(self.unit[point].square().mean())
        return 1.01 * largest * factor * (error + (units + 4) * _U * size)


@dataclass(frozen=True)
class Link:
    """One layer of the chain: a Linear or a normalization."""

    call: Call
    layer: Tensor | Norm  # a Linear's weight, (n_out, units of its input)
    terms: tuple[Term, ...]  # its input; none: the network's input
    error: float = 0.0  # bound on the Frobenius norm of what rounding added to the weight

    @property
    def n_out(self) -> int:
        """The entries of its output at one point."""
        return self.layer.shape[0] if isinstance(self.layer, Tensor) else self.layer.unit.shape[1]


class Diagonals:
    """Diagonal matrices D at every point, and which of their entries count."""

    def __init__(self, slope: Tensor) -> None:
        self.slope = slope
        # A unit whose derivative is exactly zero drops out; NaN != 0, so a NaN unit never does.
        self.mask = slope != 0
        self.active = indices(self.mask)
        self.are_ones = bool((~self.mask | (slope == 1)).all())
        self.largest: list[float] = slope.abs().amax(dim=1).tolist()

    def times(self, point: int, matrix: Tensor, rows: Tensor | None) -> Tensor:
        """Return D times a matrix that has the rows with some indices (None: all) of D's."""
        if self.are_ones and rows is self.active[point]:
            return matrix
        slope = self.slope[point]
        slope = slope if rows is None else slope.index_select(0, rows)
        return matrix * slope.unsqueeze(1)


def indices(mask: Tensor) -> list[Tensor | None]:
    """Return where each row of a mask is true; None where all of it is."""
    counts = mask.sum(dim=1).tolist()
    places = torch.split(mask.nonzero()[:, 1], counts)
    return [
        None if count == mask.shape[1] else index
        for count, index in zip(counts, places, strict=True)
    ]


def pulled(links: Sequence[Link], cotangents: Mapping[Call, Tensor]) -> Tensor:
    """Return the sum of u^T J over some calls at every point, (points, n_in).

    Each u has shape (points, n_out); the columns of J are those of the first links' weights.
    """
    waiting: dict[int, Tensor] = {}
    total: Tensor | None = None
    for index in reversed(range(len(links))):
        link = links[index]
        here = [waiting.pop(index, None), cotangents.get(link.call)]
        given = [one for one in here if one is not None]
        if not given:
            continue
        row = given[0] if len(given) == 1 else given[0] + given[1]
        row = row @ link.layer if isinstance(link.layer, Tensor) else link.layer.transposed(row)
        if not link.terms:
            total = row if total is None else total + row
        for term in link.terms:
            part = row * term.slope
            before = waiting.get(term.parent)
            waiting[term.parent] = part if before is None else before + part
    assert total is not None
    return total


def root_groups(links: Sequence[Link]) -> list[list[int]]:
    """Return the links that see the network's input, those whose outputs meet together."""
    roots: list[frozenset[int]] = []
    groups: list[set[int]] = []
    for index, link in enumerate(links):
        seen = frozenset({index}) if not link.terms else frozenset[int]()
        seen = seen.union(*(roots[term.parent] for term in link.terms))
        roots.append(seen)
        joined = [group for group in groups if group & seen]
        groups = [group for group in groups if not group & seen]
        groups.append(set(seen).union(*joined))
    return [sorted(group) for group in groups]


def dominating(links: Sequence[Link]) -> list[bool]:
    """Return which links' outputs all later ones pass that depend on them, and some do.

    The products behind such a link have the rank of its output, and may be written in a basis of
    its own: nothing that is added to them was written in an earlier one.
    """
    found = []
    for index in range(len(links)):
        behind = {index}
        is_passed = True
        for later in range(index + 1, len(links)):
            parents = {term.parent for term in links[later].terms}
            if parents & behind:
                is_passed &= parents <= behind
                behind.add(later)
        found.append(is_passed and len(behind) > 1)
    return found
