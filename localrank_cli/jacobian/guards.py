"""Checks before a number is believed.

- Two forward passes agree.
- A batch gives, point by point, the same values and derivatives as the points alone.
- Forward and reverse mode are transposes of each other.
"""

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from localrank_cli.errors import LocalrankError, ModelError, cause
from localrank_cli.jacobian.batch import Batch, Layout
from localrank_cli.jacobian.repeat import unrepeatable
from localrank_cli.jacobian.routes import contraction, normal_direction, pullback, pushforward
from localrank_cli.layers.capture import Call, Capture
from localrank_cli.layers.setting import analysis_setting

# Of two points together, a derivative that is divided by their number is off by a half.
_ROUGHLY = 0.1
# What cancellation may leave of an output, beside those of other points.
_LEFT = 1e-6
# A step away from ties, relative to the largest entry: far above rounding.
_STEP = 1e-3
# More than gradients are usually clipped at, and within the range of half precision.
_LARGER = 2.0**10


@dataclass(frozen=True)
class Values:
    """Outputs of calls at every point, computed point by point."""

    outputs: dict[Call, Tensor]  # (points, numel)
    shapes: dict[Call, tuple[int, ...]]  # for a batch of one point
    finite: dict[Call, Tensor]  # (points,) bool: this output, and all watched ones before it


def agreement(dtype: torch.dtype, low_precision: bool) -> float:
    """Return the relative difference below which two computations of one value agree.

    Rounding in another order of summation gives k u per layer (u = 1.1e-16, k up to 1e5 terms),
    which depth multiplies by at most about 100: 1e-9. Mixing of points, randomness or a cut path
    show at 1e-3 and more. Where parts are computed in float32, u is 6e-8; measured differences are
    up to 3.5e-8 of the largest entry, so 1e-5 leaves room for 300 times that.
    """
    if dtype == torch.float32:
        return 1e-4
    return 1e-5 if low_precision else 1e-9


def close(first: Tensor, second: Tensor, tolerance: float) -> bool:
    """Return whether two computations of one value agree.

    That is in shape, in dtype, in which entries are finite, and in those up to `tolerance` of the
    largest entry; integers exactly.
    """
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if not (first.is_floating_point() or first.is_complex()):
        return torch.equal(first, second)
    finite = torch.isfinite(first)
    if not torch.equal(finite, torch.isfinite(second)):
        return False
    first, second = torch.where(finite, first, 0), torch.where(finite, second, 0)
    scale = first.abs().max().item() if first.numel() else 0.0
    return bool(((first - second).abs() <= tolerance * scale).all())


def checked_values(
    model: nn.Module,
    points: Tensor,
    calls: tuple[Sequence[Call], Sequence[Call]],
    tolerance: float,
    dtype: torch.dtype,
    *,
    first: bool,
) -> Values:
    """Return `point_values`; of the `first` points, check that other passes give the same.

    Raises:
        ModelError: If they do not.
    """
    alone = None
    if first:
        with analysis_setting(model, dtype, seed=1):
            alone = point_values(model, points[:1], *calls)
    values = point_values(model, points, *calls)
    if alone is not None:
        check_repeatable(model, points, values, tolerance)
        check_seedless(values, alone, tolerance)
    return values


