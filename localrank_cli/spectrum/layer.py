"""The singular values of every chosen layer's Jacobian at every point.

This interface hides the routes: it takes model, points and layers, and returns `LayerSpectrum`s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from localrank_cli.jacobian.blocks import (
    AnyPortion,
    BlockPortion,
    ChainPortion,
    LocalPortion,
    PartBlockPortion,
    PartPortion,
    Portion,
)
from localrank_cli.jacobian.engine import Modes, Task, all_jacobians
from localrank_cli.jacobian.metric_factor import Metric, MetricFactor, PositionFactors
from localrank_cli.layers.axes import Axes
from localrank_cli.layers.capture import Call
from localrank_cli.layers.pairs import Source
from localrank_cli.layers.positions import make_parts
from localrank_cli.layers.select import Selection
from localrank_cli.layers.setting import analysis_setting
from localrank_cli.layers.survey import CallRecord
from localrank_cli.layers.triangle import (
    Triangle,
    feature_axis,
    sound,
    triangle_of,
    triangle_rows,
)
from localrank_cli.spectrum.examine import Examination, Pair, View, examine
from localrank_cli.spectrum.pooled import (
    Block,
    Pool,
    PooledSpectrum,
    PoolShape,
    pooled_bytes,
    pooled_spectrum,
)
from localrank_cli.spectrum.solve import (
    Demand,
    LocalCall,
    solve_blocks,
    solve_chain,
    solve_local,
    solve_stack,
)
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
    # Float64, CPU, (points * n_positions, min(n_out, n_in)): descending, and NaN if not finite.
    computed: Tensor
    rounding: Tensor  # (points * n_positions,), float64: how far a singular value may be off
    method: str  # "exact", or "exact(float32)" where the path holds float32
    n_varied: int | None = None  # entries of the varied tensor; None: n_in
    scale: Scale | None = None  # None: its own sigma_1
    n_positions: int = 1  # Jacobians of each point, which are all finite or none
    wrt: str = ""  # the source; empty: the network's input
    layer_index: int = 0  # among the chosen layers, in order of execution
    pooled: PooledSpectrum | None = None  # where it was asked for and a point counts
    blocks: tuple[Block, ...] = ()  # of a part of the points, in place of `pooled`

    @property
    def values(self) -> Tensor:
        """Singular values, zero where they are below their rounding and thus noise.

        The same on every route: the SVD computes those that the Gram matrix cannot resolve.
        """
        above = ~(self.computed <= self.rounding.unsqueeze(1))
        return torch.where(above, self.computed, 0)

    @property
    def finite(self) -> Tensor:
        """Which Jacobians count, shape (points * n_positions,), bool."""
        return torch.isfinite(self.rounding)


@dataclass(frozen=True)
class Request:
    """How to compute spectra."""

    selection: Selection
    dtype: torch.dtype = torch.float64
    memory: int = 2**31  # bytes for Jacobians and intermediate results
    demand: Demand = field(default=Demand(None))
    metric: MetricFactor | None = None  # of the varied tensor; None: the identity
    metrics: Mapping[Source, Metric] = field(
        default_factory=dict
    )  # of sources with one of their own
    scaled_by_whole: bool = False  # relative tolerances refer to sigma_1 without slices
    is_chosen: bool = False  # whether `choose_precision` was called for the network's weights
    seed: int = 0  # of the positions
    indices: tuple[int, ...] = ()  # of the points, which draw their positions; none: 0, 1, ...
    pooled: bool = False  # whether to add up the Jacobians, too
    is_part: bool = False  # whether other processes have further points of the checkpoint


def layer_spectra(
    model: nn.Module, points: Tensor, request: Request, modes: Modes | None = None
) -> list[LayerSpectrum]:
    """Return the singular values of every chosen layer's Jacobian at every point.

    There is one spectrum for each pair of a chosen call and a source, in order of execution. Points
    with a non-finite Jacobian, or with a non-finite pre-activation in this or an earlier layer, are
    NaN; with `scaled_by_whole` points whose whole Jacobian is not finite are, too. The network is
    on the points' device and in the request's dtype; `modes` from earlier checkpoints are updated.
    """
    modes = modes if modes is not None else Modes()
    modes.progress.span = 0.0, 1.0
    if not request.scaled_by_whole:
        return _spectra(model, points, request, modes)
    # No certificate covers a tolerance from another spectrum, so every matrix takes the SVD.
    request = replace(request, demand=Demand(None))
    without = replace(request, selection=request.selection.whole)
    modes.progress.span = 0.0, 0.5
    whole = _spectra(model, points, without, modes)
    modes.progress.span = 0.5, 1.0
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
    triangles = _triangles(model, points[:1].clone(), examination, request)
    tasks = [
        make_task(model, points, view, examination, request, triangles)
        for view in examination.views
    ]
    found = [
        {record.call: _empty(record, task, points.shape[0]) for record in task.records}
        for task in tasks
    ]
    pools: list[dict[Call, Pool]] = [{} for _ in tasks]
    if request.pooled:
        tasks, pools = _pools(tasks, examination, request)
    with analysis_setting(model, request.dtype):
        for index, portion in all_jacobians(tasks, modes):
            _solve(portion, tasks[index], found[index], request.demand)
            if request.pooled:
                assert not isinstance(
                    portion, ChainPortion | LocalPortion
                )  # the engine forms none to be added
                call = portion.record.call
                pools[index][call].add(portion, found[index][call])
    places = {view.label: index for index, view in enumerate(examination.views)}
    spectra = []
    for pair in examination.pairs:
        place, call = places[pair.view.label], pair.record.call
        spectrum = _spectrum(pair, tasks[place], found[place][call], request.dtype)
        pool = pools[place].get(call)
        spectra.append(spectrum if pool is None else _with_pool(spectrum, pool, request))
    return spectra


def _pools(
    tasks: Sequence[Task], examination: Examination, request: Request
) -> tuple[list[Task], list[dict[Call, Pool]]]:
    """Return the tasks within the memory that the sums over their Jacobians leave, and the sums."""
    shapes = pool_shapes(examination.views, tasks)
    n_points, is_part = tasks[0].points.shape[0], request.is_part
    taken = pooled_bytes(
        shapes, examination.positions, n_points, request.memory, keeps_blocks=is_part
    )
    pools = [
        {
            record.call: Pool(shapes[view.label, record.call], keeps_blocks=is_part)
            for record in view.records
        }
        for view in examination.views
    ]
    left = [replace(task, memory=request.memory - taken, pooled=True) for task in tasks]
    return left, pools


def pool_shapes(views: Sequence[View], tasks: Sequence[Task]) -> dict[tuple[str, Call], PoolShape]:
    """Return the Jacobians that `--pooled` adds, by source and layer; a task for each view."""
    shapes = {}
    for view, task in zip(views, tasks, strict=True):
        for record in task.records:
            parts = task.parts.get(record.call)
            n_rows, n_parts = (record.numel, 1) if parts is None else (parts.n_rows, parts.n_parts)
            shapes[view.label, record.call] = PoolShape(n_rows, _n_columns(task), n_parts)
    return shapes


def _with_pool(spectrum: LayerSpectrum, pool: Pool, request: Request) -> LayerSpectrum:
    if request.is_part:
        return replace(spectrum, blocks=pool.blocks())
    precision = torch.float32 if spectrum.method == EXACT_FLOAT32 else torch.float64
    return replace(spectrum, pooled=pooled_spectrum(pool.blocks(), spectrum.n_out, precision))


def make_task(
    model: nn.Module,
    points: Tensor,
    view: View,
    examination: Examination,
    request: Request,
    triangles: Mapping[Call, Triangle] | None = None,
) -> Task:
    """Return the Jacobians of a view at some points.

    Without `triangles` the task shows shapes and costs: no weight is factored.
    """
    metric = request.metrics.get(view.source, request.metric)
    by_place = metric if isinstance(metric, PositionFactors) else None
    whole = metric if isinstance(metric, MetricFactor) else None
    task = Task(
        model=model,
        points=points,
        survey=view.survey,
        records=view.records,
        wrt=view.source,
        dtype=request.dtype,
        memory=request.memory,
        metric=_sliced_metric(whole, view),
        place_metric=by_place,
        picked=view.picked,
        residual=request.selection.residual,
    )
    if examination.positions.is_all:
        return task
    assert view.source_axes is not None
    indices = request.indices or tuple(range(points.shape[0]))
    parts = {}
    for record in view.records:
        axes = view.axes[record.call]
        n_rows = None if task.residual else _triangle_rows(model, record.call, axes)
        if triangles is not None:
            triangle = triangles.get(record.call)
            n_rows = None if triangle is None else triangle.n_rows
        if n_rows is not None:
            axes = axes.with_features(n_rows)
        parts[record.call] = make_parts(
            examination.positions, axes, view.source_axes, request.seed, indices
        )
    own = {call: one for call, one in (triangles or {}).items() if call in parts}
    return replace(task, parts=parts, triangles=own)


def _triangles(
    model: nn.Module, point: Tensor, examination: Examination, request: Request
) -> dict[Call, Triangle]:
    """Return the factors of all chosen layers that have one, for all sources."""
    if examination.positions.is_all or request.selection.residual:
        return {}
    axes = examination.views[0].axes
    calls = [record.call for record in examination.records]
    along = [call for call in calls if _triangle_rows(model, call, axes[call]) is not None]
    found = {call: triangle_of(model.get_submodule(call.name)) for call in along}
    triangles = {call: one for call, one in found.items() if one is not None}
    with analysis_setting(model, request.dtype):
        return sound(model, point, triangles)


def _triangle_rows(model: nn.Module, call: Call, axes: Axes) -> int | None:
    """Return the rows of the factor of a layer that has one along its features; else None."""
    module = model.get_submodule(call.name)
    n_rows = None if axes.is_complex else triangle_rows(module)
    if n_rows is None or axes.feature != len(axes.shape) + feature_axis(module):
        return None
    return n_rows


def _sliced_metric(metric: MetricFactor | None, view: View) -> MetricFactor | None:
    entries = view.entries
    if entries is None:
        return metric
    if metric is None:
        return MetricFactor(torch.ones((), dtype=torch.float64, device="cpu"), entries=entries)
    return replace(metric, entries=entries)


def _empty(record: CallRecord, task: Task, n_points: int) -> Tensor:
    parts = task.parts.get(record.call)
    n_positions, n_in = (1, task.n_in) if parts is None else (parts.n_parts, _n_columns(task))
    shape = n_points * n_positions, min(record.numel, n_in)
    return torch.full(shape, torch.nan, dtype=torch.float64, device="cpu")


def _n_columns(task: Task) -> int:
    """Return the columns of each Jacobian."""
    n_features = _n_features(task)
    if n_features is None:
        return task.n_in
    return n_features if task.place_metric is None else task.place_metric.width(n_features)


def _n_features(task: Task) -> int | None:
    """Return the entries of one position of the source, where no more are varied."""
    columns = [one.columns for one in task.parts.values()]
    return None if not columns or columns[0] is None else columns[0].shape[2]


def _write_rows(rows: Tensor, start: int, finite: Tensor, values: Tensor) -> None:
    """Write the values of the finite points into their rows."""
    rows[start + finite.cpu().nonzero().squeeze(1)] = values


def _solve(portion: AnyPortion, task: Task, found: dict[Call, Tensor], demand: Demand) -> None:
    """Write the singular values of some Jacobians into the rows of their calls."""
    if isinstance(portion, ChainPortion):
        _solve_chain(portion, task, found, demand)
        return
    if isinstance(portion, LocalPortion):
        _solve_local(portion, task, found, demand)
        return
    rows, n_in = found[portion.record.call], _n_columns(task)
    if isinstance(portion, Portion):
        jacobians = portion.jacobians
        if not bool(portion.finite.all()):
            jacobians = jacobians[portion.finite.to(jacobians.device)]
        n_out = portion.record.numel
        values = solve_stack(jacobians, demand, n_in, portion.error, n_out, task.memory)
        _write_rows(rows, portion.start, portion.finite, values)
    elif isinstance(portion, BlockPortion):
        if bool(portion.finite.all()):
            shape = (portion.record.numel, n_in)
            values = solve_blocks(portion.blocks, shape, demand, portion.error)
            _write_rows(rows, portion.start, portion.finite, values)
    else:
        n_parts = task.parts[portion.record.call].n_parts
        by_point = rows.view(-1, n_parts, rows.shape[1])
        _solve_parts(portion, by_point, n_in, demand)


def _solve_local(
    portion: LocalPortion, task: Task, found: dict[Call, Tensor], demand: Demand
) -> None:
    """Write the singular values of some calls' Jacobians into the rows of each."""
    calls = []
    for record in portion.records:
        flags = portion.finite[record.call].tolist()
        held = zip(portion.jacobians[record.call], flags, strict=True)
        shape = record.numel, _n_columns(task)
        some = [one for one, good in held if good]
        calls.append(LocalCall(some, shape, portion.errors[record.call]))
    for record, values in zip(
        portion.records, solve_local(calls, demand, task.memory), strict=True
    ):
        call = record.call
        _write_rows(found[call], portion.start, portion.finite[call], values)


