"""The chain route: Jacobians as products of weights, diagonal matrices and normalizations.

J_l = W_l D J_parent where an activation is between two layers, and a sum of such terms where a skip
connection or a gate is. No direction has to be pushed through the network.

Reduction to the row space of the first layer, W_1^T = Q R, is exact here because the first layer is
the sole consumer of the input: J_l = M_l Q^T with M_l = W_l D ... R^T has the same singular values.
Several first layers whose outputs meet are reduced together.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from localrank_cli.jacobian.links import Link, Norm, dominating, indices, root_groups
from localrank_cli.layers.capture import Call
from localrank_cli.threads import one_thread

_U = 2.0**-53  # unit roundoff of float64
# Rows of R without pivoting that small may be what is left of a first layer of low rank.
_SMALL = 1e-3
# What is left of a first layer of low rank is the rounding of its weights, 6e-8 in float32.
_NEXT_TO_NOTHING = 1e-6
# Its square, relative to the least of the large values and the largest, is the error of singular
# values that are computed in two parts.
_COUPLED = 1e-10
# Entries of first layers up to which threads that wait for one another do not pay.
_LIGHT = 2**20
# Frobenius norms between these have squares and inverses in a double's range.
_SMALLEST, _LARGEST = 1e-70, 1e70


@dataclass(frozen=True)
class Factor:
    """A matrix with the singular values of one Jacobian at one point, zeros apart."""

    call: Call
    matrix: Tensor  # (n_out, w), w at most n_in
    error: float  # bound on the Frobenius norm of what rounding added, see `Chain.factors`
    # (n_out, h): columns whose span holds the large left singular vectors, where the first layer
    # has h large singular values and others that are next to nothing; None: nothing is known
    large: Tensor | None = None


@dataclass(frozen=True)
class FactorSize:
    """What the factor of one call takes at one point."""

    width: int  # columns of the matrix
    operations: float  # of the products since the factor before it
    is_same: bool = False  # at every point, so that it is computed once


@dataclass(frozen=True)
class Product:
    """Some rows of the Jacobian of a link's output or input, the others being zero."""

    matrix: Tensor  # (rows, w)
    rows: Tensor | None  # indices; None: all
    error: float  # as in Factor
    size: float  # Frobenius norm, or a bound on it
    large: Tensor | None = None  # as in Factor


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
        # A gather of columns is slow.
        self._columns = [
            link.layer.mT.contiguous() if isinstance(link.layer, Tensor) and link.terms else None
            for link in links
        ]
        self._norms = [
            float(torch.linalg.matrix_norm(link.layer)) if isinstance(link.layer, Tensor) else 0.0
            for link in links
        ]
        self._narrows = dominating(links)
        self._rows_behind = [self._most_rows_behind(index) for index in range(len(links))]
        self._used = [self._used_rows(index) for index in range(len(links))]

    @cached_property
    def _roots(self) -> dict[int, Product]:
        """The first layers in a basis of their rows, by index."""
        found: dict[int, Product] = {}
        for group in root_groups(self._links):
            spaces = _row_spaces([self._links[index] for index in group])
            found |= dict(zip(group, spaces, strict=True))
        return found

    @cached_property
    def _squares(self) -> dict[int, "Square | None"]:
        return {
            index: square_of(root) for index, root in self._roots.items() if self._may_narrow(index)
        }

    def prepare(self) -> None:
        """Reduce the first layers, which every point needs: before several threads do."""
        _ = self._squares

    @property
    def has_norms(self) -> bool:
        """Whether a normalization is among the links."""
        return any(isinstance(link.layer, Norm) for link in self._links)

    def first_layers(self) -> dict[Call, Tensor]:
        """Return the Jacobians that are a weight itself, (n_out, n_in), the same at every point."""
        return {
            link.call: self._rows(link.call, link.layer)
            for link in self._links
            if isinstance(link.layer, Tensor) and not link.terms and link.call in self._wanted
        }

    def factors(
        self, point: int, calls: frozenset[Call] | None = None, *, squares: bool = True
    ) -> Iterator[Factor]:
        """Yield a matrix with the Jacobian's singular values for each wanted call, at one point.

        First layers are left out. With u = 2^-53 and fl(A B) = A B + E, |E| <= a u |A|_F |B|_F (a
        terms in each sum, Higham, Accuracy and Stability, eq. 3.13), and a Householder QR of a x w
        whose R^T is that of a matrix within 8 a w u |P|_F (Higham, Thm. 19.4, with its constant;
        measured errors are far below), the error e of M obeys

            e_l = |W_l|_F (e_in + (8 a w + a) u |P|_F),    e_in = sum |d|_max (e_parent + u |M|_F),

        and u times the norms of two terms more for their sum. Autograd's own product has an error
        of the same order. `point` is an index in the batch. With `squares`, for rows of a first
        layer a Cholesky factor takes the place of R^T where its bound is no larger, see `Square`:
        for those who take the bound into account, as its error may come close to it, while that of
        a QR is far below.

        Yields:
            The factors, parents before children.
        """
        wanted = self._wanted if calls is None else calls
        done: dict[int, Product] = {}
        for index in self._needed(wanted):
            link = self._links[index]
            if not link.terms:
                found = self._roots[index]
            else:
                inner = self._input(index, point, done)
                whole = None
                if link.call in wanted:
                    narrow = _narrowed(inner, link.n_out)
                    whole = self._rows_of(index, point, narrow, None)
                    yield self._factor(link.call, whole)
                    whole = whole if narrow is inner else None
                found = self._output(index, point, inner) if whole is None else whole
            square = self._squares.get(index) if squares else None
            done[index] = self._handed_on(index, point, found, square)

    def sizes(self, point: int) -> dict[Call, FactorSize]:
        """Return what each wanted call takes at a point, from the units that are active there."""
        widths: dict[int, int] = {}
        found, further = {}, 0.0
        for index in self._needed(self._wanted):
            link = self._links[index]
            n_out = link.n_out
            if not link.terms:
                count, width = 0, self._roots[index].matrix.shape[1]
            else:
                counts = [self._count(index, k, point) for k in range(len(link.terms))]
                count, width = max(counts), min(widths[term.parent] for term in link.terms)
                if isinstance(link.layer, Norm):
                    further += 6.0 * n_out * width
                else:
                    if count < n_out:
                        width = max(1, min(width, count))
                    further += 2.0 * n_out * count * width
            if link.call in self._wanted:
                is_first = not link.terms
                columns = link.layer.shape[1] if isinstance(link.layer, Tensor) else 0
                found[link.call] = FactorSize(columns if is_first else width, further, is_first)
                further = 0.0
            rows = self._used[index]
            used = None if rows is None else rows[point]
            behind = self._rows_behind[index]
            if used is not None and self._narrows[index] and used.numel() < min(width, behind):
                further += 2.0 * width * used.numel() ** 2
                width = max(1, used.numel())
            widths[index] = width
        return found

    def _count(self, index: int, term: int, point: int) -> int:
        diagonals = self._links[index].terms[term].diagonals
        active = diagonals.active[point]
        return diagonals.slope.shape[1] if active is None else active.numel()

    def _rows(self, call: Call, matrix: Tensor) -> Tensor:
        rows = self._picked.get(call)
        return matrix if rows is None else matrix.index_select(0, rows)

    def _used_rows(self, index: int) -> list[Tensor | None] | None:
        """Return the rows of a link's output that later links see, by point; None: no link does."""
        terms = [term for link in self._links for term in link.terms if term.parent == index]
        if len(terms) < 2:
            return terms[0].diagonals.active if terms else None
        masks = torch.stack([term.diagonals.mask for term in terms])
        if torch.equal(masks, masks[:1].expand_as(masks)):
            return terms[0].diagonals.active
        return indices(masks.any(dim=0))

    def _input(self, index: int, point: int, done: Mapping[int, Product]) -> Product:
        """Return the Jacobian of a link's input."""
        terms = self._links[index].terms
        parts = [self._term(index, k, point, done[term.parent]) for k, term in enumerate(terms)]
        if len(parts) == 1:
            return parts[0]
        units = terms[0].slope.shape[1]
        whole = [_spread(part, units) for part in parts]
        total, large = whole[0].matrix, whole[0].large
        for part in whole[1:]:
            total = total + part.matrix
            if large is not None and part.large is not None:
                large = large + part.large
        size = sum(part.size for part in parts)
        error = sum(part.error for part in parts) + (len(parts) - 1) * _U * size
        return Product(total, None, error, size, large)

    def _term(self, index: int, k: int, point: int, parent: Product) -> Product:
        diagonals = self._links[index].terms[k].diagonals
        largest = diagonals.largest[point]
        active = diagonals.active[point]
        if parent.rows is not active and active is not None:
            parent = _picked(parent, active)
        matrix = diagonals.times(point, parent.matrix, parent.rows)
        large = parent.large
        if large is not None:
            large = diagonals.times(point, large, parent.rows)
        error = largest * (parent.error + _U * parent.size)
        return Product(matrix, parent.rows, error, largest * parent.size, large)

    def _factor(self, call: Call, found: Product) -> Factor:
        large = None if found.large is None else self._rows(call, found.large)
        return Factor(call, self._rows(call, found.matrix), found.error, large)

    def _output(self, index: int, point: int, inner: Product) -> Product:
        """Return the rows of the Jacobian of a link's output that later links see."""
        used = self._used[index]
        if used is None:
            return inner  # no link sees it
        return self._rows_of(index, point, inner, used[point])

    def _rows_of(self, index: int, point: int, inner: Product, rows: Tensor | None) -> Product:
        """Return the rows with some indices (None: all) of the Jacobian of a link's output."""
        layer = self._links[index].layer
        if isinstance(layer, Tensor):
            return self._affine(index, inner, rows)
        whole = _spread(inner, layer.unit.shape[1])
        matrix = layer.times(point, whole.matrix, rows)
        large = None if whole.large is None else layer.times(point, whole.large, rows)
        error = layer.error(point, inner.error, inner.size)
        return Product(matrix, rows, error, _norm(matrix), large)

    def _affine(self, index: int, inner: Product, rows: Tensor | None) -> Product:
        """Return the product with a weight, of whose rows some are wanted."""
        columns = self._columns[index]
        assert columns is not None
        if inner.rows is not None:
            columns = columns.index_select(0, inner.rows)
        if rows is not None:
            columns = columns.index_select(1, rows)
        matrix = columns.mT @ inner.matrix
        large = None if inner.large is None else columns.mT @ inner.large
        error = self._norms[index] * (inner.error + columns.shape[0] * _U * inner.size)
        return Product(matrix, rows, error, _norm(matrix), large)

    def _handed_on(
        self, index: int, point: int, found: Product, square: "Square | None"
    ) -> Product:
        """Return what later links see of a link's output, in as few columns as may be."""
        used = self._used[index]
        if used is None:
            return found
        rows, behind = used[point], self._rows_behind[index]
        if rows is not None and found.rows is None:
            if square is not None and rows.numel() < min(found.matrix.shape[1], behind):
                short = square.narrowed(found, rows)
                if short is not None:
                    return short
            found = _picked(found, rows)
        return _narrowed(found, behind) if self._narrows[index] else found

    def _may_narrow(self, index: int) -> bool:
        """Return whether some points may have fewer rows of a first layer, in a basis of these."""
        has_fewer = any(rows is not None for rows in self._used[index] or ())
        return has_fewer and self._narrows[index]

    def _most_rows_behind(self, index: int) -> int:
        """Return the most rows of the links behind a link, up to those with bases of their own."""
        behind, most = {index}, 0
        for later in range(index + 1, len(self._links)):
            link = self._links[later]
            if any(term.parent in behind for term in link.terms):
                most = max(most, link.n_out)
                if not self._narrows[later]:
                    behind.add(later)
        return most

    def _needed(self, wanted: frozenset[Call]) -> list[int]:
        needed: set[int] = set()
        todo = [index for index, link in enumerate(self._links) if link.call in wanted]
        while todo:
            index = todo.pop()
            if index not in needed:
                needed.add(index)
                todo += [term.parent for term in self._links[index].terms]
        return sorted(needed)


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix))


