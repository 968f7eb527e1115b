"""The forms of the engine's Jacobians: whole, in blocks if too large to hold, or as a chain."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from localrank_cli.jacobian.batch import Batch
from localrank_cli.jacobian.chain import Chain
from localrank_cli.jacobian.local import LocalJacobian
from localrank_cli.jacobian.metric_factor import IDENTITY, MetricFactor
from localrank_cli.jacobian.routes import pushforward, unit_rows
from localrank_cli.layers.capture import Call
from localrank_cli.layers.survey import CallRecord

# Sums over points run over blocks of this many in order of index, and no portion crosses one.
BLOCK_POINTS = 8


@dataclass(frozen=True)
class Portion:
    """Jacobians of one call at some consecutive points, held whole."""

    record: CallRecord
    start: int  # index of the first point
    # (points, n_out, n_in), on the model's device; fewer rows, see `jacobian.shortened`, or fewer
    # columns, see `Batch.error`
    jacobians: Tensor
    finite: Tensor  # (points,) bool: no non-finite pre-activation here or before
    error: float = 0.0  # as in `Batch`


@dataclass(frozen=True)
class BlockPortion:
    """The Jacobian of one call at one point, too large to hold."""

    record: CallRecord
    start: int  # index of the point
    blocks: Callable[[], Iterator[Tensor]]  # each (some of the longer side, shorter side)
    finite: Tensor  # (1,) bool: as in `Portion`
    error: float = 0.0  # as in `Portion`


@dataclass(frozen=True)
class ChainPortion:
    """All chosen calls at some consecutive points, as products of weights and diagonals."""

    chain: Chain
    start: int  # index of the first point
    finite: dict[Call, Tensor]  # (points,) bool: as in `Portion`


@dataclass(frozen=True)
class PartPortion:
    """Jacobians of single positions of one call at some consecutive points."""

    record: CallRecord
    start: int  # index of the first point
    first: int  # index of the first position of each point
    jacobians: Tensor  # (points, positions, r, c); r may be fewer, see `layers.triangle`
    finite: Tensor  # (points,) bool: as in `Portion`


@dataclass(frozen=True)
class PartBlockPortion:
    """The Jacobian of one position of one call at one point, too large to hold."""

    record: CallRecord
    start: int  # index of the point
    first: int  # index of the position
    blocks: Callable[[], Iterator[Tensor]]  # as in `BlockPortion`
    finite: Tensor  # (1,) bool: as in `Portion`


@dataclass(frozen=True)
class LocalPortion:
    """Jacobians of some calls at some consecutive points, most of whose entries are zero."""

    records: tuple[CallRecord, ...]
    start: int  # index of the first point
    jacobians: Mapping[Call, Sequence[LocalJacobian]]  # of every point
    finite: Mapping[Call, Tensor]  # (points,) bool: as in `Portion`
    errors: Mapping[Call, float]  # as in `Portion`


AnyPortion = Portion | BlockPortion | ChainPortion | PartPortion | PartBlockPortion | LocalPortion


@dataclass(frozen=True)
class BlockPlan:
    """How to walk through one Jacobian at one point.

    The Gram matrix of the shorter side is a sum over blocks of the longer one: of rows for a tall
    Jacobian, of columns for a wide one. Reverse mode gives rows as they come, forward mode columns;
    the other mode has to go through all its directions again for each block.
    """

    along: Literal["rows", "columns"]  # the longer side, which is divided
    mode: Literal["forward", "reverse"]
    size: int  # rows or columns in a block

    @property
    def is_direct(self) -> bool:
        """Whether the mode's own directions run along the divided side."""
        return (self.along == "rows") == (self.mode == "reverse")


