"""All Jacobians of one checkpoint, portion by portion, each by the mode that serves it best."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from localrank_cli.errors import LocalrankError, ModelError
from localrank_cli.jacobian import guards
from localrank_cli.jacobian.batch import Batch
from localrank_cli.jacobian.costs import directions_at_once, layer_groups, split_by_depth
from localrank_cli.jacobian.routes import forward_jacobians, reverse_jacobian
from localrank_cli.layers.capture import Call
from localrank_cli.layers.survey import CallRecord, Survey

_Result = TypeVar("_Result")

# Larger portions of directions stop paying once a matrix product fills the machine, and smaller
# ones keep the working set near the caches.
_PORTION_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Task:
    """What to differentiate: one checkpoint, its points, its layers."""

    model: nn.Module
    points: Tensor  # (points, ...), in the analysis dtype (or integers, with wrt)
    survey: Survey
    records: tuple[CallRecord, ...]  # the chosen calls, in order of execution
    wrt: Call | None
    dtype: torch.dtype
    memory: int  # bytes

    @property
    def tolerance(self) -> float:
        """The relative difference below which two computations of one value agree."""
        return guards.agreement(self.dtype, self.survey.has_low_precision)


@dataclass(frozen=True)
class Portion:
    """Jacobians of one call at some consecutive points."""

    record: CallRecord
    start: int  # index of the first point
    jacobians: Tensor  # (points, n_out, n_in), on the model's device
    finite: Tensor  # (points,) bool: no non-finite pre-activation here or before


@dataclass
class Modes:
    """Which modes a model has refused, and the notes to give; kept between checkpoints."""

    forward: bool = True
    batched_reverse: bool = True
    notes: list[str] = field(default_factory=list)
    routes: list[str] = field(default_factory=list)

    def refuse_forward(self, reason: str) -> None:
        """Turns forward mode off.

        Args:
            reason: Why, for the note.
        """
        self.forward = False
        self.notes.append(f"forward mode is not used ({reason}); reverse mode takes its place")


def jacobians(task: Task, modes: Modes) -> Iterator[Portion]:
    """Computes the Jacobians of all chosen calls at all points.

    To be called within `analysis_setting`.

    Args:
        task: What to differentiate.
        modes: Which modes to try; updated when the model refuses one.

    Yields:
        Portions: for each group of points, one for each call.

    Raises:
        ModelError: If the model is random, or cannot be differentiated.
    """
    _check_fits(task)
    size = _points_at_once(task)
    for start in range(0, task.points.shape[0], size):
        points = task.points[start : start + size]
        watched = _watched(task)
        values = guards.point_values(task.model, points, watched)
        if start == 0:
            guards.check_repeatable(task.model, points, values, task.tolerance)
        finite = _finite(values, watched, task.records)
        for offset, batch in _batches(task, points, values, modes):
            stop = offset + batch.n_points
            good = {call: mask[offset:stop] for call, mask in finite.items()}
            for record, tensor in _batch_jacobians(task, batch, good, modes):
                yield Portion(record, start + offset, tensor, good[record.call])


def _watched(task: Task) -> list[Call]:
    """The chosen calls, every affine layer (for non-finite pre-activations), and wrt."""
    chosen = {record.call for record in task.records}
    return [
        record.call
        for record in task.survey.records
        if record.affine or record.call in chosen or record.call == task.wrt
    ]


def _finite(
    values: guards.Values, watched: Sequence[Call], records: Sequence[CallRecord]
) -> dict[Call, Tensor]:
    """Points at which a call and all before it are finite: a later layer must not hide a NaN."""
    masks: dict[Call, Tensor] = {}
    so_far: Tensor | None = None
    for call in watched:
        mask = torch.isfinite(values.outputs[call]).all(dim=1)
        so_far = mask if so_far is None else so_far & mask
        masks[call] = so_far
    return {record.call: masks[record.call] for record in records}


def _batches(
    task: Task, points: Tensor, values: guards.Values, modes: Modes
) -> Iterator[tuple[int, Batch]]:
    batch = guards.make_batch(task.model, points, values, task.wrt, task.tolerance)
    calls = [record.call for record in task.records]
    if batch is not None and guards.points_are_separate(batch, calls):
        yield 0, batch
        return
    _note_once(
        modes,
        "points are computed one by one: in a batch the model gives other outputs than point by"
        " point",
    )
    for index in range(points.shape[0]):
        single = guards.Values(
            {call: rows[index : index + 1] for call, rows in values.outputs.items()}, values.shapes
        )
        alone = guards.make_batch(
            task.model, points[index : index + 1], single, task.wrt, task.tolerance
        )
        if alone is None:
            raise ModelError(
                "the model is random in eval mode: a point run again gives another output.",
                "Use the module's deterministic mode.",
            )
        yield index, alone


def _batch_jacobians(
    task: Task, batch: Batch, good: dict[Call, Tensor], modes: Modes
) -> Iterator[tuple[CallRecord, Tensor]]:
    itemsize = task.dtype.itemsize
    portion = min(task.memory // 4, _PORTION_BYTES)
    chunk = directions_at_once(batch.n_points, task.survey.activations, itemsize, portion)
    split = split_by_depth(task.records, batch.n_in)
    reverse = list(split.reverse)
    if split.forward and not (
        modes.forward and _forward_serves(task, batch, [r.call for r in split.forward], good, modes)
    ):
        reverse = list(task.records)
    elif split.forward:
        room = task.memory // 2 // batch.n_points
        for group in layer_groups(split.forward, batch.n_in, itemsize, room):
            calls = [record.call for record in group]
            tensors = _guarded(partial(forward_jacobians, batch, calls, min(chunk, batch.n_in)))
            yield from zip(group, tensors, strict=True)
    for record in reverse:
        yield record, _reverse(batch, record, chunk, modes)
    modes.routes = [
        f"{record.call.label}: {'reverse' if record in reverse else 'forward'}"
        for record in task.records
    ]


def _forward_serves(
    task: Task, batch: Batch, calls: list[Call], good: dict[Call, Tensor], modes: Modes
) -> bool:
    everywhere = torch.stack([good[call] for call in calls]).all(dim=0)
    try:
        agree = guards.modes_agree(batch, calls, everywhere, task.tolerance)
    except Exception as error:  # torch.func refuses with many types of error
        if _out_of_memory(error):
            raise _memory_error(error) from error
        modes.refuse_forward(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
        return False
    if not agree:
        modes.refuse_forward(
            "it disagrees with autograd's reverse mode: a part runs under no_grad, or a custom"
            " backward is not the derivative"
        )
    return agree


def _reverse(batch: Batch, record: CallRecord, chunk: int, modes: Modes) -> Tensor:
    rows = max(2, min(chunk, record.numel))
    if modes.batched_reverse and record.numel > 1:
        try:
            return reverse_jacobian(batch, record.call, rows)
        except Exception as error:  # vmap over a backward refuses with many types of error
            if _out_of_memory(error):
                raise _memory_error(error) from error
            modes.batched_reverse = False
            modes.notes.append(
                "rows are computed one by one, which is slow"
                f" ({type(error).__name__}: {' '.join(str(error).split())[:160]})"
            )
    return _guarded(partial(reverse_jacobian, batch, record.call, 1))


def _guarded(compute: Callable[[], _Result]) -> _Result:
    try:
        return compute()
    except LocalrankError:
        raise
    except Exception as error:  # whatever a user's model may raise under autograd
        if _out_of_memory(error):
            raise _memory_error(error) from error
        raise ModelError(
            f"the model cannot be differentiated: {type(error).__name__}:"
            f" {' '.join(str(error).split())[:400]}",
            "Leave the layers behind the failing operation out (--exclude), or see --debug.",
        ) from error


def _points_at_once(task: Task) -> int:
    itemsize = task.dtype.itemsize
    entries = sum(record.numel for record in task.records) * task.survey.n_in
    per_point = max(1, itemsize * max(entries, 2 * task.survey.activations))
    return int(max(1, min(task.points.shape[0], task.memory // 2 // per_point)))


def _check_fits(task: Task) -> None:
    for record in task.records:
        needed = record.numel * task.survey.n_in * task.dtype.itemsize
        if needed > task.memory:
            raise ModelError(
                f"the Jacobian of layer {record.call.label!r} ({record.numel} x"
                f" {task.survey.n_in}) needs {needed / 2**30:.3g} GiB for one point, and"
                f" {task.memory / 2**30:.3g} GiB may be used.",
                "Leave the layer out (--exclude), vary a smaller tensor (--wrt), or use a machine"
                " with more memory.",
            )


def _note_once(modes: Modes, note: str) -> None:
    if note not in modes.notes:
        modes.notes.append(note)


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        "can't allocate memory" in str(error)
    )


def _memory_error(error: Exception) -> ModelError:
    return ModelError(
        f"out of memory: {' '.join(str(error).split())[:200]}",
        "Ask for fewer --points or --layers, or use a machine with more memory.",
    )