def _picked(product: Product, rows: Tensor) -> Product:
    """Return a product with fewer rows: `rows` of the whole."""
    places = rows if product.rows is None else torch.searchsorted(product.rows, rows)
    large = None if product.large is None else product.large.index_select(0, places)
    matrix = product.matrix.index_select(0, places)
    return replace(product, matrix=matrix, rows=rows, large=large)


def _spread(product: Product, units: int) -> Product:
    """Return a product with all rows."""
    rows = product.rows
    if rows is None:
        return product

    def spread(matrix: Tensor) -> Tensor:
        """Return a matrix of all units, with zeros for those that are not in `rows`."""
        return matrix.new_zeros(units, matrix.shape[1]).index_copy_(0, rows, matrix)

    large = None if product.large is None else spread(product.large)
    return replace(product, matrix=spread(product.matrix), rows=None, large=large)


def _narrowed(product: Product, n_rows: int) -> Product:
    """Return a product in no more columns than it has rows, in another basis.

    Its rank is at most the number of its rows. Zeros by shape are exact; zeros left to the
    eigenvalues would have to go to the SVD. There are none where no matrix behind it, which have up
    to `n_rows`, has more rows than the product.
    """
    count, width = product.matrix.shape
    if count >= min(width, n_rows) or width == 1:
        return product
    if count == 0:
        return replace(product, matrix=product.matrix[:, :1], large=None)
    matrix = torch.linalg.qr(product.matrix.mT, mode="r").R.mT
    error = product.error + 8 * count * width * _U * product.size
    return replace(product, matrix=matrix, error=error)


