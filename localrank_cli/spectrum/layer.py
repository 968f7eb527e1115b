"""The singular values of every chosen layer's Jacobian at every point.

This interface hides the routes: model, points and layers go in, `LayerSpectrum`s come out.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from localrank_cli.jacobian.blocks import BlockPortion, ChainPortion, Portion
from localrank_cli.jacobian.engine import Modes, Task, jacobians
from localrank_cli.jacobian.metric_factor import MetricFactor
from localrank_cli.layers.capture import Call
from localrank_cli.layers.plain import survey_precisely
from localrank_cli.layers.select import Selection, choose_layers, named_call
from localrank_cli.layers.setting import analysis_setting
from localrank_cli.layers.slices import positions
from localrank_cli.layers.survey import CallRecord, Survey, survey
from localrank_cli.spectrum.solve import Demand, solve_blocks, solve_chain, solve_stack
from localrank_cli.spectrum.svd import rounding

# The method of rows whose path holds float32.
EXACT_FLOAT32 = "exact(float32)"


@dataclass(frozen=True)
class Scale:
    """The reference of relative tolerances, where it is not a spectrum's own sigma_1."""

    values: Tensor  # sigma_1 of the whole Jacobian, (points,), float64
    rounding: Tensor  # (points,): how far it may be off


@dataclass(frozen=True)
class LayerSpectrum:
    """Singular values of one layer's Jacobian at every point."""

    layer: str
    module: str  # class name
    n_out: int
    n_in: int  # columns of the measured matrix: of J, or of J L in a metric
    computed: Tensor  # (points, min(n_out, n_in)), float64, CPU, descending; NaN: not finite
    rounding: Tensor  # (points,), float64: how far a singular value may be off
    method: str  # "exact", or "exact(float32)" where the path holds float32
    n_varied: int | None = None  # entries of the varied tensor; None: n_in
    scale: Scale | None = None  # None: its own sigma_1

    @property
    def values(self) -> Tensor:
        """Singular values, zero where they are below their rounding and thus noise.

        The same on every route: where the Gram matrix cannot tell small ones, the SVD did.
        """
        above = ~(self.computed <= self.rounding.unsqueeze(1))
        return torch.where(above, self.computed, 0)

    @property
    def finite(self) -> Tensor:
        """Which points count, shape (points,), bool."""
        return torch.isfinite(self.rounding)


@dataclass(frozen=True)
class Examination:
    """The results of one forward pass, before any Jacobian is computed."""

    survey: Survey
    records: tuple[CallRecord, ...]  # the chosen calls
    notes: tuple[str, ...]
    entries: Tensor | None = None  # of the varied tensor that are varied; None: all
    picked: dict[Call, Tensor] = field(default_factory=dict)  # entries of outputs; none: all

    @property
    def whole_records(self) -> tuple[CallRecord, ...]:
        """The chosen calls with their whole outputs."""
        calls = {record.call for record in self.records}
        return tuple(record for record in self.survey.records if record.call in calls)

    @property
    def n_in(self) -> int:
        """The number of entries that are varied."""
        return self.survey.n_in if self.entries is None else self.entries.shape[0]


def examine(
    model: nn.Module,
    points: Tensor,
    selection: Selection,
    dtype: torch.dtype,
    *,
    is_chosen: bool = False,
) -> Examination:
    """Return the layers that a selection chooses, from a run of the first point.

    The network must be on the points' device and in `dtype`, that of the Jacobian. `is_chosen` is
    whether `choose_precision` was called for its weights.
    """
    wrt = named_call(model, selection.wrt)
    if is_chosen:
        reason = ""
        with analysis_setting(model, dtype):
            seen = survey(model, points[:1].clone(), wrt)
    else:
        seen, reason = survey_precisely(model, points, wrt, dtype)
    chosen = choose_layers(model, seen, selection)
    if reason:
        chosen = replace(chosen, notes=(*chosen.notes, reason))
    entries = _varied_entries(seen, selection)
    if not selection.output_slice:
        return Examination(seen, chosen.records, chosen.notes, entries)
    picked = {}
    for record in chosen.records:
        what = f"the output of layer {record.call.label!r}"
        picked[record.call] = positions(
            selection.output_slice,
            record.shape,
            "--output-slice",
            what,
            is_complex=record.is_complex,
        )
    records = tuple(replace(one, shape=(picked[one.call].shape[0],)) for one in chosen.records)
    return Examination(seen, records, chosen.notes, entries, picked)


def _varied_entries(seen: Survey, selection: Selection) -> Tensor | None:
    """Return the entries of the varied tensor that are varied; None: all."""
    start, shape = 0, seen.varied_shape
    is_part = selection.part is not None and not selection.wrt
    if selection.part is not None and is_part:
        start, shape = selection.part[0], (1, *selection.part[1])
    text = selection.input_slice or ("..." if is_part else "")
    if not text:
        return None
    what, option = "the varied tensor", "--input-slice"
    return start + positions(text, shape, option, what, is_complex=seen.varied_is_complex)


@dataclass(frozen=True)
class Request:
    """How to compute spectra."""

    selection: Selection
    dtype: torch.dtype = torch.float64
    memory: int = 2**31  # bytes for Jacobians and intermediate results
    demand: Demand = field(default=Demand(None))
    metric: MetricFactor | None = None  # of the varied tensor; None: the identity
    scaled_by_whole: bool = False  # relative tolerances refer to sigma_1 without slices
    is_chosen: bool = False  # whether `choose_precision` was called for the network's weights


