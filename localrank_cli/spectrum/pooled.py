"""The mean of the Jacobians and of their squares over all points, for `--pooled`.

E[J^T J] is never formed: its eigenvalues are the squared singular values of all Jacobians stacked
into one tall matrix, whose triangular factor is as small. They are as exact as an SVD's, where
eigenvalues would lose all that is under 1e-8 of the largest.

Sums run over fixed blocks of `BLOCK_POINTS` points in order of index, then over the blocks. So they
are the same numbers in the same order however the points were divided among processes, whose
boundaries fall on those of blocks.

A layer that is entered through the triangular factor R of its weight W = Q R (`layers.triangle`)
has Jacobians Q^T J in place of J. Q is the same at every point, so that the mean and the stack have
the singular values of those of J. A factor that differs between points (`jacobian.chain`,
`jacobian.row_space`) cannot be used, and the engine uses none for Jacobians to be added.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from localrank_cli.errors import BudgetError, LayerError, readable
from localrank_cli.jacobian.blocks import BLOCK_POINTS, AnyPortion, PartPortion, Portion
from localrank_cli.layers.capture import Call
from localrank_cli.layers.positions import ALL, EACH, Positions
from localrank_cli.spectrum.svd import singular_values

# Columns of a whole source, above which its pooled matrices are out of reach (512 MiB each).
MOST_COLUMNS = 8192
_DOUBLE = 8  # bytes


@dataclass(frozen=True)
class Block:
    """Sums over the Jacobians of some points of one call."""

    total: Tensor  # (r, c), float64: the sum of the Jacobians
    rows: Tensor  # (at most c, c), float64: R with R^T R the sum of J^T J
    count: int  # Jacobians in it


@dataclass(frozen=True)
class PooledSpectrum:
    """The spectra of the two pooled matrices of one layer."""

    mean: Tensor  # singular values of E[J], descending, float64, CPU
    active: Tensor  # square roots of the eigenvalues of E[J^T J], likewise
    rounding: float  # how far each of them may be off
    shape: tuple[int, int]  # n_out and columns of each Jacobian


class _Rows:
    """Rows, reduced to their triangular factor when they are many.

    When they are reduced depends on their number alone.
    """

    def __init__(self) -> None:
        self._pieces: list[Tensor] = []
        self._count = 0

    def add(self, rows: Tensor) -> None:
        """Add rows, which are kept as they are until they are many."""
        self._pieces.append(rows)
        self._count += rows.shape[0]
        if self._count >= 2 * rows.shape[1]:
            self._reduce()

    def reduced(self) -> Tensor:
        """Return at most as many rows as there are columns."""
        if self._count > self._pieces[0].shape[1]:
            self._reduce()
        return torch.cat(self._pieces)

    def _reduce(self) -> None:
        stack = torch.cat(self._pieces)
        self._pieces.clear()  # no more than one copy is held while the QR works
        self._pieces = [torch.linalg.qr(stack, mode="r").R]
        self._count = self._pieces[0].shape[0]


class _Sums:
    """Sums that grow, in the order in which they are given."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._rows = _Rows()
        self.count = 0  # Jacobians

    def add(self, block: Block) -> None:
        """Add the sums over further Jacobians."""
        self._total = block.total.clone() if self._total is None else self._total.add_(block.total)
        self._rows.add(block.rows)
        self.count += block.count

    def block(self) -> Block:
        """Return the sums so far, of one Jacobian at least."""
        assert self._total is not None
        return Block(self._total, self._rows.reduced(), self.count)