def point_values(
    model: nn.Module, points: Tensor, calls: Sequence[Call], watched: Sequence[Call]
) -> Values:
    """Return the outputs of `calls`, from running every point alone.

    `watched` are these and more, in order of execution: a later call must not hide a non-finite
    value of an earlier one.

    Raises:
        ModelError: If a call's shape depends on the point.
    """
    capture = Capture(model, calls, watched=watched)
    rows: dict[Call, list[Tensor]] = {call: [] for call in calls}
    between: dict[Call, list[bool]] = {call: [] for call in watched if call not in rows}
    shapes: dict[Call, tuple[int, ...]] = {}
    with torch.no_grad(), capture.installed():
        for index in range(points.shape[0]):
            point = points[index : index + 1]
            for call, tensor in zip(calls, _captured(capture, point, index), strict=True):
                if shapes.setdefault(call, tuple(tensor.shape)) != tuple(tensor.shape):
                    raise ModelError(
                        f"layer {call.label!r} gives shape {tuple(tensor.shape)} at point {index}"
                        f" and {shapes[call]} at point 0.",
                        "Shapes must not depend on the point: leave this layer out (--exclude).",
                    )
                rows[call].append(tensor.reshape(-1))
            for call, flags in between.items():  # too many to hold
                seen = capture.seen.get(call)  # a layer may run for some points alone
                flags.append(seen is None or bool(torch.isfinite(seen).all()))
    outputs = {call: torch.stack(parts) for call, parts in rows.items()}
    so_far = torch.isfinite(points).reshape(points.shape[0], -1).all(dim=1)
    finite: dict[Call, Tensor] = {}
    for call in watched:
        if call in outputs:
            # A network may be split over devices.
            so_far = so_far & torch.isfinite(outputs[call]).all(dim=1).to(points.device)
            finite[call] = so_far
        else:
            so_far = so_far & torch.tensor(between[call], device=points.device)
    return Values(outputs, shapes, finite)


def _captured(capture: Capture, point: Tensor, index: int) -> tuple[Tensor, ...]:
    try:
        return capture(point)
    except LocalrankError:
        raise
    except Exception as error:  # the user's forward pass may raise anything
        raise ModelError(
            f"the model's forward pass failed at point {index} of those drawn: {cause(error)}",
            "It ran at the first point: check how this point differs from it.",
        ) from error


def check_repeatable(model: nn.Module, points: Tensor, values: Values, tolerance: float) -> None:
    """Check that a second forward pass of the first point agrees with `values`.

    Raises:
        ModelError: If it does not.
    """
    calls = list(values.outputs)
    second_pass = point_values(model, points[:1], calls, calls)
    for call in calls:
        first, second = values.outputs[call][:1], second_pass.outputs[call]
        if not close(first, second, tolerance):
            size = (first - second).abs().max().item() if first.shape == second.shape else torch.nan
            steady = [
                one.label
                for one in calls
                if close(values.outputs[one][:1], second_pass.outputs[one], tolerance)
            ]
            raise unrepeatable(model, points[:1], call, size, steady)


def check_seedless(values: Values, other: Values, tolerance: float) -> None:
    """Check that nothing is drawn in the first forward pass and then kept.

    `other` holds the first point's values under another seed; the model has been restored since.

    Raises:
        ModelError: If the two differ by more than the relative `tolerance`.
    """
    for call, found in other.outputs.items():
        if not close(values.outputs[call][:1], found, tolerance):
            raise ModelError(
                f"the forward pass draws random numbers and keeps them: layer {call.label!r} gives"
                " a different output under a different seed.",
                "Draw them in __init__ with a fixed seed, or keep them in the checkpoints:"
                " self.register_buffer(NAME, TENSOR).",
            )


def unrepeatable_alone(
    model: nn.Module, point: Tensor, outputs: Mapping[Call, Tensor]
) -> ModelError:
    """Return the error for a point that, run again, no longer gives its `outputs`."""
    again = point_values(model, point, list(outputs), list(outputs)).outputs
    sizes = {call: (again[call] - outputs[call]).abs().max().item() for call in outputs}
    call = max(sizes, key=lambda one: sizes[one])
    # No difference: the passes before it were others. Any layer but the last may be unaffected.
    call = call if sizes[call] else list(outputs)[-1]
    return unrepeatable(model, point, call, sizes[call], [])