def layer_spectra(
    model: nn.Module, points: Tensor, request: Request, modes: Modes | None = None
) -> list[LayerSpectrum]:
    """Return the singular values of every chosen layer's Jacobian at every point.

    There is one spectrum for each chosen call, in order of execution. Points with a non-finite
    Jacobian, or with a non-finite pre-activation in this or an earlier layer, are NaN; with
    `scaled_by_whole` points whose whole Jacobian is not finite are, too. The network is on the
    points' device and in the request's dtype; `modes` from earlier checkpoints are updated.
    """
    modes = modes if modes is not None else Modes()
    if not request.scaled_by_whole:
        return _spectra(model, points, request, modes)
    # No certificate covers a tolerance from another spectrum, so every matrix takes the SVD.
    request = replace(request, demand=Demand(None))
    without = replace(request, selection=request.selection.whole)
    whole = _spectra(model, points, without, modes)
    parts = _spectra(model, points, request, modes)
    return [_with_scale(part, one) for part, one in zip(parts, whole, strict=True)]


def _with_scale(part: LayerSpectrum, whole: LayerSpectrum) -> LayerSpectrum:
    sound = whole.finite
    return replace(
        part,
        computed=torch.where(sound.unsqueeze(1), part.computed, torch.nan),
        rounding=torch.where(sound, part.rounding, torch.nan),
        scale=Scale(whole.computed[:, 0], whole.rounding),
    )


def _spectra(
    model: nn.Module, points: Tensor, request: Request, modes: Modes
) -> list[LayerSpectrum]:
    examination = examine(
        model, points, request.selection, request.dtype, is_chosen=request.is_chosen
    )
    task = Task(
        model=model,
        points=points,
        survey=examination.survey,
        records=examination.records,
        wrt=named_call(model, request.selection.wrt),
        dtype=request.dtype,
        memory=request.memory,
        metric=_sliced_metric(request.metric, examination),
        picked=examination.picked,
    )
    precision = torch.float32 if examination.survey.has_low_precision else request.dtype
    found = {record.call: _empty(record, task) for record in task.records}
    with analysis_setting(model, request.dtype):
        for portion in jacobians(task, modes):
            if isinstance(portion, Portion):
                rows = found[portion.record.call]
                values = _solve(portion, task.n_in, request.demand)
                _write_rows(rows, portion.start, portion.finite, values)
            elif isinstance(portion, BlockPortion):
                _solve_blocks(portion, task, found, request.demand)
            else:
                _solve_chain(portion, task, found, request.demand)
    return [_spectrum(record, found[record.call], task, precision) for record in task.records]


def _sliced_metric(metric: MetricFactor | None, examination: Examination) -> MetricFactor | None:
    entries = examination.entries
    if entries is None:
        return metric
    if metric is None:
        return MetricFactor(torch.ones((), dtype=torch.float64, device="cpu"), entries=entries)
    return replace(metric, entries=entries)


def _empty(record: CallRecord, task: Task) -> Tensor:
    width = min(record.numel, task.n_in)
    return torch.full((task.points.shape[0], width), torch.nan, dtype=torch.float64, device="cpu")


def _write_rows(rows: Tensor, start: int, finite: Tensor, values: Tensor) -> None:
    """Write the values of the finite points into their rows."""
    rows[start + finite.cpu().nonzero().squeeze(1)] = values


def _solve(portion: Portion, n_in: int, demand: Demand) -> Tensor:
    jacobians = portion.jacobians
    if not bool(portion.finite.all()):
        jacobians = jacobians[portion.finite.to(jacobians.device)]
    return solve_stack(jacobians, demand, n_in, portion.error)


def _solve_blocks(
    portion: BlockPortion, task: Task, found: dict[Call, Tensor], demand: Demand
) -> None:
    record = portion.record
    if bool(portion.finite.all()):
        shape = (record.numel, task.n_in)
        values = solve_blocks(portion.blocks, shape, demand, portion.error)
        _write_rows(found[record.call], portion.start, portion.finite, values)


def _solve_chain(
    portion: ChainPortion, task: Task, found: dict[Call, Tensor], demand: Demand
) -> None:
    shapes = {record.call: (record.numel, task.n_in) for record in task.records}
    anywhere = torch.stack(list(portion.finite.values())).any(dim=0).cpu()
    points = anywhere.nonzero().squeeze(1).tolist()
    for call, values in solve_chain(portion.chain, points, shapes, demand).items():
        finite = portion.finite[call].cpu()
        _write_rows(found[call], portion.start, finite, values[finite[anywhere]])


def _spectrum(
    record: CallRecord, values: Tensor, task: Task, precision: torch.dtype
) -> LayerSpectrum:
    n_in = task.n_in
    longest = max(record.numel, n_in)
    bound = rounding(values[:, 0], longest, precision)
    low = precision != torch.float64
    return LayerSpectrum(
        layer=record.call.label,
        module=record.module,
        n_out=record.numel,
        n_in=n_in,
        computed=values,
        rounding=bound,
        method=EXACT_FLOAT32 if low else "exact",
        n_varied=n_in if task.metric is None else task.metric.n_varied(task.survey.n_in),
    )
