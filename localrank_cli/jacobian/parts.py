"""Jacobians of single positions: some entries of an output by some entries of the varied tensor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from localrank_cli.jacobian.batch import Batch
from localrank_cli.jacobian.metric_factor import MetricFactor
from localrank_cli.jacobian.routes import pushforward, unit_rows
from localrank_cli.layers.capture import Call
from localrank_cli.layers.positions import Parts
from localrank_cli.layers.survey import CallRecord


@dataclass(frozen=True)
class Passes:
    """How many directions give all Jacobians of the parts of one call at one point."""

    forward: int  # shared by all calls with the same columns
    reverse: int


def count_passes(parts: Parts, n_in: int) -> Passes:
    """Return the directions of each mode; n_in are the entries of the varied tensor."""
    forward = n_in if parts.columns is None else parts.columns.shape[1] * parts.columns.shape[2]
    return Passes(forward, parts.rows.shape[1] * parts.rows.shape[2])


def with_rows(batch: Batch, parts: Mapping[Call, Parts]) -> Batch:
    """Return the batch whose outputs are the rows of parts alone, (points, parts * r)."""
    device = batch.varied.device
    return replace(
        batch, picked={call: one.rows.flatten(1).to(device) for call, one in parts.items()}
    )


def forward_parts(
    batch: Batch, parts: Mapping[Call, Parts], records: Sequence[CallRecord], chunk: int
) -> list[Tensor]:
    """Return the Jacobians of parts by forward mode, `chunk` directions at a time.

    The batch is one of `with_rows`, and the calls have the same columns. Each result has shape
    (points, parts, r, c).
    """
    calls = [record.call for record in records]
    every = [parts[call] for call in calls]
    if every[0].columns is None:
        found: list[list[Tensor]] = [[] for _ in calls]
        for start in range(0, batch.n_in, chunk):
            stop = min(start + chunk, batch.n_in)
            tangents = pushforward(batch, calls, unit_rows(start, stop, batch.varied))
            for kept, tangent in zip(found, tangents, strict=True):
                kept.append(tangent.permute(1, 2, 0))
        joined = [torch.cat(kept, dim=2) for kept in found]
        shapes = [(batch.n_points, one.n_parts, one.n_rows, batch.n_in) for one in every]
        return [tensor.reshape(shape) for tensor, shape in zip(joined, shapes, strict=True)]
    columns = every[0].columns.to(batch.varied.device)
    n_columns = columns.shape[2]
    blocks = [
        batch.varied.new_empty(batch.n_points, one.n_parts, one.n_rows, n_columns) for one in every
    ]
    flat = columns.flatten(1)  # (points, parts * c)
    for start in range(0, flat.shape[1], chunk):
        stop = min(start + chunk, flat.shape[1])
        directions = _units(flat[:, start:stop], batch.varied)
        tangents = pushforward(batch, calls, directions)
        for block, tangent, one in zip(blocks, tangents, every, strict=True):
            _scatter(block, tangent, one, start)
    return blocks


def _scatter(block: Tensor, tangent: Tensor, parts: Parts, start: int) -> None:
    """Write J v of some directions, (directions, points, rows), into the parts they belong to."""
    n_columns = block.shape[3]
    rows = tangent.reshape(tangent.shape[0], tangent.shape[1], parts.rows.shape[1], parts.n_rows)
    for index in range(tangent.shape[0]):
        part, column = divmod(start + index, n_columns)
        own = part if parts.rows.shape[1] > 1 else 0
        block[:, part, :, column] = rows[index, :, own]


def reverse_parts(batch: Batch, parts: Parts, call: Call, chunk: int) -> Tensor:
    """Return the Jacobians of one call's parts by reverse mode, `chunk` rows at a time.

    The batch is one of `with_rows`; the result has shape (points, parts, r, c).
    """
    varied = batch.varied.detach().requires_grad_(True)
    with torch.enable_grad():
        (output,) = batch.outputs(varied, [call])
    n_rows, own = parts.n_rows, parts.rows.shape[1]
    columns = None if parts.columns is None else parts.columns.to(varied.device)
    width = batch.n_in if columns is None else columns.shape[2]
    block = varied.new_empty(batch.n_points, parts.n_parts, n_rows, width)
    total = output.shape[1]
    for start in range(0, total, chunk):
        stop = min(start + chunk, total)
        rows = pulled_rows(output, varied, start, stop, keep=stop < total)
        batch.advance(stop - start)
        for index in range(stop - start):
            part, row = divmod(start + index, n_rows)
            if columns is None:
                block[:, part, row] = rows[index]
            elif own > 1:
                block[:, part, row] = rows[index].gather(1, columns[:, part])
            else:
                of_all = rows[index].gather(1, columns.flatten(1))
                block[:, :, row] = of_all.reshape(batch.n_points, parts.n_parts, width)
    return block


def pulled_rows(output: Tensor, varied: Tensor, start: int, stop: int, *, keep: bool) -> Tensor:
    """Return some rows of the Jacobian, (rows, points, n_in)."""
    cotangents = unit_rows(start, stop, output).unsqueeze(1).expand(-1, *output.shape)
    if stop - start == 1:
        (rows,) = torch.autograd.grad(output, varied, cotangents[0], retain_graph=keep)
        return rows.unsqueeze(0)
    (rows,) = torch.autograd.grad(
        output, varied, cotangents, retain_graph=keep, is_grads_batched=True
    )
    return rows


def _units(entries: Tensor, like: Tensor) -> Tensor:
    """Return unit vectors, (directions, points, n_in); entries has shape (points, directions)."""
    directions = like.new_zeros(entries.shape[1], *like.shape)
    directions.scatter_(2, entries.mT.unsqueeze(2), 1)
    return directions


def subtract_identity(block: Tensor, parts: Parts, metric: MetricFactor | None) -> None:
    """Subtract the same entries of the identity, in place: J - 1 of an output shaped as the source.

    The block has shape (points, parts, r, c); with a metric it is J L, and becomes (J - 1) L.
    """
    rows = parts.rows.to(block.device)
    if metric is not None:
        columns = torch.arange(block.shape[3], device=block.device)
        for point, part in product(range(block.shape[0]), range(block.shape[1])):
            own = rows[point, part if rows.shape[1] > 1 else 0]
            block[point, part] -= metric.part(own, columns, block.dtype)
        return
    if parts.columns is None:
        index = rows.expand(-1, parts.n_parts, -1).unsqueeze(3)
        block.scatter_add_(3, index, block.new_full((), -1.0).expand(index.shape))
        return
    columns = parts.columns.to(block.device)
    block -= (rows.unsqueeze(3) == columns.unsqueeze(2)).to(block.dtype)
