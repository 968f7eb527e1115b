"""All Jacobians of one checkpoint, portion by portion, each by the mode that costs least."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from localrank_cli.errors import LocalrankError, ModelError, cause, listed, one_line
from localrank_cli.jacobian import guards
from localrank_cli.jacobian.batch import Batch, Layout
from localrank_cli.jacobian.blocks import (
    BLOCK_POINTS,
    AnyPortion,
    BlockPlan,
    BlockPortion,
    ChainPortion,
    LocalPortion,
    PartBlockPortion,
    PartPortion,
    Portion,
    block,
    count_block_passes,
    plan_blocks,
    without_identity,
)
from localrank_cli.jacobian.budget import (
    Alive,
    Budget,
    check_fits,
    check_parts_fit,
    directions_at_once,
    groups_of,
    layer_groups,
    part_bytes,
    split_by_depth,
    split_by_passes,
)
from localrank_cli.jacobian.chain import Chain
from localrank_cli.jacobian.forecast import forecast_all
from localrank_cli.jacobian.local import local_jacobians, plan_folds
from localrank_cli.jacobian.metric_factor import IDENTITY, MetricFactor, PositionFactors
from localrank_cli.jacobian.parts import (
    count_passes,
    forward_parts,
    reverse_parts,
    subtract_identity,
    with_rows,
)
from localrank_cli.jacobian.past import (
    Pasts,
    TokenJacobians,
    n_columns,
    token_jacobians,
    tokens_with_past,
)
from localrank_cli.jacobian.progress import Progress, Span
from localrank_cli.jacobian.routes import forward_jacobians, reverse_jacobian
from localrank_cli.jacobian.row_space import bottleneck, narrow
from localrank_cli.jacobian.shortened import shortened
from localrank_cli.jacobian.trace import Refusal, find_chain
from localrank_cli.layers.capture import Call
from localrank_cli.layers.positions import Parts
from localrank_cli.layers.replay import Replays
from localrank_cli.layers.replay import record as record_replay
from localrank_cli.layers.survey import CallRecord, Survey
from localrank_cli.layers.triangle import Triangle
from localrank_cli.threads import one_thread

_Result = TypeVar("_Result")
# Operations of a forward pass that one core does in a few milliseconds.
_LIGHT = 2e8
_DENSE = "all tokens are computed at once, which is slower"
# Directions of one token at once. With 96, the tangents of keys exceed the 32 MiB above which the C
# library asks for new pages each time: 8.1 s of system time against 4.5 s (GPT-2, 64 tokens).
MOST_TOKENS = 48


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
    place_metric: PositionFactors | None = None  # of its positions, where those are varied alone
    picked: Mapping[Call, Tensor] = field(default_factory=dict)  # entries of outputs; none: all
    parts: Mapping[Call, Parts] = field(
        default_factory=dict
    )  # of all points; none: whole Jacobians
    triangles: Mapping[Call, Triangle] = field(default_factory=dict)
    residual: bool = False  # J - 1 in place of J
    # The Jacobians are to be added: no factor of their own at each point, nor a portion across the
    # end of a block of points.
    pooled: bool = False

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
    local: bool = True
    replay: bool = True
    past: bool = True
    dense: set[Call] = field(
        default_factory=set
    )  # calls that the past held does not give somewhere
    notes: list[str] = field(default_factory=list)
    routes: list[str] = field(default_factory=list)
    # Bytes that are alive at once along one direction at one point, by source and last layer.
    alive: dict[tuple[Call | None, Call], int] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)

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
    """Yield the Jacobians of all chosen calls at all points, with respect to one source.

    See `all_jacobians`.
    """
    for _, portion in all_jacobians([task], modes):
        yield portion


def all_jacobians(tasks: Sequence[Task], modes: Modes) -> Iterator[tuple[int, AnyPortion]]:
    """Yield the Jacobians with respect to several sources, each with the index of its task.

    The tasks are of one model, at the same points. To be called within `analysis_setting`. `modes`
    is updated when the model refuses one.

    Yields:
        For each group of points, a chain for all calls of a task, or portions of one or more calls.

    Raises:
        ModelError: If the model is random, or cannot be differentiated.
    """
    for task in tasks:
        if task.parts:
            check_parts_fit(task.records, task.parts, task.n_in, task.memory)
        else:
            check_fits(task.records, task.n_in, task.memory)
    size = min(_parts_points(task) if task.parts else _points_at_once(task) for task in tasks)
    if tasks[0].pooled:  # a power of two, so that a block is a number of portions
        size = 1 << min(size, BLOCK_POINTS).bit_length() - 1
    model, dtype, tolerance = tasks[0].model, tasks[0].dtype, tasks[0].tolerance
    calls = calls_of(tasks)
    works = forecast_all(tasks, forward=modes.forward, replays=modes.replay)
    modes.progress.start(works, tasks[0].points.shape[0])
    routes: list[list[str]] = []  # of each task, again and again
    for start in range(0, tasks[0].points.shape[0], size):
        points = tasks[0].points[start : start + size]
        with one_thread(_is_light(tasks, points.shape[0])):
            values = guards.checked_values(model, points, calls, tolerance, dtype, first=start == 0)
            together = guards.lay_out(model, points, values, tolerance)
        pasts = Pasts(model, points, calls[0][-1])
        replays = _replays(tasks)
        for index, task in enumerate(tasks):
            for offset, batch, chain in _batches(task, points, values, together, modes):
                stop = offset + batch.n_points
                good = {
                    record.call: values.finite[record.call][offset:stop] for record in task.records
                }
                outputs = {call: values.outputs[call][offset:stop] for call in good}
                place = _Place(start + offset, good, outputs, replace(pasts, first=offset), replays)
                counted = replace(batch, advance=modes.progress.advance)
                for portion in _of_batch(task, counted, place, modes, chain):
                    yield index, portion
                    _count(task, batch, portion, modes.progress)
            routes.append(modes.routes)
    _name_sources(tasks, routes[-len(tasks) :], modes)


def _is_light(tasks: Sequence[Task], n_points: int) -> bool:
    """Return whether one forward pass of a batch is too short for more than one thread."""
    cost = max(record.cost for record in tasks[0].survey.records)
    return cost * n_points <= _LIGHT


def _name_sources(tasks: Sequence[Task], routes: Sequence[list[str]], modes: Modes) -> None:
    """Keep the routes of all tasks; those of parts name their sources already."""
    if len(tasks) > 1 and not tasks[0].parts:
        names = [task.wrt.label if task.wrt is not None else "the input" for task in tasks]
        pairs = zip(names, routes, strict=True)
        modes.routes = [f"from {name}: {one}" for name, found in pairs for one in found]


def _count(task: Task, batch: Batch, portion: AnyPortion, progress: Progress) -> None:
    """Count a portion as done, after its singular values were computed."""
    span = Span(portion.start, batch.n_points)
    if isinstance(portion, ChainPortion | LocalPortion):
        for record in task.records if isinstance(portion, ChainPortion) else portion.records:
            progress.finish(task.wrt, record.call, span)
        return
    if isinstance(portion, PartPortion):
        span = replace(span, n_parts=portion.jacobians.shape[1])
    progress.finish(task.wrt, portion.record.call, span)


@dataclass(frozen=True)
class _Place:
    """Where a batch lies among the points, and what is known of its points."""

    start: int  # index of the first point
    good: dict[Call, Tensor]  # (points,) bool: as in `Portion.finite`
    outputs: dict[Call, Tensor]  # (points, numel), each point computed by itself
    pasts: Pasts
    replays: Replays | None  # None: each source's own


def _of_batch(
    task: Task, batch: Batch, place: _Place, modes: Modes, chain: Chain | None
) -> Iterator[AnyPortion]:
    start, good = place.start, place.good
    if task.parts:
        span = slice(start, start + batch.n_points)
        parts = {record.call: task.parts[record.call][span] for record in task.records}
        yield from _PartRun(task, batch, place, modes, parts).portions()
        return
    if chain is not None:
        yield ChainPortion(chain, start, good)
        return
    yield from _portions(task, _narrow(task, batch, good, modes), place, modes)


def calls_of(tasks: Sequence[Task]) -> tuple[list[Call], list[Call]]:
    """Return the chosen calls and sources; and these with every affine layer up to the last."""
    needed = {record.call for task in tasks for record in task.records}
    needed |= {task.wrt for task in tasks if task.wrt is not None}
    records = tasks[0].survey.records
    order = [record.call for record in records]
    last = max(index for index, call in enumerate(order) if call in needed)
    watched = [
        record.call for record in records[: last + 1] if record.affine or record.call in needed
    ]
    return [call for call in order if call in needed], watched


def _batches(
    task: Task,
    points: Tensor,
    values: guards.Values,
    together: Mapping[Call, Layout] | None,
    modes: Modes,
) -> Iterator[tuple[int, Batch, Chain | None]]:
    """Yield the points together, or each alone where a pass mixes them; with their chain."""
    calls = [record.call for record in task.records]
    if together is not None:
        with one_thread(_is_light([task], points.shape[0])):
            plain = guards.make_batch(task.model, points, values, together, task.wrt)
            batch = plain.in_metric(task.metric, task.picked)
            chain = chain_of(task, batch, modes, values.outputs)  # shows that nothing is mixed
            check = partial(guards.points_are_separate, plain, calls, values.outputs, values.finite)
            are_separate = chain is not None or _attempt(partial(check, task.tolerance))
        if are_separate:
            yield 0, batch, chain
            return
    _note_once(
        modes,
        "points are computed one by one: the model gives different outputs or derivatives in a"
        " batch than point by point",
    )
    for index in range(points.shape[0]):
        single = guards.Values(
            {call: rows[index : index + 1] for call, rows in values.outputs.items()},
            values.shapes,
            {call: flags[index : index + 1] for call, flags in values.finite.items()},
        )
        point = points[index : index + 1]
        with one_thread(_is_light([task], 1)):
            alone = guards.lay_out(task.model, point, single, task.tolerance)
            if alone is None:
                raise guards.unrepeatable_alone(task.model, point, single.outputs)
            batch = guards.make_batch(task.model, point, single, alone, task.wrt)
            batch = batch.in_metric(task.metric, task.picked)
            chain = chain_of(task, batch, modes, single.outputs)
        yield index, batch, chain


def _portions(task: Task, batch: Batch, place: _Place, modes: Modes) -> Iterator[AnyPortion]:
    start, good = place.start, place.good
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
    span = Span(start, batch.n_points)
    for local in _local(task, batch, forward, place, modes):
        together = "forward, directions with disjoint outputs together"
        routes |= dict.fromkeys(local.jacobians, together)
        yield local
    forward = tuple(record for record in forward if record.call not in routes)
    short = shortened(task, batch, forward)
    for group in layer_groups(forward, batch.n_in, itemsize, room * itemsize):
        names = [record.call for record in group]
        all_at_once = partial(forward_jacobians, short.batch, names)
        modes.progress.begin(task.wrt, names, span, batch.n_in)
        tensors, way = _take(_ways("forward", min(chunk, batch.n_in), all_at_once, modes), modes)
        for record, tensor in zip(group, tensors, strict=True):
            routes[record.call] = way
            error = short.error(record.call, tensor, good[record.call])
            yield _whole(task, record, start, tensor, good, error)
    for record in reverse:
        rows = min(record.numel, max(2, chunk))
        _check_reverse(task, batch, record, place)
        by_rows = partial(reverse_jacobian, batch, record.call)
        modes.progress.begin(task.wrt, [record.call], span, record.numel)
        tensor, routes[record.call] = _take(_ways("reverse", rows, by_rows, modes), modes)
        yield _whole(task, record, start, tensor, good, batch.error)
    for record in task.records:
        if record not in held:
            yield _in_blocks(task, batch, record, place, modes, routes)
    reduction = f"{batch.n_in} directions for {task.n_in} inputs: the first layer's rows"
    modes.routes = [
        *(route for route in modes.routes if route.startswith("no chain")),
        *([reduction] if batch.n_in < task.n_in else []),
        *(f"{call.label}: {way}" for call, way in routes.items()),
    ]


def _check_reverse(task: Task, batch: Batch, record: CallRecord, place: _Place) -> None:
    """Check that reverse mode gives one derivative, at each point that is alone.

    Few random numbers may agree, and a point may not show them: one point is not enough.
    """
    call = record.call
    if batch.n_points > 1 or not bool(place.good[call].all()):
        return
    whole = replace(batch, picked={}, triangles={})
    check = partial(guards.check_reverse, whole, call, place.outputs[call])
    _attempt(partial(check, task.tolerance))


def _local(
    task: Task, batch: Batch, records: Sequence[CallRecord], place: _Place, modes: Modes
) -> Iterator[LocalPortion]:
    """Yield the Jacobians of layers that see only a part of the input, where that is certain."""
    if not modes.local or batch.metric is not None:
        return
    by_call = {
        record.call: record
        for record in records
        if batch.layouts[record.call] == Layout(0, record.shape)
    }
    room = Budget(task.memory).directions
    itemsize = task.dtype.itemsize
    chunk = directions_at_once(batch.n_points, task.survey.activations, itemsize, room)
    for fold, fields in plan_folds(task, list(by_call.values()), batch.n_points):
        span = Span(place.start, batch.n_points)
        modes.progress.begin(task.wrt, list(fields), span, fold.n_passes)
        found = local_jacobians(batch, fold, fields, chunk)
        modes.local &= all(error < torch.inf for error in found.errors.values())
        sound = {
            call: jacobians
            for call, jacobians in found.by_call.items()
            if found.errors[call] < torch.inf
        }
        if sound:
            records = tuple(by_call[call] for call in sound)
            yield LocalPortion(records, place.start, sound, place.good, found.errors)


def _in_blocks(
    task: Task,
    batch: Batch,
    record: CallRecord,
    place: _Place,
    modes: Modes,
    routes: dict[Call, str],
) -> BlockPortion:
    """Return the Jacobian of one call at the only point, which is too large to hold."""
    budget, itemsize = Budget(task.memory), task.dtype.itemsize
    size = budget.block(record.numel, batch.n_in)
    plan = plan_blocks(record.numel, batch.n_in, itemsize, size, modes.forward)
    if plan.mode == "reverse":
        _check_reverse(task, batch, record, place)
    portion = budget.block_directions(record.numel, batch.n_in)
    chunk = directions_at_once(1, task.survey.activations, itemsize, portion)
    walk = _walk(batch, record, plan, chunk, modes, routes)
    walk = _counted(walk, task, record, Span(place.start, batch.n_points), plan, modes)
    if task.residual:
        every = torch.arange(record.numel, device=batch.varied.device)
        walk = partial(without_identity, walk, plan, every, batch.n_in, task.metric)
    return BlockPortion(record, place.start, walk, place.good[record.call], batch.error)


def _whole(
    task: Task, record: CallRecord, start: int, tensor: Tensor, good: dict[Call, Tensor],
    error: float,
) -> Portion:  # fmt: skip
    if task.residual and task.metric is not None:
        rows, columns = (torch.arange(size, device=tensor.device) for size in tensor.shape[1:])
        tensor -= task.metric.part(rows, columns, tensor.dtype)
    elif task.residual:
        tensor.diagonal(dim1=1, dim2=2).sub_(1)
    return Portion(record, start, tensor, good[record.call], error)


class _PartRun:
    """The Jacobians of single positions at one batch of points."""

    def __init__(
        self,
        task: Task,
        batch: Batch,
        place: _Place,
        modes: Modes,
        parts: Mapping[Call, Parts],  # of the batch's points
    ) -> None:
        self._parts = parts
        self._task, self._place, self._modes = task, place, modes
        self._start, self._good = place.start, place.good
        self._batch = with_rows(batch, parts)
        self._budget = Budget(task.memory)
        self.routes: dict[Call, str] = {}

    def portions(self) -> Iterator[AnyPortion]:
        """Yield the Jacobians of all chosen calls."""
        task, modes = self._task, self._modes
        self._batch = self._replaying(self._batch)
        held = [r for r in task.records if self._size(r.call) <= self._budget.jacobians]
        if modes.forward:
            self._try_forward()
        yield from self.held(held)
        for record in task.records:
            if record not in held:
                yield from self._by_position(record)
        of = f" from {task.wrt.label}" if task.wrt is not None else ""
        taken = {f"{call.label}{of}": way for call, way in self.routes.items()}
        others = [one for one in modes.routes if one.rpartition(": ")[0] not in taken]
        modes.routes = [*others, *(f"{name}: {way}" for name, way in taken.items())]

    def held(self, held: Sequence[CallRecord]) -> Iterator[PartPortion]:
        """Yield the Jacobians of some calls, each of whose positions fit in memory together."""
        left = list[CallRecord]()
        for group in self._groups(held):
            found = self._by_token(group)
            if found is None:
                left += group
                continue
            for record in group:
                if len(found.dense[record.call]) == self._batch.n_points:
                    left.append(record)
            yield from self._of_tokens([r for r in group if r not in left], found)
        yield from self.all_tokens(left)

    def all_tokens(self, held: Sequence[CallRecord]) -> Iterator[PartPortion]:
        """Yield the Jacobians of some calls by passes of the whole network."""
        task, modes = self._task, self._modes
        passes = {
            record.call: count_passes(self._parts[record.call], self._batch.n_in) for record in held
        }
        forward: tuple[CallRecord, ...] = ()
        reverse = tuple(held)
        if modes.forward and held:
            split = split_by_passes(
                held,
                passes[held[0].call].forward,
                {call: one.reverse for call, one in passes.items()},
                task.survey.source_cost if self._batch.replay is not None else 0.0,
            )
            forward, reverse = split.forward, split.reverse
        for group in self._groups(forward):
            yield from self._forward(group)
        for record in reverse:
            yield from self._reverse(record)

    def _by_token(self, group: Sequence[CallRecord]) -> TokenJacobians | None:
        """Return the Jacobians by passes of one token each; None if the network takes none.

        The network must take keys and values of earlier tokens, and the positions must be those of
        its own tokens.
        """
        modes, batch = self._modes, self._batch
        if not modes.past or not modes.forward or self._task.dtype != torch.float64:
            return None
        first = self._parts[group[0].call]
        n_tokens = tokens_with_past(self._task.model, batch.inputs, batch.wrt, first, batch.n_in)
        if not n_tokens:
            return None
        calls = [record.call for record in group]
        parts = {call: self._parts[call] for call in calls}
        chunk = self._chunk(calls[-1])
        # One token takes its share of the pass for all tokens, and the keys and values before it.
        chunks = chunk, min(MOST_TOKENS, chunk * max(1, n_tokens // 4))
        self._begin(calls, batch.n_points * first.n_parts * n_columns(first))
        try:
            found = token_jacobians(
                batch, parts, calls, chunks, self._place.pasts, self._good,
                residual=self._task.residual,
            )  # fmt: skip
        except Exception as error:  # models differ in what they take, and raise anything
            if _out_of_memory(error):
                raise _memory_error(error) from error
            modes.past = False
            _note_once(modes, f"{_DENSE}: the network does not take tokens one by one")
            return None
        new = [call for call in calls if call in found.differing - modes.dense]
        if new:
            modes.dense |= set(new)
            modes.notes.append(
                f"{_DENSE} for {listed([call.label for call in new])}: with the keys and values of"
                " earlier tokens held fixed, the values differ"
            )
        return found

    def _of_tokens(
        self, group: Sequence[CallRecord], found: TokenJacobians
    ) -> Iterator[PartPortion]:
        """Yield what was found by tokens, with all tokens at once at the points that need it."""
        whole = {r.call: self._portion(r, found.blocks.pop(r.call)) for r in group}
        way = "forward, one token with the past held"
        self.routes |= dict.fromkeys(whole, way)
        for point in sorted(set().union(*(found.dense[call] for call in whole))):
            records = tuple(r for r in group if point in found.dense[r.call])
            run = self._at_point(point, records)
            for portion in run.all_tokens(records):
                call = portion.record.call
                whole[call].jacobians[point] = portion.jacobians[0]
                count = f"{len(found.dense[call])} of {self._batch.n_points} points"
                self.routes[call] = f"{way}; at {count} {run.routes[call]}"
        yield from whole.values()

    def _at_point(self, point: int, records: tuple[CallRecord, ...]) -> "_PartRun":
        """Return the run of some calls at one point of the batch."""
        span, batch, place = slice(point, point + 1), self._batch, self._place
        one = replace(batch, inputs=batch.inputs[span], varied=batch.varied[span], replay=None)
        if batch.origin is not None:
            one = replace(one, origin=batch.origin[span])
        good = {record.call: place.good[record.call][span] for record in records}
        outputs = {record.call: place.outputs[record.call][span] for record in records}
        run = _PartRun(
            replace(self._task, records=records, parts={}),
            one,
            _Place(self._start + point, good, outputs, place.pasts, None),
            self._modes,
            {record.call: self._parts[record.call][span] for record in records},
        )
        run._batch = run._replaying(run._batch)
        return run

    def _forward(self, group: Sequence[CallRecord]) -> Iterator[PartPortion]:
        parts = {record.call: self._parts[record.call] for record in group}
        passes = count_passes(parts[group[0].call], self._batch.n_in).forward
        chunk = min(self._chunk(group[-1].call), passes)
        compute = partial(forward_parts, self._batch, parts, group)
        self._begin([record.call for record in group], passes)
        tensors, way = _take(_ways("forward", chunk, compute, self._modes), self._modes)
        for record, tensor in zip(group, tensors, strict=True):
            self.routes[record.call] = way
            yield self._portion(record, tensor)

    def _reverse(self, record: CallRecord) -> Iterator[PartPortion]:
        parts = self._parts[record.call]
        rows = count_passes(parts, self._batch.n_in).reverse
        # The graph is kept beside the cotangents that are pulled back.
        chunk = max(1, min(rows, self._chunk(record.call) // 2))
        _check_reverse(self._task, self._batch, record, self._place)
        compute = partial(reverse_parts, self._batch, parts, record.call)
        self._begin([record.call], rows)
        tensor, way = _take(_ways("reverse", chunk, compute, self._modes), self._modes)
        self.routes[record.call] = way
        yield self._portion(record, tensor)

    def _begin(self, calls: Sequence[Call], passes: int) -> None:
        span = Span(self._start, self._batch.n_points, self._parts[calls[0]].n_parts)
        self._modes.progress.begin(self._task.wrt, calls, span, passes)

    def _portion(self, record: CallRecord, tensor: Tensor) -> PartPortion:
        task, parts = self._task, self._parts[record.call]
        if task.residual:
            subtract_identity(tensor, parts, task.metric)
        if task.place_metric is not None and parts.source_places is not None:
            tensor = task.place_metric.weigh(tensor, parts.source_places)
        return PartPortion(record, self._start, 0, tensor, self._good[record.call])

    def _by_position(self, record: CallRecord) -> Iterator[AnyPortion]:
        """Yield some positions of one point at a time, in blocks if even one is too large."""
        call, whole = record.call, self._parts[record.call]
        one = part_bytes(whole.some(0, 1), self._batch.n_in)
        if one > self._budget.jacobians:
            for index in range(whole.n_parts):
                yield self._in_blocks(record, index)
            return
        size = self._budget.jacobians // one
        for low in range(0, whole.n_parts, size):
            some = {call: whole.some(low, min(low + size, whole.n_parts))}
            task = replace(self._task, records=(record,), parts={})
            part = _PartRun(task, self._batch, self._place, self._modes, some)
            for portion in part.held([record]):
                yield replace(portion, first=low)
            self.routes |= part.routes

    def _in_blocks(self, record: CallRecord, index: int) -> PartBlockPortion:
        """Return the Jacobian of one position of the only point, which is too large to hold."""
        task, whole = self._task, self._parts[record.call]
        part, device = whole.some(index, index + 1), self._batch.varied.device
        rows = part.rows[0, 0].to(device)
        batch = replace(self._batch, picked={record.call: rows})
        metric, is_residual, outputs = task.metric, task.residual, rows
        if part.columns is not None:
            metric, entries = IDENTITY, part.columns[0, 0]
            if task.place_metric is not None and part.source_places is not None:
                metric = MetricFactor(task.place_metric.at(int(part.source_places[0, 0])))
            batch = batch.in_metric(replace(metric, entries=entries), batch.picked)
            # Of another position than the source's, no entry is one of the identity.
            is_residual = is_residual and torch.equal(entries.to(device), rows)
            outputs = torch.arange(rows.shape[0], device=device)
        single = replace(record, shape=(rows.shape[0],), is_complex=False)
        size = self._budget.block(single.numel, batch.n_in)
        plan = plan_blocks(single.numel, batch.n_in, task.dtype.itemsize, size, self._modes.forward)
        if plan.mode == "reverse" and index == 0:
            _check_reverse(task, self._batch, record, self._place)
        walk = _walk(batch, single, plan, self._chunk(record.call), self._modes, self.routes)
        walk = _counted(walk, task, single, Span(self._start, 1), plan, self._modes)
        if is_residual:
            walk = partial(without_identity, walk, plan, outputs, batch.n_in, metric)
        return PartBlockPortion(record, self._start, index, walk, self._good[record.call])

    def _groups(self, records: Sequence[CallRecord]) -> list[tuple[CallRecord, ...]]:
        """Return groups of calls whose Jacobians fit together."""
        sizes = [(record, self._size(record.call)) for record in records]
        return groups_of(sizes, self._budget.jacobians)

    def _size(self, call: Call) -> int:
        return self._batch.n_points * part_bytes(self._parts[call], self._batch.n_in)

    def _chunk(self, call: Call) -> int:
        """Return how many directions are pushed through at once, down to a call."""
        key = self._task.wrt, call
        if key not in self._modes.alive:
            with torch.no_grad(), Alive() as alive:
                self._batch.outputs(self._batch.varied, [call], early=True)
            self._modes.alive[key] = -(-alive.peak // self._batch.n_points)
        # The values, and two results of each formula for a tangent, beside the tangents themselves.
        return self._budget.part_directions(3 * self._batch.n_points * self._modes.alive[key])

    def _replaying(self, batch: Batch) -> Batch:
        """Return the batch with what comes before the varied tensor replayed, if that is exact."""
        task = self._task
        batch = replace(batch, triangles=task.triangles)
        if task.wrt is None or not self._modes.replay:
            return batch
        calls, place = [record.call for record in task.records], self._place
        try:
            if place.replays is None:
                found = record_replay(task.model, batch.inputs, task.wrt, calls)
            else:
                found = place.replays.take(place.start, batch.inputs, task.wrt)
            if found is None:
                return batch
            replaying = replace(batch, replay=found)
            # Whole outputs, as they are known from full passes.
            whole = replace(replaying, triangles={}, picked={})
            with torch.no_grad():
                pairs = zip(calls, whole.outputs(batch.varied, calls), strict=True)
                same = all(
                    guards.close(place.outputs[call], one, task.tolerance) for call, one in pairs
                )
        except Exception as error:  # a model may mind that a module does not run
            if _out_of_memory(error):
                raise _memory_error(error) from error
            same = False
        if not same:
            self._modes.replay = False
            return batch
        return replaying

    def _try_forward(self) -> None:
        calls = [record.call for record in self._task.records]
        _try_forward(self._task, self._batch, calls, self._good, self._modes)


def _replays(tasks: Sequence[Task]) -> Replays:
    """Return what comes before each source of the tasks, to be recorded when it is needed."""
    wanted = {
        task.wrt: [record.call for record in task.records] for task in tasks if task.wrt is not None
    }
    return Replays(tasks[0].model, wanted, Budget(tasks[0].memory).replays)


def _parts_points(task: Task) -> int:
    """Return how many points there is room for, all chosen calls together."""
    budget = Budget(task.memory)
    per_point = sum(part_bytes(one[:1], task.n_in) for one in task.parts.values())
    graph = 2 * task.survey.activations * task.dtype.itemsize
    room = min(budget.jacobians // max(1, per_point), budget.total // 4 // max(1, graph))
    return int(max(1, min(task.points.shape[0], room)))


def _walk(
    batch: Batch,
    record: CallRecord,
    plan: BlockPlan,
    chunk: int,
    modes: Modes,
    routes: dict[Call, str],
) -> Callable[[], Iterator[Tensor]]:
    def ways(start: int) -> list[Way[Tensor]]:
        """Return the ways to the block that begins at a row or column."""
        part = partial(block, batch, record, plan, start)
        return _ways(plan.mode, chunk, part, modes, f", blocks of {plan.size} {plan.along}")

    def walk() -> Iterator[Tensor]:
        """Yield the blocks in order, and keep the way that the last one took."""
        for start in range(0, max(record.numel, batch.n_in), plan.size):
            found, routes[record.call] = _take(ways(start), modes)
            yield found

    routes[record.call] = ways(0)[0].name  # a point that is not finite is not walked
    return walk


def _counted(
    walk: Callable[[], Iterator[Tensor]],
    task: Task,
    record: CallRecord,
    span: Span,
    plan: BlockPlan,
    modes: Modes,
) -> Callable[[], Iterator[Tensor]]:
    """Return a walk that begins its passes in the progress."""

    def counted() -> Iterator[Tensor]:
        """Walk, after the passes of the walk are announced."""
        passes = count_block_passes(plan, record.numel, task.n_in)
        modes.progress.begin(task.wrt, [record.call], span, passes)
        yield from walk()

    return counted


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


def chain_of(task: Task, batch: Batch, modes: Modes, values: Mapping[Call, Tensor]) -> Chain | None:
    """Return the network as a chain, if it is one; `modes` keeps why it is none.

    `values` are the outputs of the chosen calls, (points, n_out), without a graph.
    """
    if not modes.chain or task.survey.has_low_values or task.parts or task.residual or task.pooled:
        return None
    calls = {record.call: values[record.call] for record in task.records}
    found = find_chain(batch, calls, task.tolerance)
    if isinstance(found, Refusal):
        modes.routes = [f"no chain: {found.reason}"]
        return None
    norms = ", normalizations" if found.has_norms else ""
    modes.routes = [f"chain of Linear layers{norms} and elementwise operations"]
    return found


def _narrow(task: Task, batch: Batch, good: dict[Call, Tensor], modes: Modes) -> Batch:
    """Return the batch along fewer directions, where that is exact and saves passes or memory."""
    fitting = task.metric is None and task.dtype == torch.float64
    fitting &= not (task.residual or task.pooled)
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
        # Whole Jacobians cost as much as many passes; of parts, one for each call is too much.
        check = guards.modes_agree_together if task.parts else guards.modes_agree
        agree = check(batch, calls, everywhere, task.tolerance)
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
            "Leave out the layers after the failing operation (--exclude), or see --debug.",
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