def lay_out(
    model: nn.Module, points: Tensor, values: Values, tolerance: float
) -> dict[Call, Layout] | None:
    """Return where the points of a batch lie in each output.

    None where batching would mix points, or fails.
    """
    calls = list(values.outputs)
    n_points = points.shape[0]
    # A slice would drag its whole parent storage through vmap(jvp); clone() does not.
    inputs = points.clone()
    try:
        with torch.no_grad():
            tensors = Capture(model, calls)(inputs)
    except Exception:  # a forward pass that only takes one point may raise anything
        if n_points == 1:
            raise
        return None
    layouts: dict[Call, Layout] = {}
    for call, tensor in zip(calls, tensors, strict=True):
        layout = Layout.find(values.shapes[call], tuple(tensor.shape), n_points)
        if layout is None:
            if n_points == 1:
                layout = Layout(0, values.shapes[call])
            else:
                return None
        if not _are_close(layout.split(tensor), values.outputs[call], tolerance):
            return None
        layouts[call] = layout
    return layouts


def _are_close(first: Tensor, second: Tensor, tolerance: float) -> bool:
    """Return whether two computations agree at each point, (points, n_out).

    A small point does not hide beside a large one, save for what is left of its terms by
    cancellation.
    """
    if not close(first, second, tolerance):
        return False
    known = torch.isfinite(first)
    sizes = torch.where(known, first.abs(), 0).amax(dim=1, keepdim=True)
    allowed = tolerance * (sizes + _LEFT * sizes.amax())
    return bool((torch.where(known, first - second, 0).abs() <= allowed).all())


def make_batch(
    model: nn.Module,
    points: Tensor,
    values: Values,
    layouts: Mapping[Call, Layout],
    wrt: Call | None,
) -> Batch:
    """Return a batch of points, from the layouts that `lay_out` found.

    `values` must hold `wrt` too, the call whose output is varied.
    """
    inputs = points.clone()
    if wrt is None:
        varied_layout = Layout(0, (1, *points.shape[1:]))
        varied = varied_layout.split(inputs)
    else:
        varied_layout, varied = layouts[wrt], values.outputs[wrt].clone()
    return Batch(model, inputs, varied, varied_layout, dict(layouts), wrt)


def points_are_separate(
    batch: Batch,
    calls: Sequence[Call],
    values: Mapping[Call, Tensor],
    good: Mapping[Call, Tensor],
    tolerance: float,
) -> bool:
    """Return whether one point's derivatives are those of that point alone.

    Random cotangents at some points are pulled back; a network that treats points one by one gives
    exact zeros at the others. A backward pass may also depend on how many points there are (it
    divides by their number) or on what they are: the first, the last and the smallest point are
    compared with themselves alone, with large cotangents too: a gradient may be clipped by its
    norm.

    Args:
        batch: The points.
        calls: What is differentiated; it must depend on the varied tensor.
        values: Their outputs, (points, n_out), without a graph.
        good: At which points these are finite, (points,) bool.
        tolerance: The relative difference below which two computations of a value agree.
    """
    if batch.n_points == 1:
        return True
    varied, outputs = _graph(batch, calls)
    if not all(
        close(output.detach(), values[call], tolerance)
        for call, output in zip(calls, outputs, strict=True)
    ):
        return False
    # Not the same for two calls of one size, which may be each other's negative.
    draws = [
        random_cotangent(output.shape[1], batch, 2410 + index).to(output)
        for index, output in enumerate(outputs)
    ]
    graph = _Graph(batch, varied, list(calls), list(outputs), draws)
    if graph.rows() is None:
        return True
    return not _mixes(graph, good) and _is_the_same_without_others(graph, good, tolerance)