def _solve_parts(
    portion: PartPortion | PartBlockPortion, rows: Tensor, n_in: int, demand: Demand
) -> None:
    """Write the singular values of some positions into rows, (points, positions, r)."""
    n_out = portion.record.numel
    points = portion.start + portion.finite.cpu().nonzero().squeeze(1)
    if isinstance(portion, PartBlockPortion):
        if bool(portion.finite.all()):
            values = solve_blocks(portion.blocks, (n_out, n_in), demand)
            rows[points, portion.first] = values
        return
    jacobians = portion.jacobians[portion.finite.to(portion.jacobians.device)]
    values = solve_stack(jacobians.flatten(0, 1), demand, n_in, n_out=n_out)
    n_parts = jacobians.shape[1]
    rows[points, portion.first : portion.first + n_parts] = values.view(-1, n_parts, rows.shape[2])


def _solve_chain(
    portion: ChainPortion, task: Task, found: dict[Call, Tensor], demand: Demand
) -> None:
    shapes = {record.call: (record.numel, task.n_in) for record in task.records}
    anywhere = torch.stack(list(portion.finite.values())).any(dim=0).cpu()
    points = anywhere.nonzero().squeeze(1).tolist()
    for call, values in solve_chain(portion.chain, points, shapes, demand).items():
        finite = portion.finite[call].cpu()
        _write_rows(found[call], portion.start, finite, values[finite[anywhere]])


def _spectrum(pair: Pair, task: Task, values: Tensor, dtype: torch.dtype) -> LayerSpectrum:
    record, n_in = pair.record, _n_columns(task)
    precision = torch.float32 if task.survey.has_low_precision else dtype
    parts = task.parts.get(record.call)
    n_positions = 1 if parts is None else parts.n_parts
    bound = rounding(values[:, 0], max(record.numel, n_in), precision)
    # A point with one position that is not finite fails as a whole, in kept values too.
    whole = torch.isfinite(bound).view(-1, n_positions).all(dim=1).repeat_interleave(n_positions)
    bound = torch.where(whole, bound, torch.nan)
    values = torch.where(whole.unsqueeze(1), values, torch.nan)
    n_varied = _n_features(task) or n_in
    if task.metric is not None:
        n_varied = task.metric.n_varied(task.survey.n_in)
    return LayerSpectrum(
        layer=record.call.label,
        module=record.module,
        n_out=record.numel,
        n_in=n_in,
        computed=values,
        rounding=bound,
        method=EXACT_FLOAT32 if precision != torch.float64 else "exact",
        n_varied=n_varied,
        n_positions=n_positions,
        wrt=pair.view.label,
        layer_index=pair.layer_index,
    )