@dataclass(frozen=True)
class PoolShape:
    """The Jacobians of one call that are added."""

    n_rows: int  # may be fewer than the layer's, see `layers.triangle`
    n_columns: int
    n_parts: int  # of each point

    def n_bytes(self, n_points: int, *, keeps_blocks: bool) -> int:
        """Return the bytes that the sums over some points take at most."""
        blocks = -(-n_points // BLOCK_POINTS)
        if keeps_blocks:
            rows = min(self.n_parts * BLOCK_POINTS * self.n_rows, self.n_columns)
            kept = blocks * (self.n_rows + rows)
        else:
            kept = self._held(n_points)
        held = kept + self._held(BLOCK_POINTS) + self._held(1)
        return held * self.n_columns * _DOUBLE

    @property
    def working_bytes(self) -> int:
        """Bytes for one QR, which copies its matrix twice, and for a Jacobian in float64."""
        most = 2 * self.n_columns + max(self.n_rows, self.n_columns)
        return (2 * most + self.n_rows) * self.n_columns * _DOUBLE

    def _held(self, n_points: int) -> int:
        """Return the rows of the sums over some points: of the total, and of the stack."""
        stacked = n_points * self.n_parts * self.n_rows
        return self.n_rows + min(stacked, 2 * self.n_columns + max(self.n_rows, self.n_columns))


def pooled_bytes(
    shapes: Mapping[tuple[str, Call], PoolShape],
    positions: Positions,
    n_points: int,
    memory: int,
    *,
    keeps_blocks: bool,
) -> int:
    """Return the bytes of all sums over points; at most half of the budget.

    Args:
        shapes: By source and layer.
        positions: Whose Jacobians they are.
        n_points: How many points this process adds up.
        memory: The budget in bytes.
        keeps_blocks: Whether each block is kept, and not only the sum over all.

    Raises:
        BudgetError: If they take more.
        LayerError: If the Jacobians of whole sources have too many columns.
    """
    _check_columns(positions, shapes)
    sizes = {
        name: shape.n_bytes(n_points, keeps_blocks=keeps_blocks) for name, shape in shapes.items()
    }
    needed = sum(sizes.values()) + max(shape.working_bytes for shape in shapes.values())
    if 2 * needed > memory:
        largest = max(sizes, key=sizes.__getitem__)
        (source, call), shape = largest, shapes[largest]
        raise BudgetError(
            f"--pooled: the sums over points need {readable(needed)}, which is more than half of"
            f" the budget of {readable(memory)}; the largest are those of layer {call.label!r}"
            f"{f' with respect to {source}' if source else ''}, with Jacobians of"
            f" {shape.n_rows} x {shape.n_columns}.",
            "Choose fewer --layers or sources (--wrt), or single --positions such as last, whose"
            f" Jacobians are smaller; or give at least --memory {-(-2 * needed // 2**20)}MiB,"
            " if the machine has that much.",
        )
    return needed


def _check_columns(positions: Positions, shapes: Mapping[tuple[str, Call], PoolShape]) -> None:
    if positions.kind not in (ALL, EACH):
        return
    for (_, call), shape in shapes.items():
        if shape.n_columns > MOST_COLUMNS:
            raise LayerError(
                f"--pooled with --positions {positions}: layer {call.label!r} has Jacobians with"
                f" {shape.n_columns} columns, and pooled matrices have at most {MOST_COLUMNS}.",
                "Choose --positions same or last, whose Jacobians have the features of one position"
                " as columns, or a smaller source with --wrt.",
            )


class Pool:
    """The sums over the Jacobians of one call, which come in order of point and position.

    Args:
        shape: Of the Jacobians.
        keeps_blocks: Whether to keep each block, for a sum with those of other processes.
    """

    def __init__(self, shape: PoolShape, *, keeps_blocks: bool) -> None:
        self._shape, self._keeps_blocks = shape, keeps_blocks
        self._kept: list[Block] = []
        self._whole = _Sums()
        self._block, self._index = _Sums(), 0  # the current block
        self._point = _Sums()
        self._is_sound = True  # whether all Jacobians of the current point so far are finite

    def add(self, portion: AnyPortion, values: Tensor) -> None:
        """Add the Jacobians of a portion, without points where one is not finite.

        `values` are the singular values of all points, (points * parts, r), NaN if not finite.
        """
        # The engine forms no chain for pooled Jacobians, and one that is too large to hold has sums
        # that are too large, too: half of the budget holds ten of its size, a sixth of it one.
        assert isinstance(portion, Portion | PartPortion)
        finite = torch.isfinite(values[:, 0]).view(-1, self._shape.n_parts)
        first = portion.first if isinstance(portion, PartPortion) else 0
        held = portion.jacobians
        by_part = held if isinstance(portion, PartPortion) else held.unsqueeze(1)
        for offset, part in product(range(by_part.shape[0]), range(by_part.shape[1])):
            point = portion.start + offset
            self._enter(point, first + part)
            self._is_sound &= bool(finite[point, first + part])
            if self._is_sound:
                jacobian = by_part[offset, part].to(torch.float64, copy=True)
                self._point.add(Block(jacobian, jacobian, 1))
                if self._point.count == self._shape.n_parts:
                    self._block.add(self._point.block())

    def _enter(self, point: int, part: int) -> None:
        if point // BLOCK_POINTS != self._index:
            self._close()
            self._index = point // BLOCK_POINTS
        if part == 0:
            self._point, self._is_sound = _Sums(), True

    def _close(self) -> None:
        if not self._block.count:
            return
        block = self._block.block()
        self._block = _Sums()
        if self._keeps_blocks:
            self._kept.append(block)
        else:
            self._whole.add(block)

    def blocks(self) -> tuple[Block, ...]:
        """Return the sums over each block with a point that counts, or one over all of them."""
        self._close()
        if self._keeps_blocks:
            return tuple(self._kept)
        return (self._whole.block(),) if self._whole.count else ()


def pooled_spectrum(
    blocks: Iterable[Block], n_out: int, precision: torch.dtype
) -> PooledSpectrum | None:
    """Return the spectra of the means over all points of some blocks, in order; None of none.

    The mean of m Jacobians that are each off by max(n_out, n_in) eps of their norm (see
    `svd.rounding`; eps is that of `precision`) is off by no more than that of the root mean square
    F of their Frobenius norms, and the sum of m terms in float64 adds at most m u F. The stack, a
    matrix with Frobenius norm sqrt(m) F, and its QRs are off by as much, divided by sqrt(m).
    """
    sums = _Sums()
    for block in blocks:
        sums.add(block)
    if not sums.count:
        return None
    whole, count = sums.block(), sums.count
    columns = whole.total.shape[1]
    norm = float(torch.linalg.vector_norm(whole.rows)) / count**0.5
    longest = max(n_out, columns) * torch.finfo(precision).eps
    return PooledSpectrum(
        mean=singular_values(whole.total / count),
        active=singular_values(whole.rows / count**0.5),
        rounding=(longest + count * torch.finfo(torch.float64).eps) * norm,
        shape=(n_out, columns),
    )