@dataclass(frozen=True)
class _Graph:
    """A pass over a batch, and what is pulled back from the outputs of some calls."""

    batch: Batch
    varied: Tensor
    calls: list[Call]
    outputs: list[Tensor]  # (points, n_out)
    cotangents: list[Tensor]  # likewise

    def rows(self) -> Tensor | None:
        """Return what the cotangents give together; None where nothing depends on the input."""
        return _pulled(self.varied, self.outputs, self.cotangents)

    def times(self, factors: Sequence[float]) -> "_Graph":
        """Return the same with other cotangents: each call's times a factor."""
        pairs = zip(self.cotangents, factors, strict=True)
        return replace(self, cotangents=[one * factor for one, factor in pairs])

    def without(self, points: list[int]) -> "_Graph":
        """Return the same with cotangents that are zero at some points."""
        return replace(self, cotangents=[_without(one, points) for one in self.cotangents])

    def only(self, calls: Collection[Call]) -> "_Graph":
        """Return the same for some of the calls."""
        kept = [index for index, call in enumerate(self.calls) if call in calls]
        return replace(
            self,
            calls=[self.calls[index] for index in kept],
            outputs=[self.outputs[index] for index in kept],
            cotangents=[self.cotangents[index] for index in kept],
        )

    def each(self) -> Iterator["_Graph"]:
        """Yield each call by itself."""
        return (self.only([call]) for call in self.calls)

    def anew(self, batch: Batch) -> "_Graph":
        """Return a new pass, over a batch of as many points."""
        varied, outputs = _graph(batch, self.calls)
        return replace(self, batch=batch, varied=varied, outputs=list(outputs))

    def alone(self, point: int) -> "_Graph":
        """Return a new pass over one of the points."""
        return replace(self, cotangents=[one[point : point + 1] for one in self.cotangents]).anew(
            _alone(self.batch, point)
        )

    def is_the_same_alone(self, point: int, tolerance: float) -> bool:
        """Return whether a point has the derivative of all calls together that it has alone."""
        rows = self.rows()
        return rows is None or is_the_same_alone(
            self.batch, self.calls, self.cotangents, rows, point, tolerance
        )


def _mixes(graph: _Graph, good: Mapping[Call, Tensor]) -> bool:
    """Return whether what is pulled back at some points reaches others.

    NaN is no evidence where a point gives it by itself, from cotangents that are zero.
    """
    zeros = graph.times([0.0] * len(graph.calls))

    @cache
    def is_finite(point: int, calls: tuple[Call, ...]) -> bool:
        """Return whether zero cotangents give zeros at a point, and not 0 * NaN."""
        some = zeros.only(calls)
        return is_finite_alone(some.batch, some.calls, some.cotangents, point)

    def leaks(some: _Graph, point: int) -> bool:
        """Return whether the NaN at a point, where cotangents are zero, is that of others."""
        wanted = tuple(call for call in some.calls if bool(good[call][point]))
        if len(wanted) == len(some.calls) and is_finite(point, wanted):
            return True
        # One call's own NaN must not hide that of another.
        for one in some.only(wanted).each():
            rows = one.rows()
            if rows is not None and rows[point].isnan().any() and is_finite(point, (*one.calls,)):
                return True
        return False

    for spared in _separating(graph.batch.n_points):
        some = graph.without(spared)
        rows = some.rows()
        assert rows is not None
        if bool(torch.nan_to_num(rows[spared]).any()):
            return True
        strange = rows.isnan().any(dim=1)
        if any(bool(strange[point]) and leaks(some, point) for point in spared):
            return True
    return False


def _is_the_same_without_others(
    graph: _Graph, good: Mapping[Call, Tensor], tolerance: float
) -> bool:
    """Return whether the first, the last and the smallest point have the same derivatives alone.

    Calls whose derivative is zero or not finite there are compared at another point.
    """
    somewhere = torch.stack([good[call] for call in graph.calls]).any(dim=0)
    points = somewhere.nonzero().squeeze(1).tolist()
    if not points:
        return True
    left, tested = set(graph.calls), list[int]()
    todo = sorted({points[0], points[-1], smallest(graph.batch, points)})
    while todo:
        point = todo.pop(0)
        tested.append(point)
        wanted = [call for call in graph.calls if bool(good[call][point])]
        sizes = _sizes_alone(graph.only(wanted), point)
        if not _is_alike_alone(graph.only(sizes), sizes, point, tolerance):
            return False
        left -= {call for call, size in sizes.items() if 0 < size < math.inf}
        if not todo:
            further = (_further(graph.only([call]), good[call], tested) for call in left)
            todo = list(itertools.islice((one for one in further if one is not None), 1))
    return True


