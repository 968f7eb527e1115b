"""Jacobians of convolutions, whose rows are zero outside what a position sees of the input.

Two entries of the input that no position of an output sees both have columns with disjoint
supports: their sum holds both, and one direction of forward mode gives it (Curtis, Powell and Reid,
1974). Entries of one channel are such a pair if they are as far apart as the longest side of a
receptive field.

The fields come from the modules' geometry (`layers.receptive`), and a network may do more than its
modules show. So J v is computed for random v, all entries at once, and compared with the rebuilt
Jacobian's: the mean square of the difference is the square of the Frobenius norm of what was
rebuilt wrong, which bounds the change of every singular value (Weyl).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from localrank_cli.jacobian.batch import Batch
from localrank_cli.jacobian.budget import groups_of
from localrank_cli.jacobian.routes import pushforward
from localrank_cli.layers.capture import Call
from localrank_cli.layers.receptive import Field, receptive_fields
from localrank_cli.layers.survey import CallRecord

if TYPE_CHECKING:
    from localrank_cli.jacobian.engine import Task

# With more directions, relative to n_in, what is saved does not pay for the checks.
_MAX_SHARE = 0.75
# What is rebuilt wrong is as large as the Jacobian itself, or rounding. The largest of six norms is
# under a third of the Frobenius norm three times in ten thousand if all of it is in one row, and
# practically never if it is spread.
_PROBES = 6
_WRONG_FACTOR = 3.0  # from the largest norm to the bound
# Columns of a block that are multiplied at once.
_PORTION = 256
# Costs in units of a multiplication and an addition in a product (17 ps), fitted to those of six
# convolutions with tiles of 1 to 16: of a tile, of an entry, and of a run of entries of one
# direction, which are next to each other in memory.
_TILE, _ENTRY, _RUN = 6e6, 650, 7500
_Box = tuple[tuple[int, int], ...]  # from and to, along each axis


@dataclass(frozen=True)
class Fold:
    """Which directions are pushed together: entries of a channel that are `steps` apart."""

    channels: int
    maps: tuple[int, ...]
    steps: tuple[int, ...]

    @classmethod
    def of(cls, channels: int, fields: Sequence[Field]) -> "Fold":
        """Return the fold that serves layers with some fields."""
        maps = fields[0].maps
        spans = [max(field.spans[axis] for field in fields) for axis in range(len(maps))]
        return cls(channels, maps, tuple(map(min, spans, maps)))

    @property
    def n_directions(self) -> int:
        """How many directions give all columns."""
        return self.channels * prod(self.steps)

    @property
    def n_passes(self) -> int:
        """How many passes are made, those of the checks among them."""
        return self.n_directions + _PROBES

    def directions(self, start: int, stop: int, like: Tensor) -> Tensor:
        """Return some directions, (stop - start, n_in)."""
        everything: _Box = tuple((0, length) for length in self.maps)
        owners = self.owners(everything).to(like.device)
        wanted = torch.arange(start, stop, device=like.device)
        return (owners.unsqueeze(0) == wanted.unsqueeze(1)).to(like.dtype)

    def place(self, box: _Box) -> _Box:
        """Return the first of the boxes of the input whose entries have the same directions."""
        return tuple(
            (low % step, low % step + high - low)
            for (low, high), step in zip(box, self.steps, strict=True)
        )

    def owners(self, box: _Box) -> Tensor:
        """Return the direction of every entry of a box of the input, in all channels, flat."""
        index = torch.arange(self.channels, device="cpu")
        for (low, high), step in zip(box, self.steps, strict=True):
            index = index.unsqueeze(-1) * step + torch.arange(low, high, device="cpu") % step
        return index.flatten()


@dataclass(frozen=True)
class LocalJacobian:
    """One Jacobian, as the outputs of the directions that were pushed together."""

    outputs: Tensor  # (directions, channels, *grid)
    fold: Fold
    field: Field

    @property
    def shape(self) -> tuple[int, int]:
        """N_out and n_in."""
        return self.outputs[0].numel(), self.fold.channels * prod(self.fold.maps)

    def gram(self) -> Tensor:
        """Return J^T J without its zeros by geometry; only the lower triangle counts."""
        n_in = self.shape[1]
        sides = self.fold.channels, *self.fold.maps
        total = self.outputs.new_zeros(*sides, *sides)
        for _, box, block in self._blocks(self._tile(squared=True)):
            spans = slice(None), *(slice(low, high) for low, high in box)
            part = total[*spans, *spans]
            part += _lower(block).view(part.shape)
        return total.view(n_in, n_in)

    def dense(self) -> Tensor:
        """Return J."""
        channels = self.outputs.shape[1]
        shape = channels, *self.field.grid, self.fold.channels, *self.fold.maps
        whole = self.outputs.new_zeros(shape)
        for tile, box, block in self._blocks(self._tile(squared=False)):
            rows = slice(None), *(slice(low, high) for low, high in tile)
            columns = slice(None), *(slice(low, high) for low, high in box)
            part = whole[*rows, *columns]
            part[...] = block.mT.reshape(part.shape)
        return whole.view(self.shape)

    def times(self, vectors: Tensor) -> Tensor:
        """Return J v for some v, (n_in, k), as (n_out, k)."""
        count = vectors.shape[1]
        inputs = vectors.view(self.fold.channels, *self.fold.maps, count)
        whole = self.outputs.new_zeros(self.outputs.shape[1], *self.field.grid, count)
        for tile, box, block in self._blocks(self._tile(squared=False)):
            rows = slice(None), *(slice(low, high) for low, high in tile)
            columns = slice(None), *(slice(low, high) for low, high in box)
            part = whole[rows]
            part[...] = (block.mT @ inputs[columns].reshape(-1, count)).view(part.shape)
        return whole.view(-1, count)

    def _blocks(self, size: int) -> Iterator[tuple[_Box, _Box, Tensor]]:
        """Yield tiles of the output, what they see, and J^T there: (columns, rows)."""
        ranges = [
            [(start, min(start + size, n)) for start in range(0, n, size)] for n in self.field.grid
        ]
        device = self.outputs.device
        # Many tiles see boxes of the same shape.
        owners: dict[object, Tensor] = {}
        hidden: dict[object, Tensor] = {}
        for tile in product(*ranges):
            box = self.field.box(tile)
            rows = slice(None), slice(None), *(slice(low, high) for low, high in tile)
            place = self.fold.place(box)
            if place not in owners:
                owners[place] = self.fold.owners(place).to(device)
            block = self.outputs[rows].index_select(0, owners[place])
            shape = self.fold.channels, *(high - low for low, high in box), *block.shape[1:]
            seen = self._seen(tile, box)
            if seen not in hidden:
                hidden[seen] = _hidden(seen, box).to(device)
            # Not a product with zero: what a direction gives elsewhere is another entry's.
            block = block.view(shape).masked_fill_(hidden[seen], 0)
            yield tile, box, block.view(prod(shape[: len(box) + 1]), -1)

    def _seen(self, tile: _Box, box: _Box) -> tuple[_Box, ...]:
        """Return what each position of a tile sees within the box, along each axis."""
        return tuple(
            tuple((first - low, last - low) for first, last in axis[start:stop])
            for axis, (start, stop), (low, _) in zip(self.field.axes, tile, box, strict=True)
        )

    def _tile(self, *, squared: bool) -> int:
        """Return the side of the tiles with which a Gram matrix (or only J) costs least."""
        longest = max(self.field.grid)
        sizes = [1 << power for power in range(longest.bit_length() + 1)]
        return min(sizes, key=lambda size: self._cost(size, squared=squared))

    def _cost(self, size: int, *, squared: bool) -> float:
        """Return what all tiles cost, in units of a multiplication and an addition."""
        tiles = prod(-(-n // size) for n in self.field.grid)
        channels, columns = self.outputs.shape[1], self.fold.channels
        entries = channels * columns * self._sum(size, 1)
        cost = _TILE * tiles + (_ENTRY + _RUN / size) * entries
        return cost + channels * columns**2 * self._sum(size, 2) if squared else cost

    def _sum(self, size: int, power: int) -> int:
        """Return the sum of (positions in a tile) (size of its box)^power over all tiles."""
        found = 1
        for axis, n in zip(self.field.axes, self.field.grid, strict=True):
            tiles = [axis[start : start + size] for start in range(0, n, size)]
            found *= sum(len(tile) * (tile[-1][1] - tile[0][0]) ** power for tile in tiles)
        return found


def _lower(block: Tensor) -> Tensor:
    """Return B B^T for B of shape (columns, rows); only the lower triangle counts."""
    count = block.shape[0]
    if count < 2 * _PORTION:
        return block @ block.mT
    found = block.new_zeros(count, count)
    for start in range(0, count, _PORTION):
        stop = start + _PORTION
        torch.mm(block[start:stop], block[:stop].mT, out=found[start:stop, :stop])
    return found


def _hidden(seen: Sequence[_Box], box: _Box) -> Tensor:
    """Return which entries of a box positions of a tile do not see.

    It can be broadcast to (channels, *box, channels of the output, *tile). `seen` is what each
    position sees along each axis, from the corner of the box on.
    """
    dims = len(box)
    hidden = torch.zeros((), dtype=torch.bool, device="cpu")
    for axis, (bounds, (low, high)) in enumerate(zip(seen, box, strict=True)):
        first, last = torch.tensor(bounds, device="cpu").unbind(1)
        at = torch.arange(high - low, device="cpu").unsqueeze(1)
        outside = (at < first) | (at >= last)
        shape = [1] * (2 * dims + 2)
        shape[1 + axis], shape[2 + dims + axis] = outside.shape
        hidden = hidden | outside.view(shape)
    return hidden


@dataclass(frozen=True)
class Local:
    """Local Jacobians of a group of layers at a batch of points."""

    by_call: Mapping[Call, Sequence[LocalJacobian]]  # of every point
    errors: Mapping[Call, float]  # how far singular values may be from the Jacobians'


def find_fields(task: "Task", records: Sequence[CallRecord]) -> dict[Call, Field]:
    """Return the fields of those layers for which pushing directions together pays."""
    shape, n_in = task.survey.varied_shape, task.survey.n_in
    is_plain = task.wrt is None and task.metric is None and not task.picked
    is_exact = task.dtype == torch.float64 and not task.survey.has_low_values
    # These need the Jacobian itself.
    is_more = task.residual or task.pooled or bool(task.parts)
    if len(shape) < 3 or shape[0] != 1 or is_more or not (is_plain and is_exact):
        return {}
    fields = receptive_fields(task.model, task.survey.records, shape)
    return {
        record.call: fields[record.call]
        for record in records
        if record.call in fields
        and record.shape == (1, record.shape[1], *fields[record.call].grid)
        and Fold.of(shape[1], [fields[record.call]]).n_directions <= _MAX_SHARE * n_in
        and n_in <= record.numel
    }


def plan_folds(
    task: "Task", records: Sequence[CallRecord], n_points: int
) -> list[tuple[Fold, dict[Call, Field]]]:
    """Return the groups of layers that are computed together, and along which directions.

    `n_points` are computed at once. Layers that are in no group are computed otherwise.
    """
    fields = find_fields(task, records)
    some = [record for record in records if record.call in fields]
    if not some:
        return []
    channels, n_in = task.survey.varied_shape[1], task.survey.n_in
    # The SVD may need one Jacobian whole, beside the outputs of directions that are held.
    whole = max(record.numel for record in some) * n_in
    room = (task.memory // task.dtype.itemsize - 3 * whole) // n_points
    count = Fold.of(channels, list(fields.values())).n_directions
    sizes = [(record, record.numel * count) for record in some if record.numel * count <= room]
    folds = []
    for group in groups_of(sizes, room):
        own = {record.call: fields[record.call] for record in group}
        folds.append((Fold.of(channels, list(own.values())), own))
    return folds


def local_jacobians(batch: Batch, fold: Fold, fields: Mapping[Call, Field], chunk: int) -> Local:
    """Return the Jacobians of some layers, `chunk` directions of a fold at a time."""
    calls = list(fields)
    outputs: list[Tensor] = []
    for start in range(0, fold.n_directions, chunk):
        stop = min(start + chunk, fold.n_directions)
        tangents = pushforward(batch, calls, fold.directions(start, stop, batch.varied))
        if not outputs:
            outputs = [
                batch.varied.new_empty(batch.n_points, fold.n_directions, tangent.shape[2])
                for tangent in tangents
            ]
        for output, tangent in zip(outputs, tangents, strict=True):
            output[:, start:stop] = tangent.movedim(0, 1)
    by_call = {}
    for call, output in zip(calls, outputs, strict=True):
        grid = fields[call].grid
        shape = fold.n_directions, output.shape[2] // prod(grid), *grid
        by_call[call] = [LocalJacobian(one.view(shape), fold, fields[call]) for one in output]
    return Local(by_call, _errors(batch, by_call))


def _errors(batch: Batch, by_call: Mapping[Call, Sequence[LocalJacobian]]) -> dict[Call, float]:
    """Return a bound for each call; infinity where a rebuilt Jacobian is not the network's."""
    generator = torch.Generator("cpu").manual_seed(1974)
    probes = torch.randn(
        _PROBES, batch.n_in, generator=generator, dtype=torch.float64, device="cpu"
    ).to(batch.varied)
    truths = pushforward(batch, list(by_call), probes)  # (probes, points, n_out)
    errors = {}
    for (call, jacobians), truth in zip(by_call.items(), truths, strict=True):
        errors[call] = 0.0
        for index, jacobian in enumerate(jacobians):
            right = truth[:, index]
            wrong = (jacobian.times(probes.mT) - right.mT).norm(dim=0).max()
            size = right.square().sum(1).mean().sqrt()  # estimates |J|_F
            # sigma_1 is at least |J|_F / sqrt(r), and this must not cost more than an SVD.
            rounding = max(jacobian.shape) * torch.finfo(batch.varied.dtype).eps
            allowed = rounding * float(size) / min(jacobian.shape) ** 0.5
            error = _WRONG_FACTOR * float(wrong)
            # A comparison with NaN is false.
            errors[call] = max(errors[call], error) if error <= allowed else torch.inf
    return errors
