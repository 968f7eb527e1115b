"""Products of one Jacobian with vectors: J v by forward mode, J^T u by reverse mode."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from localrank_cli.errors import LocalrankError, ModelError, cause
from localrank_cli.jacobian import guards
from localrank_cli.jacobian.batch import Batch
from localrank_cli.jacobian.cuts import rank_bound
from localrank_cli.jacobian.engine import Modes, Task, calls_of
from localrank_cli.jacobian.routes import normal_direction, pushforward
from localrank_cli.layers.capture import Call


@dataclass(frozen=True)
class PointBatch:
    """One point with respect to one source, checked as for whole Jacobians."""

    task: int  # index
    point: int
    batch: Batch
    finite: dict[Call, bool]  # whether everything up to a call is finite


def point_batches(tasks: Sequence[Task], modes: Modes) -> Iterator[PointBatch]:
    """Yield each point alone, for each task. To be called within `analysis_setting`.

    The tasks are of one model, at the same points.

    Raises:
        ModelError: If the model is random, or forward mode does not give its derivative.
    """
    model, dtype, tolerance = tasks[0].model, tasks[0].dtype, tasks[0].tolerance
    calls = calls_of(tasks)
    for index in range(tasks[0].points.shape[0]):
        point = tasks[0].points[index : index + 1].clone()
        values = guards.checked_values(model, point, calls, tolerance, dtype, first=index == 0)
        layouts = guards.lay_out(model, point, values, tolerance)
        if layouts is None:
            raise guards.unrepeatable_alone(model, point, values.outputs)
        for number, task in enumerate(tasks):
            batch = guards.make_batch(model, point, values, layouts, task.wrt)
            batch = batch.in_metric(task.metric, task.picked)
            finite = {one.call: bool(values.finite[one.call].all()) for one in task.records}
            _check_forward(batch, [call for call, good in finite.items() if good], task.tolerance)
            counted = replace(batch, advance=modes.progress.advance)
            yield PointBatch(number, index, counted, finite)


def _check_forward(batch: Batch, calls: Sequence[Call], tolerance: float) -> None:
    """Check that J v is the transpose of J^T u, for calls whose outputs are finite."""
    if not calls:
        return
    good = torch.ones(1, dtype=torch.bool, device=batch.varied.device)
    try:
        agree = guards.modes_agree(batch, calls, good, tolerance)
        reason = "it disagrees with reverse mode: a part runs under no_grad, or a custom backward"
        reason += " is not the derivative, or rounding is all that is left of it (saturated units)"
    except LocalrankError:
        raise
    except Exception as error:  # torch.func raises many types of error
        agree, reason = False, cause(error)
    if not agree:
        raise ModelError(
            f"--method interval: products J v need forward mode, which the network refuses"
            f" ({reason}).",
            "Leave out the layers after the failing operation (--exclude), or use --method exact.",
        )


@dataclass
class Products:
    """Products with the Jacobian of one call at one point, as rows of vectors in float64."""

    batch: Batch
    call: Call
    chunk: int  # how many vectors are pushed through at once
    modes: Modes
    residual: bool = False  # of J - 1
    _varied: Tensor = field(init=False)
    _output: Tensor = field(init=False)

    def __post_init__(self) -> None:
        # The graph is kept: each J^T u is then a backward pass alone.
        self._varied = self.batch.varied.detach().requires_grad_(True)
        with torch.enable_grad():
            (self._output,) = self.batch.outputs(self._varied, [self.call])

    @property
    def n_out(self) -> int:
        """Rows of the Jacobian."""
        return self._output.shape[1]

    def in_float64(self, model: nn.Module) -> "Products":
        """Return the products of a copy of the network in float64, at the same point."""
        batch = self.batch
        inputs = batch.inputs.double() if batch.inputs.is_floating_point() else batch.inputs
        origin = None if batch.origin is None else batch.origin.double()
        batch = replace(
            batch, model=model, inputs=inputs, varied=batch.varied.double(), origin=origin
        )
        return replace(self, batch=batch)

    def rank_bound(self) -> int | None:
        """Return what the rank cannot exceed, as one product shows; None where nothing is known."""
        if self.residual or not self._output.requires_grad:
            return None
        self.batch.advance(1)
        u = normal_direction(self._output.shape[1], self._output)
        return rank_bound(self._output, self._varied, u.unsqueeze(0))

    def apply(self, vectors: Tensor) -> Tensor:
        """Return J v for each row, (k, n_out)."""
        parts = []
        for some in torch.split(vectors, self.chunk):
            (found,) = pushforward(self.batch, [self.call], some.to(self.batch.varied))
            parts.append(found[:, 0])
        found = torch.cat(parts).detach().to(torch.float64)
        if not self.residual:
            return found
        metric, n_in = self.batch.metric, self.batch.without_metric().n_in
        return found - (vectors if metric is None else metric.step(vectors, n_in))

    def transpose(self, vectors: Tensor) -> Tensor:
        """Return J^T u for each row, (k, n_in)."""
        found = vectors.new_zeros(len(vectors), self.batch.n_in)
        if self._output.requires_grad:
            parts = [self._pulled_back(some) for some in torch.split(vectors, self.chunk)]
            found = torch.cat(parts).detach().to(torch.float64)
        if not self.residual:
            return found
        return found - (vectors if self.batch.metric is None else self.batch.metric.pulled(vectors))

    def _pulled_back(self, vectors: Tensor) -> Tensor:
        cotangents = vectors.to(self._output).unsqueeze(1)
        self.batch.advance(len(vectors))
        if self.modes.batched_reverse and len(vectors) > 1:
            try:
                return self._gradient(cotangents, batched=True)
            except Exception as error:  # vmap over a backward raises many types of error
                self.modes.batched_reverse = False
                slow = f"rows are computed one by one, which is slow ({cause(error)})"
                self.modes.notes.append(slow)
        return torch.cat([self._gradient(one, batched=False) for one in cotangents])

    def _gradient(self, cotangents: Tensor, *, batched: bool) -> Tensor:
        (found,) = torch.autograd.grad(
            self._output,
            self._varied,
            cotangents,
            retain_graph=True,
            is_grads_batched=batched,
            allow_unused=True,
        )
        if found is None:
            return self._varied.new_zeros(len(cotangents), self.batch.n_in)
        return found.reshape(-1, self.batch.n_in)
