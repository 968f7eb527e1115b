"""What analyze would do: from headers, one forward pass, and one or two timed points."""

import time
from dataclasses import asdict, dataclass
from typing import Any

from localrank_cli.jacobian.engine import Modes
from localrank_cli.measures.table import demand_of
from localrank_cli.results.record import CheckpointRecord
from localrank_cli.run.headers import PlannedCheckpoint, load_state
from localrank_cli.run.plan import Plan, SeriesPlan, place_points
from localrank_cli.spectrum.layer import Request, layer_spectra

# Points at which the second run is timed: what a batch saves for each point then shows.
_TIMED = 4


@dataclass(frozen=True)
class CheckpointLine:
    """One checkpoint."""

    checkpoint: str
    step: int | None
    weights: str  # key of the state dict in the file; "" for a bare one
    taken_off: str  # from the names of the weights
    problem: str = ""  # why it cannot be analysed


@dataclass(frozen=True)
class LayerLine:
    """One layer."""

    layer: str
    module: str
    n_out: int
    n_in: int
    max_rank: int


@dataclass(frozen=True)
class Inspection:
    """One series."""

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
    seconds: float | None  # an estimate for the whole series; None where it was not timed

    @property
    def n_failed(self) -> int:
        """Checkpoints that cannot be analysed."""
        return sum(bool(line.problem) for line in self.checkpoints)

    def to_json(self) -> dict[str, Any]:
        """Makes it fit for JSON.

        Returns:
            The fields.
        """
        return asdict(self)


def inspect_series(plan: Plan, series: SeriesPlan, *, timed: bool) -> Inspection:
    """Looks at one series.

    Args:
        plan: All that was asked for.
        series: Of the plan.
        timed: Whether to compute a point or two for the route and the time.

    Returns:
        What analyze would do.
    """
    modes, seconds = Modes(), None
    if timed and series.checkpoints:
        seconds = _estimate(plan, series, modes)
    records = series.examination.records
    n_in = series.examination.n_in
    return Inspection(
        run=series.run,
        folder=str(series.series.folder),
        model=series.settings.model.description,
        checkpoints=tuple(_line(planned) for planned in series.in_order),
        layers=tuple(
            LayerLine(r.call.label, r.module, r.numel, n_in, min(r.numel, n_in)) for r in records
        ),
        routes=tuple(modes.routes),
        n_points=len(series.points.indices),
        tolerances=tuple(tolerance.label for tolerance in series.settings.tolerances),
        memory=plan.memory,
        device=str(plan.device),
        seconds=seconds,
    )


def _line(planned: PlannedCheckpoint | CheckpointRecord) -> CheckpointLine:
    if isinstance(planned, CheckpointRecord):
        return CheckpointLine(planned.checkpoint, planned.step, "", "", planned.message)
    return CheckpointLine(
        planned.file.name, planned.step, planned.container, planned.stripping.description
    )


def _estimate(plan: Plan, series: SeriesPlan, modes: Modes) -> float:
    # The model is filled already. The first point warms up what is loaded or compiled once.
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
    for count in (1, 1, min(_TIMED, len(points))):
        started = time.perf_counter()
        layer_spectra(series.model, points[:count], request, modes)
        times.append(time.perf_counter() - started)
    _, one, several = times
    more = min(_TIMED, len(points)) - 1
    for_each = max(0.0, several - one) / more if more else 0.0
    return len(series.checkpoints) * (reading + one + (len(points) - 1) * for_each)
