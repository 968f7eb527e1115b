"""One output over all of the data, for covariances, samples and scores rather than Jacobians."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from localrank_cli.errors import LocalrankError, ModelError, one_line
from localrank_cli.jacobian.batch import Layout
from localrank_cli.jacobian.guards import close
from localrank_cli.layers.capture import Call, Capture
from localrank_cli.layers.outputs import first_tensor

# Points at either end of a batch whose outputs are compared with those of the points alone.
_END_POINTS = 2

_Result = TypeVar("_Result")


def outputs_everywhere(
    model: nn.Module, chunks: Iterable[Tensor], call: Call | None, tolerance: float
) -> Iterator[Tensor]:
    """Yield the outputs of a call (None: of the network) over chunks of data, each (points, numel).

    See `all_outputs_everywhere`.
    """
    forward = _network(model) if call is None else _calls(model, [call])
    for (rows,) in _everywhere(forward, chunks, tolerance):
        yield rows


def all_outputs_everywhere(
    model: nn.Module, chunks: Iterable[Tensor], calls: Sequence[Call], tolerance: float
) -> Iterator[tuple[Tensor, ...]]:
    """Yield the outputs of some calls over chunks of data, each (points, numel).

    To be called within `analysis_setting`. Many points are run at a time where that gives the same
    values as alone, up to a relative difference of `tolerance`.

    Yields:
        A tensor for each call, for each chunk.
    """
    return _everywhere(_calls(model, calls), chunks, tolerance)


_Forward = Callable[[Tensor], tuple[Tensor, ...]]


def _everywhere(
    forward: _Forward, chunks: Iterable[Tensor], tolerance: float
) -> Iterator[tuple[Tensor, ...]]:
    together = True
    for chunk in chunks:
        with torch.no_grad():
            rows = _together(forward, chunk, tolerance) if together else None
            # After one batch that differs, all points run alone: others may be mixed as well.
            together = rows is not None
            yield _alone(forward, chunk) if rows is None else rows


def _calls(model: nn.Module, calls: Sequence[Call]) -> _Forward:
    capture = Capture(model, calls)
    return lambda batch: _attempt(lambda: capture(batch))


def _network(model: nn.Module) -> _Forward:
    def forward(batch: Tensor) -> tuple[Tensor, ...]:
        """Return the output, which has to hold real numbers."""
        # A clone: a model may change its input in place.
        found = _attempt(lambda: first_tensor(model(batch.clone())))
        if found is not None and found.is_complex():
            raise ModelError(
                "the model's output is complex, and loss and accuracy need real numbers.",
                "Return real numbers from the model, or leave out --labels-key.",
            )
        if found is None or not found.is_floating_point():
            raise ModelError("the model's output holds no floating-point tensor.")
        return (found,)

    return forward


def _attempt(run: Callable[[], _Result]) -> _Result:
    try:
        return run()
    except LocalrankError:
        raise
    except Exception as error:  # the user's forward pass may raise anything
        raise ModelError(
            f"the model's forward pass failed on the data: {type(error).__name__}:"
            f" {one_line(error)}",
            "It ran at the drawn points: look for points that differ from them.",
        ) from error


def _together(forward: _Forward, points: Tensor, tolerance: float) -> tuple[Tensor, ...] | None:
    """Return the outputs of a batch, or None if they differ from those of its points alone."""
    # Every batch is checked, at both ends: a dependence on the batch (a largest value, a capacity
    # that the first points use up) need not show in the first batch, nor at its start.
    count = points.shape[0]
    tried = sorted({*range(min(_END_POINTS, count)), *range(max(0, count - _END_POINTS), count)})
    alone = _alone(forward, points[tried])
    if len(tried) == count == 1:
        return alone
    try:
        tensors = forward(points)
    except ModelError:  # a forward that takes only one point; one that fails alone will say so
        return None
    rows = list[Tensor]()
    for tensor, one, some in zip(tensors, forward(points[:1]), alone, strict=True):
        layout = Layout.find(tuple(one.shape), tuple(tensor.shape), count)
        if layout is None:
            return None
        rows.append(layout.split(tensor))
        if not close(some, rows[-1][tried], tolerance):
            return None
    return tuple(rows)


def _alone(forward: _Forward, points: Tensor) -> tuple[Tensor, ...]:
    every = [
        [one.reshape(1, -1) for one in forward(points[index : index + 1])]
        for index in range(points.shape[0])
    ]
    found = []
    for rows in zip(*every, strict=True):
        if len({row.shape for row in rows}) > 1:
            raise ModelError("the shape of the model's output depends on the point.")
        found.append(torch.cat(rows))
    return tuple(found)
