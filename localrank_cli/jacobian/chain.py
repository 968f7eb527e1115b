"""The chain route: J_l = W_l D J_parent, a product of weights and diagonal matrices.

No direction has to be pushed through the network.

Reduction to the row space of the first layer, W_1^T = Q R, is exact here because the first layer is
the sole consumer of the input: J_l = M_l Q^T with M_l = W_l D ... R^T has the same singular values.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from localrank_cli.layers.capture import Call

_U = 2.0**-53  # unit roundoff of float64
# Rows of R without pivoting that small may be what is left of a first layer of low rank.
_SMALL = 1e-3
# What is left of a first layer of low rank is the rounding of its weights, 6e-8 in float32.
_NEXT_TO_NOTHING = 1e-6
# Its square, relative to the least of the large values and the largest, is the error of singular
# values that are computed in two parts.
_COUPLED = 1e-10


@dataclass(frozen=True)
class Link:
    """One Linear layer of the chain, or of a tree of them."""

    call: Call
    weight: Tensor  # (n_out, units of the parent)
    parent: int | None  # index of the link that feeds it; None: the input does
    slope: Tensor | None  # (points, units of the parent): the diagonal of D; None for the first
    error: float = 0.0  # bound on the Frobenius norm of what rounding added to the weight


@dataclass(frozen=True)
class Factor:
    """A matrix with the singular values of one Jacobian at one point, zeros apart."""

    call: Call
    matrix: Tensor  # (n_out, w), w at most n_in
    error: float  # bound on the spectral norm of what rounding added, see `Chain.factors`
    # (n_out, h): columns whose span holds the large left singular vectors, where the first layer
    # has h large singular values and others that are next to nothing; None: nothing is known
    large: Tensor | None = None


@dataclass(frozen=True)
class FactorSize:
    """What the factor of one call takes at one point."""

    width: int  # columns of the matrix
    operations: float  # of the products since the factor before it
    is_same: bool = False  # at every point, so that it is computed once


class Chain:
    """The links of a network at a batch of points, parents before children.

    Of each wanted call, `picked` gives the rows that are wanted; all of those not named.
    """

    def __init__(
        self,
        links: Sequence[Link],
        wanted: Sequence[Call],
        picked: Mapping[Call, Tensor] | None = None,
    ) -> None:
        self._links = tuple(links)
        self._picked = picked or {}
        self._wanted = frozenset(wanted)
        self._diagonals = [None if link.slope is None else _Diagonals(link.slope) for link in links]
        self._columns = [link.weight.mT.contiguous() for link in links]
        self._norms = [float(torch.linalg.matrix_norm(link.weight)) for link in links]
        self._roots = {
            index: _row_space(link.weight, link.error)
            for index, link in enumerate(links)
            if link.parent is None
        }

    def first_layers(self) -> dict[Call, Tensor]:
        """Return the Jacobians that are a weight itself, (n_out, n_in), the same at every point."""
        return {
            link.call: self._rows(link.call, link.weight)
            for link in self._links
            if link.parent is None and link.call in self._wanted
        }

    def factors(self, point: int, calls: frozenset[Call] | None = None) -> Iterator[Factor]:
        """Yield a matrix with the Jacobian's singular values for each wanted call, at one point.

        First layers are left out. With u = 2^-53 and fl(A B) = A B + E, |E| <= a u |A|_F |B|_F (a
        terms in each sum, Higham, Accuracy and Stability, eq. 3.13), and a Householder QR of a x w
        whose R^T is that of a matrix within 8 a w u |P|_F (Higham, Thm. 19.4, with its constant;
        measured errors are far below), the error e of M obeys

            e_l = |W_l|_F (|d|_max e_parent + (8 a w + a + 1) u |P|_F),   |P|_F <= |d|_max |M|_F.

        Autograd's own product has an error of the same order. `point` is an index in the batch.

        Yields:
            The factors, parents before children.
        """
        wanted = self._wanted if calls is None else calls
        done = dict(self._roots)
        for index in self._needed(wanted):
            link, diagonals = self._links[index], self._diagonals[index]
            if link.parent is None or diagonals is None:
                continue
            done[index] = self._step(index, diagonals, point, done[link.parent])
            if link.call in wanted:
                large = done[index].large
                yield Factor(
                    link.call,
                    self._rows(link.call, done[index].matrix),
                    done[index].error,
                    None if large is None else self._rows(link.call, large),
                )

    def sizes(self, point: int) -> dict[Call, FactorSize]:
        """Return what each wanted call takes at a point, from the units that are active there."""
        widths: dict[int, int] = {}
        found, further = {}, 0.0
        for index in self._needed(self._wanted):
            link, diagonals = self._links[index], self._diagonals[index]
            n_out, width = link.weight.shape
            if link.parent is None or diagonals is None:
                widths[index] = min(n_out, width)
            else:
                active = diagonals.active[point]
                count = width if active is None else active.numel()
                before = widths[link.parent]
                widths[index] = max(1, min(before, count))
                further += 2.0 * n_out * count * widths[index]
                # A QR is needed only where there are fewer rows than columns.
                further += 2.0 * before * count**2 if count < before else 0.0
            if link.call in self._wanted:
                is_first = link.parent is None
                width = width if is_first else widths[index]
                found[link.call] = FactorSize(width, further, is_first)
                further = 0.0
        return found

    def _rows(self, call: Call, matrix: Tensor) -> Tensor:
        rows = self._picked.get(call)
        return matrix if rows is None else matrix.index_select(0, rows)

    def _step(
        self, index: int, diagonals: "_Diagonals", point: int, parent: "_Product"
    ) -> "_Product":
        columns = self._columns[index]
        active = diagonals.active[point]
        if active is not None:
            if active.numel() == 0:
                return _Product(columns.new_zeros(columns.shape[1], 1), 0.0, 0.0)
            columns = columns.index_select(0, active)
        inner = diagonals.times(point, parent.matrix)
        large = None
        if parent.large is not None:
            large = columns.mT @ diagonals.times(point, parent.large)
        count, width = inner.shape
        largest = diagonals.largest[point]
        size = largest * parent.size
        terms = count + 1
        # Fewer units than columns: the rank is at most their number, and so is the width then.
        # Zeros by shape are exact; zeros left to the eigenvalues would have to go to the SVD.
        if count < width:
            inner = torch.linalg.qr(inner.mT, mode="r").R.mT
            terms += 8 * count * width
        matrix = columns.mT @ inner
        error = self._norms[index] * (largest * parent.error + terms * _U * size)
        return _Product(matrix, error, float(torch.linalg.vector_norm(matrix)), large)

    def _needed(self, wanted: frozenset[Call]) -> list[int]:
        needed: set[int] = set()
        for index, link in enumerate(self._links):
            if link.call in wanted:
                step: int | None = index
                while step is not None and step not in needed:
                    needed.add(step)
                    step = self._links[step].parent
        return sorted(needed)


@dataclass(frozen=True)
class _Product:
    matrix: Tensor  # (n_out, w)
    error: float  # as in Factor
    size: float  # Frobenius norm
    large: Tensor | None = None  # as in Factor


class _Diagonals:
    """The diagonals of D at every point, and which of their entries count."""

    def __init__(self, slope: Tensor) -> None:
        self.slope = slope
        # A unit whose derivative is exactly zero drops out; NaN != 0, so a NaN unit never does.
        active = slope != 0
        counts = active.sum(dim=1).tolist()
        units = torch.split(active.nonzero()[:, 1], counts)
        self.active = [
            None if count == slope.shape[1] else index
            for count, index in zip(counts, units, strict=True)
        ]
        self.are_ones = bool((~active | (slope == 1)).all())
        self.largest: list[float] = slope.abs().amax(dim=1).tolist()

    def times(self, point: int, matrix: Tensor) -> Tensor:
        """Return D times a matrix, the rows of the active units."""
        active = self.active[point]
        if active is not None:
            matrix = matrix.index_select(0, active)
        if self.are_ones:
            return matrix
        slopes = self.slope[point]
        slopes = slopes if active is None else slopes.index_select(0, active)
        return matrix * slopes.unsqueeze(1)


def _row_space(weight: Tensor, error: float) -> _Product:
    n_out, n_in = weight.shape
    size = float(torch.linalg.matrix_norm(weight))
    if n_out >= n_in:
        return _Product(weight, error, size)
    triangle = torch.linalg.qr(weight.mT, mode="r").R
    rounded = error + 8 * n_out * n_in * _U * size
    return _Product(triangle.mT, rounded, size, _large_columns(triangle))


def _large_columns(triangle: Tensor) -> Tensor | None:
    """Return h columns that R^T is made of up to next to nothing; None where there are no such.

    With W^T = Q R and R^T = U S V^T these are U_h S_h. Then W D ... R^T has the columns of
    W D ... U_h S_h, turned by V_h, and next to nothing beside them. R without pivoting may not
    show its rank, where the first inputs depend on each other: that costs time and no more.
    """
    norms = torch.linalg.vector_norm(triangle, dim=1)
    behind = norms.square().flip(0).cumsum(0).flip(0).sqrt()
    if not bool(behind[len(norms) // 2] < _SMALL * behind[0]):
        return None
    _, values, turned = torch.linalg.svd(triangle.mT)
    count = int((values > _NEXT_TO_NOTHING * values[0]).sum())
    if not 0 < 2 * count <= len(values):
        return None
    if not bool(values[count].square() <= _COUPLED * values[count - 1] * values[0]):
        return None
    large: Tensor = triangle.mT @ turned[:count].mT
    return large