def smallest(batch: Batch, points: Sequence[int]) -> int:
    """Return that of some points whose largest entry is smallest.

    A network may scale images as soon as an entry of the batch is above 1. Of a black image, only
    the derivative shows it.
    """
    largest = batch.without_metric().varied[list(points)].abs().amax(dim=1)
    return points[int(largest.nan_to_num(torch.inf).argmin())]


def _sizes_alone(graph: _Graph, point: int) -> dict[Call, float]:
    """Return the largest entry of u^T J of each call at a point by itself; NaN: not finite."""
    sizes = {}
    for one in graph.alone(point).each():
        row = one.rows()
        size = 0.0 if row is None else float(row.abs().amax())
        sizes[one.calls[0]] = size if math.isfinite(size) else math.nan
    return sizes


def _further(graph: _Graph, good: Tensor, without: Collection[int]) -> int | None:
    """Return the first other point where a call's derivative is finite and not zero."""
    rows = graph.rows()
    if rows is None:
        return None
    sizes = rows.abs().amax(dim=1)
    found = (torch.isfinite(sizes) & (sizes > 0) & good.to(sizes.device)).nonzero().squeeze(1)
    return next((point for point in found.tolist() if point not in without), None)


def _is_alike_alone(
    graph: _Graph, sizes: Mapping[Call, float], point: int, tolerance: float
) -> bool:
    """Return whether a point has the derivatives that it has alone.

    Those of each call are scaled to one size: a call cannot hide behind a larger one. Where
    rounding breaks a tie (equal entries below a max pooling), a few entries differ and are as good:
    there, points close by, which have no ties, must agree up to rounding.
    """
    finite = [call for call, size in sizes.items() if math.isfinite(size)]
    for one in graph.only([call for call in sizes if call not in finite]).each():
        if not one.is_the_same_alone(point, tolerance):  # in which entries are finite
            return False
    if not finite:
        return True
    some = graph.only(finite).times([1 / (sizes[call] or 1.0) for call in finite])
    if _agree(some, point, tolerance):
        return True
    return _agree_close_by(some, point, tolerance) and all(
        one.is_the_same_alone(point, _ROUGHLY) for one in some.each()
    )


def _agree_close_by(graph: _Graph, point: int, tolerance: float) -> bool:
    """Return whether points close by show that one has its derivatives alone."""
    try:
        moved = graph.anew(_moved(graph.batch))
        rows = moved.rows()
    except Exception:  # they may not be what the network takes
        return False
    # Outside the domain of a root or a logarithm, nothing is left to compare.
    if rows is not None and not bool(torch.isfinite(rows[point]).all()):
        return False
    return _agree(moved, point, tolerance)


def _agree(graph: _Graph, point: int, tolerance: float) -> bool:
    """Return whether a point has its derivatives alone, from cotangents of two sizes."""
    larger = graph.times([_LARGER] * len(graph.calls))
    return all(one.is_the_same_alone(point, tolerance) for one in (graph, larger))


def _moved(batch: Batch) -> Batch:
    """Return a batch of points close by."""
    varied = batch.varied
    largest = torch.where(torch.isfinite(varied), varied.abs(), 0).amax(dim=1, keepdim=True)
    scale = _STEP * torch.where(largest > 0, largest, 1)
    return replace(batch, varied=varied + scale * _normal(tuple(varied.shape), 2411).to(varied))


