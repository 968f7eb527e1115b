"""The one interface behind which the routes can change.

Model, points and layers go in; the singular values of every chosen layer's Jacobian at every point
come out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from localrank_cli.jacobian.engine import Modes, Task, jacobians
from localrank_cli.layers.capture import Call
from localrank_cli.layers.select import Selection, choose
from localrank_cli.layers.setting import analysis_setting
from localrank_cli.layers.survey import CallRecord, Survey, survey
from localrank_cli.spectrum.svd import rounding, singular_values


@dataclass(frozen=True)
class LayerSpectrum:
    """Singular values of one layer's Jacobian at every point."""

    layer: str
    module: str  # class name
    n_out: int
    n_in: int
    values: Tensor  # (points, min(n_out, n_in)), float64, CPU, descending; NaN: not finite
    rounding: Tensor  # (points,), float64: how far a singular value may be off
    method: str  # "exact", or "exact(float32)" where the path holds float32

    @property
    def finite(self) -> Tensor:
        """Which points count, shape (points,), bool."""
        return torch.isfinite(self.rounding)


@dataclass(frozen=True)
class Examination:
    """What one forward pass tells before any Jacobian is computed."""

    survey: Survey
    records: tuple[CallRecord, ...]  # the chosen calls
    notes: tuple[str, ...]


def examine(
    model: nn.Module, points: Tensor, selection: Selection, dtype: torch.dtype
) -> Examination:
    """Runs one point and picks the layers.

    Args:
        model: The network, on the points' device and in `dtype`.
        points: Shape (points, ...), at least one.
        selection: Which layers, and with respect to what.
        dtype: Of the Jacobian.

    Returns:
        The layers and notes.
    """
    wrt = Call.parse(selection.wrt) if selection.wrt else None
    with analysis_setting(model, dtype):
        seen = survey(model, points[:1].clone(), wrt)
        chosen = choose(model, seen, selection)
    return Examination(seen, chosen.records, chosen.notes)


@dataclass(frozen=True)
class Request:
    """How to compute spectra."""

    selection: Selection
    dtype: torch.dtype = torch.float64
    memory: int = 2**31  # bytes for Jacobians and intermediate results


def layer_spectra(
    model: nn.Module, points: Tensor, request: Request, modes: Modes | None = None
) -> list[LayerSpectrum]:
    """Computes the singular values of every chosen layer's Jacobian at every point.

    Args:
        model: The network, on the points' device and in the request's dtype.
        points: Shape (points, ...): each is given to the model as a batch of one.
        request: Which layers, and how.
        modes: What is known of the model from earlier checkpoints; updated.

    Returns:
        One spectrum for each chosen call, in order of execution. Points with a non-finite
        Jacobian, or with a non-finite pre-activation in this or an earlier layer, are NaN.
        Singular values under the rounding are exactly 0.
    """
    examination = examine(model, points, request.selection, request.dtype)
    task = Task(
        model=model,
        points=points,
        survey=examination.survey,
        records=examination.records,
        wrt=Call.parse(request.selection.wrt) if request.selection.wrt else None,
        dtype=request.dtype,
        memory=request.memory,
    )
    precision = torch.float32 if examination.survey.has_low_precision else request.dtype
    found = {record.call: _empty(record, task) for record in task.records}
    with analysis_setting(model, request.dtype):
        for portion in jacobians(task, modes if modes is not None else Modes()):
            rows = slice(portion.start, portion.start + portion.jacobians.shape[0])
            found[portion.record.call][rows] = _values(portion.jacobians, portion.finite)
    return [_spectrum(record, found[record.call], task, precision) for record in task.records]


def _empty(record: CallRecord, task: Task) -> Tensor:
    width = min(record.numel, task.survey.n_in)
    return torch.full((task.points.shape[0], width), torch.nan, dtype=torch.float64)


def _values(matrices: Tensor, finite: Tensor) -> Tensor:
    # One NaN makes LAPACK refuse the whole batch, and inf gives NaN without a word: only finite
    # matrices may reach it.
    good = finite.to(matrices.device) & torch.isfinite(matrices).flatten(1).all(dim=1)
    width = min(matrices.shape[1:])
    values = torch.full((matrices.shape[0], width), torch.nan, dtype=torch.float64)
    if good.any():
        values[good.cpu()] = singular_values(matrices[good])
    return values


def _spectrum(
    record: CallRecord, values: Tensor, task: Task, precision: torch.dtype
) -> LayerSpectrum:
    n_in = task.survey.n_in
    bound = rounding(values[:, 0], max(record.numel, n_in), precision)
    # Below its rounding a singular value is noise, and noise leaks into sums over all of them.
    floored = torch.where(values <= bound.unsqueeze(1), torch.zeros_like(values), values)
    return LayerSpectrum(
        layer=record.call.label,
        module=record.module,
        n_out=record.numel,
        n_in=n_in,
        values=floored,
        rounding=bound,
        method="exact" if precision == torch.float64 else "exact(float32)",
    )