@dataclass(frozen=True)
class Square:
    """The product of a first layer R^T with its transpose, of which each point needs a part.

    For some rows P, a x w, with A = P P^T, a Cholesky factor L has

        L L^T = A + E,    |E|_F <= 1.01 (w + a + 1) u |P|_F^2        (Higham, eq. 3.13, Thm. 10.3),

    and X = (A + E)^(1/2), Y = A^(1/2) are L and P in other orthonormal bases. As X^2 - Y^2 =
    X (X - Y) + (X - Y) Y, |X - Y|_F <= |E|_F / s, s being the least singular value of P. It is at
    least that of R, which is at least 1 / |R^-1|_F.
    """

    matrix: Tensor  # R^T R, (n_out, n_out)
    width: int  # w
    size: float  # a bound on |P|_F
    least: float  # a bound below s

    def narrowed(self, product: Product, rows: Tensor) -> Product | None:
        """Return some rows of the first layer in a basis of their own.

        None where there is no Cholesky factor, or a QR is more exact.
        """
        count = rows.numel()
        added = 1.01 * (self.width + count + 1) * _U * self.size**2 / self.least
        if count == 0 or added > 8 * count * self.width * _U * self.size:
            return None
        # Rows of rows are gathered faster than columns, and what is symmetric has both.
        part = self.matrix.index_select(0, rows).mT.index_select(0, rows)
        factor, failed = torch.linalg.cholesky_ex(part)
        if int(failed):
            return None
        large = None if product.large is None else product.large.index_select(0, rows)
        error = product.error + added
        return replace(product, matrix=factor, rows=rows, error=error, large=large)