def is_the_same_alone(
    batch: Batch,
    calls: Sequence[Call],
    cotangents: Sequence[Tensor],
    rows: Tensor,
    point: int,
    tolerance: float,
) -> bool:
    """Return whether a point, by itself, has the derivative that it has in a batch.

    `rows`, (points, n_in), are what cotangents of some calls, each (points, n_out), give when they
    are pulled back together. They are scaled so that u^T J is of size 1: a call cannot hide behind
    a larger one. The same entries must be finite; the tolerance is for the norm of the difference
    of those, relative to that of the row if it is larger than the number of calls.
    """
    row = _row_alone(batch, calls, cotangents, point)
    if row is None:
        return True
    known = torch.isfinite(row)
    if not torch.equal(known, torch.isfinite(rows[point])):
        return False
    off = torch.where(known, rows[point] - row, 0).norm()
    size = torch.where(known, row, 0).norm().clamp(min=len(calls))
    return bool(off <= tolerance * size)


def _alone(batch: Batch, point: int) -> Batch:
    """Return the batch of one of the points."""
    span = slice(point, point + 1)
    origin = None if batch.origin is None else batch.origin[span]
    return replace(batch, inputs=batch.inputs[span], varied=batch.varied[span], origin=origin)


def is_finite_alone(
    batch: Batch, calls: Sequence[Call], cotangents: Sequence[Tensor], point: int
) -> bool:
    """Return whether what is pulled back at a point by itself is finite."""
    row = _row_alone(batch, calls, cotangents, point)
    return row is None or bool(torch.isfinite(row).all())


def _row_alone(
    batch: Batch, calls: Sequence[Call], cotangents: Sequence[Tensor], point: int
) -> Tensor | None:
    """Return what cotangents, (points, n_out), give at a point by itself: (n_in,)."""
    varied, outputs = _graph(_alone(batch, point), calls)
    rows = _pulled(varied, outputs, [one[point : point + 1] for one in cotangents])
    return None if rows is None else rows[0]


