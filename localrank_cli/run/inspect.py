"""Report what analyze would do, from headers, forward passes, and a few timed products."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from localrank_cli.checkpoints.series import find_folders, run_names
from localrank_cli.errors import Note
from localrank_cli.layers.axes import Axes
from localrank_cli.options.resolve import for_series
from localrank_cli.options.table import AnalyzeOptions
from localrank_cli.remote.places import addressed
from localrank_cli.results.record import CheckpointRecord
from localrank_cli.run.beside import BesideNeed
from localrank_cli.run.contents import CheckpointLine, Contents, read_contents
from localrank_cli.run.estimate import Estimate, estimate, works_of
from localrank_cli.run.fits import Look, WayOut
from localrank_cli.run.headers import PlannedCheckpoint
from localrank_cli.run.plan import Plan, SeriesPlan, located, look_at, make_plan, names_rule


@dataclass(frozen=True)
class LayerLine:
    """What `inspect` reports of a layer, with respect to one source."""

    layer: str
    module: str
    wrt: str  # the source; empty: the network's input
    axes: str  # of the whole output; empty where no axis is that of the points alone
    grid: tuple[int, ...]  # the lengths of the position axes
    n_features: int | None  # entries at one position; None where the axes are not known
    n_out: int  # of one Jacobian
    n_in: int
    max_rank: int
    n_jacobians: int  # at each point
    jacobian_bytes: int  # of one
    needed_bytes: int  # the least budget for its singular values
    fits: bool
    mode: str  # forward, reverse or chain
    passes: int  # directions, which other layers share, or rows, at each point; 0 for a chain
    seconds: float | None  # of one checkpoint; None without timing


@dataclass(frozen=True)
class SourceLine:
    """What `inspect` reports of a source."""

    wrt: str  # empty: the network's input
    axes: str  # as in `LayerLine`
    n_in: int  # entries that are varied


@dataclass(frozen=True)
class WayOutLine:
    """A change with which everything fits in memory."""

    change: str  # words of the command line, or what to do
    result: str


@dataclass(frozen=True)
class Inspection:
    """What `inspect` reports of a series."""

    run: str
    folder: str
    model: str
    checkpoints: tuple[CheckpointLine, ...]
    sources: tuple[SourceLine, ...]
    layers: tuple[LayerLine, ...]
    ways_out: tuple[WayOutLine, ...]  # none where everything fits
    routes: tuple[str, ...]  # how Jacobians are computed, and why; of small networks alone
    n_points: int
    tolerances: tuple[str, ...]
    memory: int  # bytes
    device: str
    checkpoint_seconds: float | None  # estimated for one checkpoint; None without timing
    seconds: float | None  # for the whole series
    beside: tuple[BesideNeed, ...] = ()  # what --beside takes

    @property
    def n_failed(self) -> int:
        """The number of checkpoints that cannot be analyzed."""
        return sum(bool(line.problem) for line in self.checkpoints)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return asdict(self)


@addressed()
def inspect_all(
    options: AnalyzeOptions, note: Note, *, timed: bool
) -> Sequence[Inspection | Contents]:
    """Return what there is to report of each series; `timed` is whether to time a few products."""
    contents = contents_of(options, note)
    if contents is not None:
        return contents
    # A bad checkpoint takes one line of the report and does not end it.
    plan = make_plan(replace(options, on_error="skip"), note, refuses=False)
    return [inspect_series(plan, series, timed=timed) for series in plan.series]


def contents_of(options: AnalyzeOptions, note: Note) -> list[Contents] | None:
    """Return what each series holds and needs; None if the model and data of all are known."""
    options = located(options, note)
    named = find_folders(options.checkpoints, partial(names_rule, options))
    runs = run_names(list(named))
    every = [for_series(options, folder) for folder in sorted(named, key=lambda one: runs[one])]
    if all(one.options.data is not None and one.options.model is not None for one in every):
        return None
    found = [read_contents(one, named[one.folder], runs[one.folder], note) for one in every]
    return found if any(one.needs for one in found) else None


def inspect_series(plan: Plan, series: SeriesPlan, *, timed: bool) -> Inspection:
    """Return what analyze would do with a series of a plan, which need not fit in memory.

    `timed` measures a few products, or a few points of a small network, to estimate the time.
    """
    found = estimate(plan, series) if timed else Estimate(works_of(plan, series))
    look = look_at(plan, series)
    return Inspection(
        run=series.run,
        folder=series.series.place,
        model=series.settings.model.description,
        checkpoints=tuple(_line(planned) for planned in series.in_order),
        sources=tuple(_source_line(series, look, index) for index in range(_n_sources(series))),
        layers=_layer_lines(series, look, found),
        ways_out=tuple(WayOutLine(way.text, way.result) for way in _ways_out(look)),
        routes=found.routes,
        n_points=len(series.points.indices),
        tolerances=tuple(tolerance.label for tolerance in series.settings.tolerances),
        memory=plan.memory,
        device=str(plan.device),
        checkpoint_seconds=found.checkpoint,
        seconds=found.total,
        beside=tuple(series.beside_needs),
    )


def _ways_out(look: Look) -> Iterator[WayOut]:
    yield from look.ways_out()
    bounds = look.bounds_way()
    if bounds is not None:
        yield bounds


def _n_sources(series: SeriesPlan) -> int:
    return len(series.examination.views)


def _source_line(series: SeriesPlan, look: Look, index: int) -> SourceLine:
    view = series.examination.views[index]
    every, whole = look.axes
    axes = whole if view.source is None else every[view.source]
    return SourceLine(view.label, _text(axes), view.n_in)


def _text(axes: Axes) -> str:
    return "" if axes.batch is None else axes.text()


def _layer_lines(series: SeriesPlan, look: Look, found: Estimate) -> tuple[LayerLine, ...]:
    itemsize = series.settings.dtype.itemsize
    lines = []
    for one, need in zip(found.pairs, look.needs, strict=True):
        record, (n_out, n_in) = one.pair.record, need.shape
        axes = look.axes[0][record.call]
        is_known = axes.batch is not None
        lines.append(
            LayerLine(
                layer=record.call.label,
                module=record.module,
                wrt=one.pair.view.label,
                axes=_text(axes),
                grid=axes.grid if is_known else (),
                n_features=axes.n_features if is_known else None,
                n_out=n_out,
                n_in=n_in,
                max_rank=min(n_out, n_in),
                n_jacobians=one.work.n_matrices,
                jacobian_bytes=n_out * n_in * itemsize,
                needed_bytes=need.n_bytes,
                fits=need.n_bytes <= look.room,
                mode=one.work.mode,
                passes=one.work.passes,
                seconds=one.seconds,
            )
        )
    return tuple(lines)


def _line(planned: PlannedCheckpoint | CheckpointRecord) -> CheckpointLine:
    if isinstance(planned, CheckpointRecord):
        return CheckpointLine(planned.checkpoint, planned.step, "", "", planned.message)
    return CheckpointLine(
        planned.file.name, planned.step, planned.container, planned.stripping.description
    )
