"""The passes that Jacobians take, from shapes alone, by the rules by which the engine divides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from localrank_cli.jacobian.blocks import count_block_passes, plan_blocks
from localrank_cli.jacobian.budget import (
    Budget,
    groups_of,
    needed_bytes,
    part_bytes,
    split_by_depth,
    split_by_passes,
)
from localrank_cli.jacobian.local import plan_folds
from localrank_cli.jacobian.parts import count_passes
from localrank_cli.jacobian.row_space import bottleneck
from localrank_cli.layers.capture import Call
from localrank_cli.layers.positions import Parts
from localrank_cli.layers.survey import CallRecord

if TYPE_CHECKING:
    from localrank_cli.jacobian.engine import Task

Mode = Literal["forward", "reverse", "chain", "products"]


@dataclass(frozen=True)
class Work:
    """What the Jacobians of one call at one point take."""

    record: CallRecord
    mode: Mode
    passes: int  # directions or rows; forward ones also serve the calls before in the same pass
    operations: float  # of the passes, without what they share with the calls before
    n_matrices: int
    shape: tuple[int, int]  # of each matrix whose singular values are computed

    @property
    def gram(self) -> float:
        """The operations of the Gram matrices."""
        short, long = sorted(self.shape)
        return self.n_matrices * 2.0 * long * short**2

    @property
    def eigenvalues(self) -> float:
        """The operations of their eigenvalues."""
        return self.n_matrices * 9.0 * min(self.shape) ** 3

    @property
    def reduction(self) -> float:
        """The operations of the singular values."""
        return self.gram + self.eigenvalues


def forecast(task: "Task", *, forward: bool = True, replays: bool = False) -> dict[Call, Work]:
    """Return what each call of a task takes at one point.

    Args:
        task: Its `parts` may be those of the first point alone.
        forward: Whether forward mode is used.
        replays: Whether what comes before the source is run once only.
    """
    return (_of_parts if task.parts else _of_whole)(task, forward, replays)


def forecast_all(
    tasks: Sequence["Task"], *, forward: bool, replays: bool
) -> dict[tuple[Call | None, Call], Work]:
    """Return the forecast of several tasks, by source and call."""
    return {
        (task.wrt, call): work
        for task in tasks
        for call, work in forecast(task, forward=forward, replays=replays).items()
    }


def _of_whole(task: "Task", forward: bool, replays: bool) -> dict[Call, Work]:
    del replays
    budget, itemsize = Budget(task.memory), task.dtype.itemsize
    n_in = n_directions(task)
    room = budget.jacobians // itemsize
    held = [record for record in task.records if record.numel * n_in <= room]
    split = split_by_depth(held, n_in)
    by_forward = split.forward if forward else ()
    shapes = {record.call: (record.numel, n_in) for record in task.records}
    found: dict[Call, Work] = {}
    for fold, fields in plan_folds(task, by_forward, 1) if n_in == task.n_in else ():
        group = [record for record in by_forward if record.call in fields]
        found |= _shared([group], fold.n_passes, shapes, {})
    sizes = [(r, r.numel * n_in * itemsize) for r in by_forward if r.call not in found]
    found |= _shared(groups_of(sizes, room * itemsize), n_in, shapes, {})
    for record in task.records:
        if record.call in found:
            continue
        mode: Mode = "reverse"
        passes = record.numel
        if record not in held:
            passes, mode = _in_blocks(record.numel, n_in, task.memory, itemsize, forward)
        found[record.call] = Work(
            record, mode, passes, passes * record.cost, 1, (record.numel, n_in)
        )
    return found


def n_directions(task: "Task") -> int:
    """Return the directions of forward mode for whole Jacobians, as far as shapes tell."""
    fitting = task.metric is None and task.dtype.itemsize == 8 and not task.residual
    if not fitting or task.survey.has_low_values:
        return task.n_in
    room = Budget(task.memory).directions
    through = bottleneck(task.survey.records, task.records, task.n_in, room)
    return task.n_in if through is None else min(through.numel, task.n_in)


def _of_parts(task: "Task", forward: bool, replays: bool) -> dict[Call, Work]:
    budget, n_in = Budget(task.memory), task.n_in
    source = task.survey.source_cost if replays else 0.0
    parts = {call: one[:1] for call, one in task.parts.items()}
    sizes = {record: part_bytes(parts[record.call], n_in) for record in task.records}
    shapes = {call: (one.n_rows, _columns(one, n_in)) for call, one in parts.items()}
    held = [record for record in task.records if sizes[record] <= budget.jacobians]
    passes = {record.call: count_passes(parts[record.call], n_in) for record in held}
    by_forward: tuple[CallRecord, ...] = ()
    if forward and held:
        rows = {call: one.reverse for call, one in passes.items()}
        directions = passes[held[0].call].forward
        by_forward = split_by_passes(held, directions, rows, source).forward
    groups = groups_of([(record, sizes[record]) for record in by_forward], budget.jacobians)
    directions = passes[held[0].call].forward if held else 0
    found = _shared(groups, directions, shapes, parts, source)
    for record in task.records:
        if record.call in found:
            continue
        call = record.call
        one = parts[call]
        if record in held:
            mode: Mode = "reverse"
            count = passes[call].reverse
        else:
            count, mode = _by_position(record, one, task, (forward, source))
        depth = max(record.cost - source, 1.0)
        found[call] = Work(record, mode, count, count * depth, one.n_parts, shapes[call])
    return found


def _by_position(
    record: CallRecord, parts: Parts, task: "Task", how: tuple[bool, float]
) -> tuple[int, Mode]:
    """Return the passes of a call whose positions do not fit in memory together."""
    forward, source = how
    budget = Budget(task.memory)
    one = part_bytes(parts.some(0, 1), task.n_in)
    if one > budget.jacobians:
        shape = parts.n_rows, task.n_in  # the columns of a position are few enough to be held
        passes, mode = _in_blocks(*shape, task.memory, task.dtype.itemsize, forward)
        return parts.n_parts * passes, mode
    size = budget.jacobians // one
    count = count_passes(parts.some(0, min(size, parts.n_parts)), task.n_in)
    rows = {record.call: count.reverse}
    is_forward = forward and split_by_passes([record], count.forward, rows, source).forward
    times = -(-parts.n_parts // size)
    return (times * count.forward, "forward") if is_forward else (times * count.reverse, "reverse")


def _shared(
    groups: Sequence[Sequence[CallRecord]],
    directions: int,
    shapes: Mapping[Call, tuple[int, int]],
    parts: Mapping[Call, Parts],
    source: float = 0.0,
) -> dict[Call, Work]:
    """Return the work of calls by forward mode; each has the way from the call before it."""
    found = {}
    for group in groups:
        depth = source
        for record in sorted(group, key=lambda one: one.cost):
            further = directions * max(record.cost - depth, 0.0)
            depth = max(depth, record.cost)
            n_parts = parts[record.call].n_parts if parts else 1
            shape = shapes[record.call]
            found[record.call] = Work(record, "forward", directions, further, n_parts, shape)
    return found


def _in_blocks(
    n_out: int, n_in: int, memory: int, itemsize: int, forward: bool
) -> tuple[int, Mode]:
    """Return the passes of one walk through a Jacobian; those of its shorter side if none fits."""
    if needed_bytes(n_out, n_in) > memory:
        return (n_in, "forward") if forward and n_in <= n_out else (n_out, "reverse")
    size = Budget(memory).block(n_out, n_in)
    plan = plan_blocks(n_out, n_in, itemsize, size, forward)
    return count_block_passes(plan, n_out, n_in), plan.mode


def _columns(parts: Parts, n_in: int) -> int:
    return n_in if parts.columns is None else parts.columns.shape[2]