def _graph(batch: Batch, calls: Sequence[Call]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the varied tensor of a new pass, and the outputs."""
    varied = batch.varied.detach().requires_grad_(True)
    with torch.enable_grad():
        return varied, batch.outputs(varied, calls)


def _separating(n_points: int) -> list[list[int]]:
    """Return few sets of points, so that for any two one holds the first and not the second.

    With k sets, each point is in another choice of k // 2 of them, none of which holds another one.
    """
    count = 2
    while math.comb(count, count // 2) < n_points:
        count += 1
    choices = list(itertools.islice(itertools.combinations(range(count), count // 2), n_points))
    return [[point for point in range(n_points) if one in choices[point]] for one in range(count)]


def _without(draw: Tensor, points: list[int]) -> Tensor:
    """Return a copy that is zero at some points."""
    spared = draw.clone()
    spared[points] = 0
    return spared


def _pulled(varied: Tensor, outputs: Sequence[Tensor], draws: Sequence[Tensor]) -> Tensor | None:
    """Pull cotangents back; None where nothing depends on the varied tensor."""
    # One backward pass for all calls: random cotangents do not cancel.
    used = [pair for pair in zip(outputs, draws, strict=True) if pair[0].requires_grad]
    if not used:
        return None
    (rows,) = torch.autograd.grad(
        contraction(*zip(*used, strict=True)), varied, allow_unused=True, retain_graph=True
    )
    return rows


def check_reverse(batch: Batch, call: Call, value: Tensor, tolerance: float) -> None:
    """Check that two passes that record gradients give one output and one derivative, at one point.

    `value` is the output without a graph, (1, n_out), finite. In a batch, `points_are_separate`
    shows it.

    Raises:
        ModelError: If they do not.
    """
    draw = _random(value.shape[1], batch).to(value)

    def row() -> Tensor:
        """Return what is pulled back through a new pass, whose graph is not kept."""
        varied, outputs = _graph(batch, [call])
        if not close(outputs[0].detach(), value, tolerance):
            raise ModelError(
                f"layer {call.label!r} gives a different output where gradients are recorded.",
                "Make the forward pass independent of requires_grad and torch.is_grad_enabled(),"
                " which some modules take for training.",
            )
        found = _pulled(varied, outputs, [draw])
        return torch.zeros_like(batch.varied) if found is None else found

    first, second = row(), row()
    known = torch.isfinite(first) & torch.isfinite(second)
    off = torch.where(known, first - second, 0).abs().max()
    size = torch.where(known, torch.maximum(first.abs(), second.abs()), 0).max()
    same_entries = torch.equal(torch.isfinite(first), torch.isfinite(second))
    if not same_entries or not bool(off <= tolerance * size):
        by = f"by {float(off / size):.1e} of its largest entry" if same_entries else "in NaN or inf"
        raise ModelError(
            f"the model is random in eval mode, or keeps state between backward passes: the"
            f" derivative of layer {call.label!r} differs {by} between two of them.",
            "Use the module's deterministic mode, functional dropout with training=self.training,"
            " or plain operations for a custom torch.autograd.Function that draws random numbers.",
        )


def modes_agree(batch: Batch, calls: Sequence[Call], good: Tensor, tolerance: float) -> bool:
    """Return whether u^T (J v) = (u^T J) v for a random u and v at every good point.

    They differ where a forward pass cuts the graph (no_grad) or a custom Function's backward is not
    its derivative: autograd's reverse mode is then taken as what the user means. `good`, (points,)
    bool, are points with finite outputs; the tolerance is relative to |u| |J v| + |u^T J| |v|.
    """
    direction = normal_direction(batch.n_in, batch.varied)
    tangents = [one[0] for one in pushforward(batch, calls, direction.unsqueeze(0))]
    cotangents = [_random(tangent.shape[1], batch) for tangent in tangents]
    for call, tangent, cotangent in zip(calls, tangents, cotangents, strict=True):
        row = pullback(batch, call, cotangent)
        forward = (cotangent * tangent).sum(1)
        reverse = (row * direction).sum(1)
        scale = cotangent.norm(dim=1) * tangent.norm(dim=1) + row.norm(dim=1) * direction.norm()
        known = good & torch.isfinite(forward) & torch.isfinite(reverse)
        if ((forward - reverse).abs() > tolerance * scale)[known].any():
            return False
    return True


def modes_agree_together(
    batch: Batch, calls: Sequence[Call], good: Tensor, tolerance: float
) -> bool:
    """Return whether the modes agree for all calls at once, as in `modes_agree`.

    The random u of each call is scaled so that |u| |J v| = 1: a call cannot hide behind a larger
    one, and random errors do not cancel. One backward pass serves all calls.
    """
    direction = normal_direction(batch.n_in, batch.varied)
    tangents = [one[0] for one in pushforward(batch, calls, direction.unsqueeze(0))]
    cotangents = []
    for tangent in tangents:
        cotangent = _random(tangent.shape[1], batch)
        size = cotangent.norm(dim=1) * tangent.norm(dim=1)
        usable = torch.isfinite(size) & (size > 0)
        cotangents.append(cotangent / torch.where(usable, size, 1).unsqueeze(1))
    varied = batch.varied.detach().requires_grad_(True)
    with torch.enable_grad():
        outputs = batch.outputs(varied, calls)
    (row,) = torch.autograd.grad(contraction(outputs, cotangents), varied, allow_unused=True)
    row = torch.zeros_like(batch.varied) if row is None else row
    pairs = zip(cotangents, tangents, strict=True)
    forward = torch.stack([(one * other).sum(1) for one, other in pairs]).sum(0)
    reverse = (row * direction).sum(1)
    scale = len(calls) + row.norm(dim=1) * direction.norm()
    known = good & torch.isfinite(forward) & torch.isfinite(reverse)
    return not bool(((forward - reverse).abs() > tolerance * scale)[known].any())


def random_cotangent(numel: int, batch: Batch, seed: int) -> Tensor:
    """Return a standard normal u at every point, (points, numel), the same on every device."""
    return _normal((batch.n_points, numel), seed).to(batch.varied)


def _random(numel: int, batch: Batch) -> Tensor:
    return random_cotangent(numel, batch, 2410)


def _normal(shape: tuple[int, ...], seed: int) -> Tensor:
    """Return the same numbers on every device, whatever the default device is."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
