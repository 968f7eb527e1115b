"""All Jacobians of one checkpoint, portion by portion, each by the mode that costs least."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from localrank_cli.errors import LocalrankError, ModelError, cause, one_line
from localrank_cli.jacobian import guards
from localrank_cli.jacobian.batch import Batch
from localrank_cli.jacobian.blocks import (
    AnyPortion,
    BlockPlan,
    BlockPortion,
    ChainPortion,
    Portion,
    block,
    plan_blocks,
)
from localrank_cli.jacobian.budget import (
    Budget,
    check_fits,
    directions_at_once,
    layer_groups,
    split_by_depth,
)
from localrank_cli.jacobian.chain import Chain
from localrank_cli.jacobian.metric_factor import MetricFactor
from localrank_cli.jacobian.routes import forward_jacobians, reverse_jacobian
from localrank_cli.jacobian.row_space import bottleneck, narrow
from localrank_cli.jacobian.trace import Refusal, find_chain
from localrank_cli.layers.capture import Call
from localrank_cli.layers.setting import analysis_setting
from localrank_cli.layers.survey import CallRecord, Survey

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Task:
    """The Jacobians to compute: one checkpoint, its points, its layers."""

    model: nn.Module
    points: Tensor  # (points, ...), in the analysis dtype (or integers, with wrt)
    survey: Survey
    records: tuple[CallRecord, ...]  # the chosen calls, in order of execution
    wrt: Call | None
    dtype: torch.dtype
    memory: int  # bytes
    metric: MetricFactor | None = None  # of the varied tensor; None: the identity
    picked: Mapping[Call, Tensor] = field(default_factory=dict)  # entries of outputs; none: all

    @property
    def n_in(self) -> int:
        """Columns of the Jacobian in the metric."""
        n_in = self.survey.n_in
        return n_in if self.metric is None else self.metric.width(n_in)

    @property
    def tolerance(self) -> float:
        """The relative difference below which two computations of one value agree."""
        return guards.agreement(self.dtype, self.survey.has_low_values)


@dataclass
class Modes:
    """The modes that a model has not refused, and notes for the user; kept between checkpoints."""

    chain: bool = True
    forward: bool = True
    batched_reverse: bool = True
    narrow: bool = True
    notes: list[str] = field(default_factory=list)
    routes: list[str] = field(default_factory=list)

    def refuse_forward(self, reason: str) -> None:
        """Turn forward mode off, with a note that gives the reason."""
        self.forward = False
        self.notes.append(f"forward mode is not used ({reason}); reverse mode is used instead")


@dataclass(frozen=True)
class Way(Generic[_Result]):
    """A way to Jacobians: its name in `Modes.routes`, and what computes them."""

    name: str
    compute: Callable[[], _Result]


def jacobians(task: Task, modes: Modes) -> Iterator[AnyPortion]:
    """Yield the Jacobians of all chosen calls at all points.

    To be called within `analysis_setting`. `modes` is updated when the model refuses one.

    Yields:
        For each group of points, a chain for all calls or a portion for each call.

    Raises:
        ModelError: If the model is random, or cannot be differentiated.
    """
    check_fits(task.records, task.n_in, task.memory)
    size = _points_at_once(task)
    for start in range(0, task.points.shape[0], size):
        points = task.points[start : start + size]
        alone = None
        if start == 0:
            with analysis_setting(task.model, task.dtype, seed=1):
                alone = guards.point_values(task.model, points[:1], *_calls(task))
        values = guards.point_values(task.model, points, *_calls(task))
        if alone is not None:
            guards.check_repeatable(task.model, points, values, task.tolerance)
            guards.check_seedless(values, alone, task.tolerance)
        for offset, batch in _batches(task, points, values, modes):
            stop = offset + batch.n_points
            good = {record.call: values.finite[record.call][offset:stop] for record in task.records}
            chain = _chain(task, batch, modes)
            if chain is not None:
                yield ChainPortion(chain, start + offset, good)
                continue
            reduced = _narrow(task, batch, good, modes)
            yield from _portions(task, reduced, start + offset, good, modes)


def _calls(task: Task) -> tuple[list[Call], list[Call]]:
    """Return the chosen calls and wrt; and these with every affine layer up to the last of them."""
    needed = {record.call for record in task.records} | ({task.wrt} if task.wrt else set())
    order = [record.call for record in task.survey.records]
    last = max(index for index, call in enumerate(order) if call in needed)
    watched = [
        record.call
        for record in task.survey.records[: last + 1]
        if record.affine or record.call in needed
    ]
    return [call for call in order if call in needed], watched


def _batches(
    task: Task, points: Tensor, values: guards.Values, modes: Modes
) -> Iterator[tuple[int, Batch]]:
    batch = guards.make_batch(task.model, points, values, task.wrt, task.tolerance)
    calls = [record.call for record in task.records]
    if batch is not None and _attempt(partial(guards.points_are_separate, batch, calls)):
        yield 0, batch.in_metric(task.metric, task.picked)
        return
    _note_once(
        modes,
        "points are computed one by one: in a batch the model gives other outputs than point by"
        " point",
    )
    for index in range(points.shape[0]):
        single = guards.Values(
            {call: rows[index : index + 1] for call, rows in values.outputs.items()},
            values.shapes,
            {call: flags[index : index + 1] for call, flags in values.finite.items()},
        )
        alone = guards.make_batch(
            task.model, points[index : index + 1], single, task.wrt, task.tolerance
        )
        if alone is None:
            raise guards.unrepeatable_alone(task.model, points[index : index + 1], single.outputs)
        yield index, alone.in_metric(task.metric, task.picked)


def _portions(
    task: Task, batch: Batch, start: int, good: dict[Call, Tensor], modes: Modes
) -> Iterator[AnyPortion]:
    budget = Budget(task.memory)
    itemsize = task.dtype.itemsize
    chunk = directions_at_once(batch.n_points, task.survey.activations, itemsize, budget.directions)
    room = budget.jacobians // (batch.n_points * itemsize)
    held = [record for record in task.records if record.numel * batch.n_in <= room]
    split = split_by_depth(held, batch.n_in)
    calls = [
        record.call for record in task.records if record in split.forward or record not in held
    ]
    if calls and modes.forward:
        _try_forward(task, batch, calls, good, modes)
    forward, reverse = split.forward, split.reverse
    if not modes.forward:
        forward, reverse = (), tuple(held)
    routes: dict[Call, str] = {}
    for group in layer_groups(forward, batch.n_in, itemsize, room * itemsize):
        names = [record.call for record in group]
        all_at_once = partial(forward_jacobians, batch, names)
        tensors, way = _take(_ways("forward", min(chunk, batch.n_in), all_at_once, modes), modes)
        for record, tensor in zip(group, tensors, strict=True):
            routes[record.call] = way
            yield Portion(record, start, tensor, good[record.call], batch.error)
    for record in reverse:
        rows = min(record.numel, max(2, chunk))
        by_rows = partial(reverse_jacobian, batch, record.call)
        tensor, routes[record.call] = _take(_ways("reverse", rows, by_rows, modes), modes)
        yield Portion(record, start, tensor, good[record.call], batch.error)
    for record in task.records:
        if record not in held:
            size = budget.block(record.numel, batch.n_in)
            plan = plan_blocks(record.numel, batch.n_in, itemsize, size, modes.forward)
            portion = budget.block_directions(record.numel, batch.n_in)
            chunk = directions_at_once(1, task.survey.activations, itemsize, portion)
            walk = _walk(batch, record, plan, chunk, modes, routes)
            yield BlockPortion(record, start, walk, good[record.call], batch.error)
    reduction = f"{batch.n_in} directions for {task.n_in} inputs: the first layer's rows"
    modes.routes = [
        *(route for route in modes.routes if route.startswith("no chain")),
        *([reduction] if batch.n_in < task.n_in else []),
        *(f"{call.label}: {way}" for call, way in routes.items()),
    ]


def _walk(
    batch: Batch,
    record: CallRecord,
    plan: BlockPlan,
    chunk: int,
    modes: Modes,
    routes: dict[Call, str],
) -> Callable[[], Iterator[Tensor]]:
    def ways(start: int) -> list[Way[Tensor]]:
        part = partial(block, batch, record, plan, start)
        return _ways(plan.mode, chunk, part, modes, f", blocks of {plan.size} {plan.along}")

    def walk() -> Iterator[Tensor]:
        for start in range(0, max(record.numel, batch.n_in), plan.size):
            found, routes[record.call] = _take(ways(start), modes)
            yield found

    routes[record.call] = ways(0)[0].name  # a point that is not finite is not walked
    return walk


def _ways(
    mode: str, chunk: int, compute: Callable[[int], _Result], modes: Modes, suffix: str = ""
) -> list[Way[_Result]]:
    """Return the ways that the model has not refused, the cheapest first.

    `compute` takes how many directions are computed at a time: `chunk`, or 1 where the model's
    backward refuses several.
    """
    ways = [Way(f"{mode}{suffix}", partial(compute, chunk))]
    if mode == "reverse" and chunk > 1:
        ways.append(Way(f"reverse, row by row{suffix}", partial(compute, 1)))
    return ways if modes.batched_reverse else ways[-1:]


def _take(ways: Sequence[Way[_Result]], modes: Modes) -> tuple[_Result, str]:
    """Return what the first way computes that the model does not refuse, and its name."""
    *batched, last = ways
    for way in batched:
        try:
            return way.compute(), way.name
        except Exception as error:  # vmap over a backward raises many types of error
            if _out_of_memory(error):
                raise _memory_error(error) from error
            modes.batched_reverse = False
            modes.notes.append(f"rows are computed one by one, which is slow ({cause(error)})")
    return _attempt(last.compute), last.name


def _chain(task: Task, batch: Batch, modes: Modes) -> Chain | None:
    if not modes.chain or task.survey.has_low_values:
        return None
    found = find_chain(batch, [record.call for record in task.records], task.tolerance)
    if isinstance(found, Refusal):
        modes.routes = [f"no chain: {found.reason}"]
        return None
    modes.routes = ["chain of Linear layers and elementwise operations"]
    return found


def _narrow(task: Task, batch: Batch, good: dict[Call, Tensor], modes: Modes) -> Batch:
    """Return the batch along fewer directions, where that is exact and saves passes or memory."""
    fitting = task.metric is None and task.dtype == torch.float64
    if not fitting or not modes.narrow or task.survey.has_low_values:
        return batch
    room = Budget(task.memory).directions
    through = bottleneck(task.survey.records, task.records, batch.n_in, room)
    if through is None:
        return batch
    chunk = directions_at_once(1, task.survey.activations, task.dtype.itemsize, room)
    try:
        reduced = narrow(batch, through, task.records, good, chunk)
    except Exception as error:  # vmap over a backward may fail where other modes work
        if _out_of_memory(error):
            raise _memory_error(error) from error
        reduced = None
    modes.narrow = reduced is not None
    return batch if reduced is None else reduced


def _try_forward(
    task: Task, batch: Batch, calls: list[Call], good: dict[Call, Tensor], modes: Modes
) -> None:
    """Turn forward mode off where torch.func refuses it or it disagrees with reverse mode."""
    everywhere = torch.stack([good[call] for call in calls]).all(dim=0)
    try:
        agree = guards.modes_agree(batch, calls, everywhere, task.tolerance)
    except Exception as error:  # torch.func raises many types of error
        if _out_of_memory(error):
            raise _memory_error(error) from error
        modes.refuse_forward(f"{cause(error)}")
        return
    if not agree:
        modes.refuse_forward(
            "it disagrees with autograd's reverse mode: a part runs under no_grad, or a custom"
            " backward is not the derivative"
        )


def _points_at_once(task: Task) -> int:
    """Return how many points the held Jacobians and the graph of one pass have room for."""
    budget = Budget(task.memory)
    itemsize = task.dtype.itemsize
    held = [
        record.numel * task.n_in * itemsize
        for record in task.records
        if record.numel * task.n_in * itemsize <= budget.jacobians
    ]
    if len(held) < len(task.records):
        return 1  # blocks are of a single point
    per_point = max(held)
    graph = 2 * task.survey.activations * itemsize
    room = min(budget.jacobians // per_point, budget.total // 4 // max(1, graph))
    return int(max(1, min(task.points.shape[0], room)))


def _note_once(modes: Modes, note: str) -> None:
    if note not in modes.notes:
        modes.notes.append(note)


def _attempt(compute: Callable[[], _Result]) -> _Result:
    """Return the result of a computation that may run the user's model.

    Raises:
        ModelError: If it fails, out of memory or otherwise.
    """
    try:
        return compute()
    except LocalrankError:
        raise
    except Exception as error:  # the user's model may raise anything under autograd
        if _out_of_memory(error):
            raise _memory_error(error) from error
        raise ModelError(
            f"the model cannot be differentiated: {type(error).__name__}: {one_line(error)}",
            "Leave out the layers behind the failing operation (--exclude), or see --debug.",
        ) from error


def _out_of_memory(error: Exception) -> bool:
    """Return whether an error of torch or Python means that memory was short."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        "can't allocate memory" in str(error)
    )


def _memory_error(error: Exception) -> ModelError:
    """Return the error to raise in place of one that means that memory was short."""
    return ModelError(
        f"out of memory: {one_line(error)}",
        "Ask for fewer --points or --layers, or use a machine with more memory.",
    )
