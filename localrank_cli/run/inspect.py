"""Report what analyze would do, from headers, one forward pass, and a few timed points."""

import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from localrank_cli.checkpoints.series import find_folders, run_names
from localrank_cli.errors import Note
from localrank_cli.jacobian.engine import Modes
from localrank_cli.measures.table import demand_of
from localrank_cli.options.resolve import for_series
from localrank_cli.options.table import AnalyzeOptions
from localrank_cli.results.record import CheckpointRecord
from localrank_cli.run.contents import CheckpointLine, Contents, read_contents
from localrank_cli.run.headers import PlannedCheckpoint, load_state
from localrank_cli.run.plan import Plan, SeriesPlan, names_rule, place_points
from localrank_cli.spectrum.examine import Pair
from localrank_cli.spectrum.layer import Request, layer_spectra

# Points of the second timed run, enough to show what a batch saves for each point.
_BATCH = 4


@dataclass(frozen=True)
class LayerLine:
    """What `inspect` reports of a layer."""

    layer: str
    module: str
    n_out: int
    n_in: int
    max_rank: int
    wrt: str = ""
    axes: str = ""  # of the whole output, where positions are chosen


@dataclass(frozen=True)
class Inspection:
    """What `inspect` reports of a series."""

    run: str
    folder: str
    model: str
    checkpoints: tuple[CheckpointLine, ...]
    layers: tuple[LayerLine, ...]
    routes: tuple[str, ...]  # how Jacobians are computed, and why
    n_points: int
    tolerances: tuple[str, ...]
    memory: int  # bytes
    device: str
    seconds: float | None  # estimated for the whole series; None without timing

    @property
    def n_failed(self) -> int:
        """The number of checkpoints that cannot be analyzed."""
        return sum(bool(line.problem) for line in self.checkpoints)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return asdict(self)


def contents_of(options: AnalyzeOptions, note: Note) -> list[Contents] | None:
    """Return what each series holds and needs; None if the model and data of all are known."""
    named = find_folders(options.checkpoints, partial(names_rule, options))
    runs = run_names(list(named))
    every = [for_series(options, folder) for folder in sorted(named, key=lambda one: runs[one])]
    if all(one.options.data is not None and one.options.model is not None for one in every):
        return None
    found = [read_contents(one, named[one.folder], runs[one.folder], note) for one in every]
    return found if any(one.needs for one in found) else None


def inspect_series(plan: Plan, series: SeriesPlan, *, timed: bool) -> Inspection:
    """Return what analyze would do with a series of a plan.

    `timed` computes a few points for the route and the time.
    """
    modes, seconds = Modes(), None
    if timed and series.checkpoints:
        seconds = _estimate(plan, series, modes)
    return Inspection(
        run=series.run,
        folder=str(series.series.folder),
        model=series.settings.model.description,
        checkpoints=tuple(_line(planned) for planned in series.in_order),
        layers=tuple(_layer_line(pair) for pair in series.examination.pairs),
        routes=tuple(modes.routes),
        n_points=len(series.points.indices),
        tolerances=tuple(tolerance.label for tolerance in series.settings.tolerances),
        memory=plan.memory,
        device=str(plan.device),
        seconds=seconds,
    )


def _layer_line(pair: Pair) -> LayerLine:
    record, view = pair.record, pair.view
    n_out, n_in = record.numel, pair.n_in
    axes = view.axes[record.call].text() if view.axes else ""
    return LayerLine(
        record.call.label, record.module, n_out, n_in, min(n_out, n_in), view.label, axes
    )


def _line(planned: PlannedCheckpoint | CheckpointRecord) -> CheckpointLine:
    if isinstance(planned, CheckpointRecord):
        return CheckpointLine(planned.checkpoint, planned.step, "", "", planned.message)
    return CheckpointLine(
        planned.file.name, planned.step, planned.container, planned.stripping.description
    )


def _estimate(plan: Plan, series: SeriesPlan, modes: Modes) -> float:
    # Planning has loaded the weights. The first run is a warm-up.
    settings = series.settings
    started = time.perf_counter()
    load_state(series.checkpoints[0], plan.trust_pickle)
    reading = time.perf_counter() - started
    points = place_points(series.points, plan.device, settings.dtype)
    metric = series.metric.at(series.model, plan.device, settings.dtype)
    demand = demand_of(settings.tolerances, settings.noise)
    request = Request(
        settings.selection, settings.dtype, plan.memory, demand, metric, settings.by_whole
    )
    times = []
    batch = min(_BATCH, len(points))
    for count in (1, 1, batch):
        started = time.perf_counter()
        layer_spectra(series.model, points[:count], request, modes)
        times.append(time.perf_counter() - started)
    _, one, several = times
    per_point = max(0.0, several - one) / (batch - 1) if batch > 1 else 0.0
    return len(series.checkpoints) * (reading + one + (len(points) - 1) * per_point)