def plan_blocks(n_out: int, n_in: int, itemsize: int, budget: int, forward: bool) -> BlockPlan:
    """Return the blocks and the mode with the fewest passes; `budget` is the bytes of one block."""
    long_side, short_side = max(n_out, n_in), min(n_out, n_in)
    size = max(1, min(long_side, budget // (short_side * itemsize)))
    passes = -(-long_side // size)
    if n_in <= n_out:
        forward_cost, reverse_cost = passes * n_in, n_out
    else:
        forward_cost, reverse_cost = n_in, passes * n_out
    mode: Literal["forward", "reverse"] = (
        "forward" if forward and forward_cost <= reverse_cost else "reverse"
    )
    return BlockPlan("rows" if n_in <= n_out else "columns", mode, size)


def count_block_passes(plan: BlockPlan, n_out: int, n_in: int) -> int:
    """Return the directions or rows of one walk."""
    own = n_in if plan.mode == "forward" else n_out
    return own if plan.is_direct else own * -(-max(n_out, n_in) // plan.size)


def without_identity(
    walk: Callable[[], Iterator[Tensor]],
    plan: BlockPlan,
    rows: Tensor,
    n_in: int,
    metric: MetricFactor | None = None,
) -> Iterator[Tensor]:
    """Yield the blocks of J - 1 in place of those of J, or of (J - 1) L in place of J L.

    `rows` are the entries of the output among those of the varied tensor, one for each row of J,
    and `n_in` the columns of J or J L.
    """
    start, own = 0, metric or IDENTITY
    columns = torch.arange(n_in, device=rows.device)
    for one in walk():
        span = slice(start, start + one.shape[0])
        if plan.along == "rows":
            yield one - own.part(rows[span], columns, one.dtype)
        else:
            yield one - own.part(rows, columns[span], one.dtype).mT
        start += one.shape[0]


def block(batch: Batch, record: CallRecord, plan: BlockPlan, start: int, chunk: int) -> Tensor:
    """Return the block of one call's Jacobian, at the only point of a batch, from `start` on.

    The divided side comes first: (rows, n_in), or the transposed columns (columns, n_out). `chunk`
    directions are computed at a time.
    """
    span = start, min(start + plan.size, max(record.numel, batch.n_in))
    if plan.mode == "forward":
        return _forward_block(batch, record, plan, span, chunk)
    return _reverse_block(batch, record, plan, span, chunk)


def _forward_block(
    batch: Batch, record: CallRecord, plan: BlockPlan, span: tuple[int, int], chunk: int
) -> Tensor:
    start, stop = span
    if plan.is_direct:
        block = batch.varied.new_empty(stop - start, record.numel)
        for low in range(start, stop, chunk):
            high = min(low + chunk, stop)
            directions = unit_rows(low, high, batch.varied)
            block[low - start : high - start] = pushforward(batch, [record.call], directions)[0][
                :, 0
            ]
        return block
    block = batch.varied.new_empty(stop - start, batch.n_in)
    for low in range(0, batch.n_in, chunk):
        high = min(low + chunk, batch.n_in)
        directions = unit_rows(low, high, batch.varied)
        tangents = pushforward(batch, [record.call], directions)[0][:, 0]
        block[:, low:high] = tangents[:, start:stop].mT
    return block


def _reverse_block(
    batch: Batch, record: CallRecord, plan: BlockPlan, span: tuple[int, int], chunk: int
) -> Tensor:
    start, stop = span
    varied = batch.varied.detach().requires_grad_(True)
    with torch.enable_grad():
        (output,) = batch.outputs(varied, [record.call])
    if plan.is_direct:
        block = batch.varied.new_empty(stop - start, batch.n_in)
        for low in range(start, stop, chunk):
            high = min(low + chunk, stop)
            block[low - start : high - start] = _rows(output, varied, low, high)
            batch.advance(high - low)
        return block
    block = batch.varied.new_empty(stop - start, record.numel)
    for low in range(0, record.numel, chunk):
        high = min(low + chunk, record.numel)
        block[:, low:high] = _rows(output, varied, low, high)[:, start:stop].mT
        batch.advance(high - low)
    return block


def _rows(output: Tensor, varied: Tensor, low: int, high: int) -> Tensor:
    if not output.requires_grad:  # a layer of zero weight beside the first, for example
        return varied.new_zeros(high - low, varied.shape[1])
    cotangents = unit_rows(low, high, output).unsqueeze(1)
    if high - low == 1:
        (row,) = torch.autograd.grad(output, varied, cotangents[0], retain_graph=True)
        return row
    (rows,) = torch.autograd.grad(
        output, varied, cotangents, retain_graph=True, is_grads_batched=True
    )
    return rows[:, 0]