def square_of(product: Product) -> Square | None:
    """Return R^T R of a first layer; None where it does not serve."""
    triangle = product.matrix.mT
    n = triangle.shape[0]
    is_triangle = n == triangle.shape[1] and torch.equal(triangle, triangle.triu())
    if not is_triangle or not _SMALLEST < product.size < _LARGEST:
        return None
    unit = torch.eye(n, dtype=triangle.dtype, device=triangle.device)
    inverse = _norm(torch.linalg.solve_triangular(triangle / product.size, unit, upper=True))
    # The inverse of another triangle, within n u |R|: too small by 1 - n u |R| |R^-1| at most.
    if not inverse < 1e-3 / (n * _U):
        return None
    least = product.size / (1.01 * inverse)
    return Square(product.matrix @ triangle, n, product.size, least)


def _row_spaces(links: Sequence[Link]) -> list[Product]:
    """Return the weights of some links in a basis of the rows of all of them."""
    weights = [link.layer for link in links if isinstance(link.layer, Tensor)]
    sizes = [_norm(weight) for weight in weights]
    stacked = weights[0] if len(weights) == 1 else torch.cat(weights)
    n_out, n_in = stacked.shape
    if n_out >= n_in:
        return [
            Product(weight, None, link.error, size)
            for weight, link, size in zip(weights, links, sizes, strict=True)
        ]
    with one_thread(stacked.numel() <= _LIGHT):
        triangle = torch.linalg.qr(stacked.mT, mode="r").R
    # What is off in one of them may come from the size of another.
    rounded = 8 * n_out * n_in * _U * _norm(stacked)
    large = _large_columns(triangle) if len(links) == 1 else None
    parts = torch.split(triangle.mT, [weight.shape[0] for weight in weights])
    return [
        Product(part, None, link.error + rounded, size, large)
        for part, link, size in zip(parts, links, sizes, strict=True)
    ]


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
