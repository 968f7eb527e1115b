"""Plan a run: check every checkpoint's header, and examine the model with one forward pass."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from localrank_cli.checkpoints.counting import EPOCHS, Counting
from localrank_cli.checkpoints.factors import without_factors
from localrank_cli.checkpoints.modules import HeldModule
from localrank_cli.checkpoints.names import NameRule, StepRule
from localrank_cli.checkpoints.order import StepScheme
from localrank_cli.checkpoints.reading import Footprint, footprint_of
from localrank_cli.checkpoints.series import (
    CheckpointFile,
    Series,
    find_checkpoints,
    find_folders,
    run_names,
)
from localrank_cli.checkpoints.trusted import provide_main
from localrank_cli.checkpoints.weights import RAW
from localrank_cli.errors import (
    BudgetError,
    LayerError,
    LocalrankError,
    ModelError,
    Note,
    SettingsError,
    UnreadableError,
)
from localrank_cli.intervals.layer import check_interval
from localrank_cli.jacobian.guards import agreement
from localrank_cli.layers.precision import run_alike
from localrank_cli.machine import check_memory, free_memory, memory_budget, pick_device
from localrank_cli.measures.table import AVERAGED, choice_of
from localrank_cli.model.arguments import Recorded
from localrank_cli.model.build import WholeLayer, move_model
from localrank_cli.model.fill import Expected, fill_model
from localrank_cli.model.twice import Network
from localrank_cli.options.decisive import decisive
from localrank_cli.options.folder import FolderSettings
from localrank_cli.options.resolve import (
    ModelChoice,
    SeriesOptions,
    Settings,
    check_names,
    check_step_names,
    for_series,
    resolve,
    with_folder,
)
from localrank_cli.options.table import AnalyzeOptions, check_options
from localrank_cli.points.draw import Points
from localrank_cli.points.files import file_hash
from localrank_cli.points.inputs import Forward, Inputs
from localrank_cli.points.shape import proposals, written
from localrank_cli.points.source import load_points
from localrank_cli.remote.address import address_of
from localrank_cli.remote.places import Where, addressed, attached, brought, local, shown
from localrank_cli.results.columns import INTERVALS, PARTS, POOLED, optional_first
from localrank_cli.results.manifest import DEFINITIONS
from localrank_cli.results.plan_file import ListedSeries, PlanFile
from localrank_cli.results.record import FLOAT64_THROUGHOUT, CheckpointRecord
from localrank_cli.run.activation import given_activation, with_held_activation
from localrank_cli.run.beside import BesideNeed, beside_needs, check_beside
from localrank_cli.run.builds import check_outputs
from localrank_cli.run.contents import refuse_without_data
from localrank_cli.run.covariance import MetricPlan, plan_metric
from localrank_cli.run.factored import with_factors
from localrank_cli.run.finished import Finished, layers_of
from localrank_cli.run.fits import Look, place_one
from localrank_cli.run.headers import (
    Failures,
    HeaderContext,
    Headers,
    PlannedCheckpoint,
    choose_part,
    describe_missing,
    load_state,
)
from localrank_cli.run.missing import Parts
from localrank_cli.run.network import can_infer, check_unsaved, make_model
from localrank_cli.run.samples import SamplePlan, plan_samples, with_beside
from localrank_cli.spectrum.examine import Examination, examine
from localrank_cli.spectrum.layer import Request, make_task, pool_shapes
from localrank_cli.spectrum.pooled import pooled_bytes
from localrank_cli.spectrum.tolerance import check_rounding
from localrank_cli.userimport import import_object

_RESUBMIT = "Submit again once nothing writes to it; finished checkpoints are kept."


@dataclass(frozen=True)
class SeriesPlan:
    """One series, ready to run."""

    run: str
    series: Series
    settings: Settings
    checkpoints: tuple[PlannedCheckpoint, ...]  # by step
    failures: tuple[CheckpointRecord, ...]  # with --on-error skip
    names: frozenset[str]  # of all checkpoints in the folder, chosen or not
    model: nn.Module
    expected: Expected
    points: Points
    model_facts: dict[str, object]
    data_facts: dict[str, object]
    examination: Examination  # of the first checkpoint
    metric: MetricPlan
    samples: SamplePlan
    scheme: StepScheme
    weights: str  # which of several sets in one file
    unsaved: tuple[str, ...] = ()  # parts that no checkpoint holds, with --allow-unsaved
    examined: tuple[str, ...] = ()  # names of the checkpoints that the network has run with
    recorded: Recorded | None = None  # arguments that the checkpoints gave to the network's class
    held: tuple[tuple[HeldModule, ...], Path | None] = ((), None)  # a file's whole module, and it

    @property
    def in_order(self) -> list[PlannedCheckpoint | CheckpointRecord]:
        """Checkpoints and failures by step; those without a step come last."""
        every: list[PlannedCheckpoint | CheckpointRecord] = [*self.checkpoints, *self.failures]
        return sorted(every, key=lambda one: math.inf if one.step is None else one.step)

    @property
    def beside_needs(self) -> list[BesideNeed]:
        """The memory that the columns of `--beside` take."""
        samples = self.samples
        return beside_needs(samples.beside, self.model, self.examination, samples.n_points)

    @property
    def optional_columns(self) -> tuple[str, ...]:
        """The columns after `message`, in order: those of localrank, then the series' constants."""
        return (
            *(["epoch"] if self.scheme.counting.kind == EPOCHS else []),
            *(PARTS if self.settings.has_parts else []),
            *(POOLED if self.settings.pooled else []),
            *(INTERVALS if self.settings.bounds is not None else []),
            *(["n_cov"] if self.settings.input_metric == "data" else []),
            *self.settings.slices,
            *self.samples.columns,
            *self.settings.columns,
        )


@dataclass(frozen=True)
class Plan:
    """All series, in order of run."""

    series: tuple[SeriesPlan, ...]
    device: torch.device
    memory: int
    extra_columns: tuple[str, ...]
    trust_pickle: bool
    skips_errors: bool

    @property
    def n_checkpoints(self) -> int:
        """The number of checkpoints, failures included."""
        return sum(len(series.in_order) for series in self.series)


@addressed()
def make_plan(
    options: AnalyzeOptions,
    note: Note,
    plan_file: PlanFile | None = None,
    *,
    is_here: bool = True,
    refuses: bool = True,
    finished: Mapping[str, Finished] | None = None,
) -> Plan:
    """Plan a run of all checkpoints, or of those that a plan file lists.

    Nothing is computed but one forward pass for each series. `is_here` is whether the run is on
    this machine, whose memory then bounds `--memory`. Without `refuses`, what does not fit in
    memory is planned too. `finished` is what earlier results hold of each run, by which less is
    fetched from other machines.
    """
    check_options(options)
    check_names(SeriesOptions(options, FolderSettings(), Path()))
    device = pick_device(options.device or "auto")
    note = _addressing(note)
    if is_here:
        check_memory(options.memory, device)
    options = located(options, note)
    named = find_folders(options.checkpoints, partial(names_rule, options))
    runs = run_names(list(named))
    memory = memory_budget(device) if options.memory is None else options.memory
    planned = []
    # Building models draws weights, and importing a user's code may set seeds.
    with torch.random.fork_rng(devices=[]):
        for folder in sorted(named, key=lambda folder: runs[folder]):
            prefix = f"{runs[folder]}: " if len(named) > 1 else ""
            of_series = for_series(replace(options, memory=memory), folder)
            series = _find_series(of_series, named[folder])
            refuse_without_data(of_series, named[folder], runs[folder])
            planned.append(
                _plan_series(
                    of_series,
                    series,
                    plan_file.of_run(runs[folder]) if plan_file is not None else None,
                    runs[folder],
                    device,
                    _prefixed(note, prefix),
                    extent=_Extent(refuses, (finished or {}).get(runs[folder])),
                )
            )
    return _checked(_plan_of(planned, options, device, memory), note, refuses=refuses)


def _addressing(note: Note) -> Note:
    return lambda text: note(shown(text))


def located(options: AnalyzeOptions, note: Note) -> AnalyzeOptions:
    """Return options with paths on this machine in place of addresses, which are listed."""
    where = Where(options.cache, keeps=options.keep_downloads)
    checkpoints = tuple(local(options.checkpoints, where, note))
    data = options.data
    if isinstance(data, str) and address_of(data) is not None:
        data = str(*local([Path(data)], where, note))
    return replace(options, checkpoints=checkpoints, data=data)


def plan_held(options: AnalyzeOptions, file: CheckpointFile, run: str, note: Note) -> Plan:
    """Plan a run of one checkpoint in memory, whose content holds its step.

    No folder is looked at: settings come from the options alone.
    """
    device = pick_device(options.device or "auto")
    check_memory(options.memory, device)
    memory = memory_budget(device) if options.memory is None else options.memory
    own = with_folder(replace(options, memory=memory), FolderSettings(), Path())
    check_names(own)
    with torch.random.fork_rng(devices=[]):
        series = Series(Path(), (file,))
        planned = _plan_series(own, series, None, run, device, note, extent=_Extent())
    return _checked(_plan_of([planned], options, device, memory), note, refuses=True)


def _plan_of(
    planned: Sequence[SeriesPlan], options: AnalyzeOptions, device: torch.device, memory: int
) -> Plan:
    return Plan(
        series=tuple(planned),
        device=device,
        memory=memory,
        extra_columns=optional_first(name for plan in planned for name in plan.optional_columns),
        trust_pickle=options.trust_pickle,
        skips_errors=options.skips_errors,
    )


def _checked(plan: Plan, note: Note, *, refuses: bool) -> Plan:
    """Return a plan after checking that its Jacobians fit in memory; see `make_plan`."""
    memory = plan.memory
    for one in plan.series:
        if refuses:
            check_beside(one.samples.beside, one.beside_needs, one.samples.n_points, memory)
        try:
            _check_pooled(one, memory)
        except (BudgetError, LayerError) as error:
            if refuses:
                raise
            note(f"{error.what} {error.advice}")
        if refuses and one.settings.bounds is not None:
            _check_vectors(one, memory)
        elif refuses:
            look_at(plan, one).check()
    return plan


def look_at(plan: Plan, series: SeriesPlan) -> Look:
    """Return what decides whether the Jacobians of a series fit."""
    return Look(
        model=series.model,
        points=place_one(series.points.tensor, plan.device, series.settings.dtype),
        settings=series.settings,
        examination=series.examination,
        metric=series.metric,
        memory=plan.memory,
        free=free_memory(plan.device),
    )


def _check_vectors(plan: SeriesPlan, memory: int) -> None:
    """Check that the vectors of each interval fit."""
    assert plan.settings.bounds is not None
    for pair in plan.examination.pairs:
        check_interval(
            pair.record,
            pair.n_in,
            pair.view.survey,
            plan.settings.bounds.products,
            memory - plan.metric.n_bytes,
        )


def _check_pooled(plan: SeriesPlan, memory: int) -> None:
    """Check that the sums for `--pooled` over all points fit; of fewer, their run checks them.

    Where they do, each Jacobian fits beside them: the QR of a sum takes more than its reduction.
    """
    settings, found = plan.settings, plan.examination
    if not settings.pooled:
        return
    points = place_one(plan.points.tensor, torch.device("cpu"), settings.dtype)
    request = Request(settings.selection, settings.dtype)
    tasks = [make_task(plan.model, points, view, found, request) for view in found.views]
    shapes = pool_shapes(found.views, tasks)
    if plan.metric.n_cov is not None:
        shapes = {
            key: replace(shape, n_columns=min(shape.n_columns, plan.metric.n_cov))
            for key, shape in shapes.items()
        }
    n_points, left = len(plan.points.indices), memory - plan.metric.n_bytes
    pooled_bytes(shapes, found.positions, n_points, left, keeps_blocks=False)


def names_rule(options: AnalyzeOptions, folder: Path) -> NameRule:
    """Return the rule by which the names in a folder are read, if it is a series."""
    try:
        return for_series(options, folder).step_rule.names
    except SettingsError:  # it need not be one: the parent of a series may hold anything
        return SeriesOptions(options, FolderSettings(), folder).step_rule.names


@dataclass(frozen=True)
class _Extent:
    """How far a series is planned."""

    refuses: bool = True  # whether what does not fit in memory is refused
    finished: Finished | None = None  # what earlier results hold


def _plan_series(
    series_options: SeriesOptions,
    series: Series,
    entry: ListedSeries | None,  # of the plan file
    run: str,
    device: torch.device,
    note: Note,
    *,
    extent: "_Extent",
) -> SeriesPlan:
    """Plan a series: what to load, the network that it fits, and the points to run it at."""
    options, folder = series_options.options, series_options.folder
    settings = _resolve(series_options, note)
    series, headers = _headers(options, settings, series, entry, series_options.step_rule)
    failures = Failures(run, skips=options.skips_errors)
    steps = failures.steps(headers, note, folder)
    settings = _with_held_activation(settings, headers, series_options)
    files = [file for file, _ in steps]
    network = _build(settings.model, headers, (files, folder), note, skips=options.skips_errors)
    expected = network.expected  # before the network is filled or moved
    settings, points, facts = _load_for(settings, network.model)
    if "data" in facts:
        facts["data"] = shown(str(facts["data"]))
    for text in points.notes:
        note(text)
    move_model(network.model, device, settings.dtype)
    placed = place_points(points, device, settings.dtype)
    look = _FirstLook(
        network.model, expected, settings, placed, options.trust_pickle, points.inputs
    )
    look.fetches, look.finished = extent.refuses, extent.finished
    fit = _fit(series_options, steps, headers, failures, network, look, note)
    _check_tolerances(settings, fit.examination)
    memory = options.memory or 0
    samples = plan_samples(settings, points, facts, fit.examination, memory, refuses=extent.refuses)
    return SeriesPlan(
        run=run,
        series=series,
        settings=settings,
        checkpoints=fit.checkpoints,
        failures=fit.failures,
        names=frozenset(file.name for file in series.files),
        model=network.model,
        expected=expected,
        points=points,
        model_facts=_model_facts(settings.model),
        data_facts=facts,
        examination=fit.examination,
        metric=plan_metric(settings, points, fit.examination, memory, note, refuses=extent.refuses),
        samples=with_beside(samples, expected.tied, fit.examination),
        scheme=headers.scheme,
        held=(headers.modules, headers.place),
        weights=options.weights or RAW,
        unsaved=fit.unsaved,
        examined=fit.examined,
        recorded=network.recorded,
    )


def _resolve(options: SeriesOptions, note: Note) -> Settings:
    """Return the settings of a series, with their notes passed on."""
    settings = resolve(options)
    for text in settings.notes:
        note(text)
    for path in _named_files(settings):
        brought(path)
    if options.options.trust_pickle:
        _provide_main(settings.model)
    return settings


def _named_files(settings: Settings) -> Iterator[Path]:
    """Yield the files that settings name, which may be on another machine."""
    codes = [settings.model.code]
    if settings.source.array is None:
        codes.append(settings.source.code)
        if settings.source.path is not None:
            yield settings.source.path
    for code in codes:
        if code is not None and code.is_file:
            yield Path(code.place)


@dataclass(frozen=True)
class _Fit:
    """The checkpoints of a series that fit its network, and the first look at the network."""

    checkpoints: tuple[PlannedCheckpoint, ...]  # chosen with --steps
    failures: tuple[CheckpointRecord, ...]
    examination: Examination
    examined: tuple[str, ...]  # names of the checkpoints that the network has run with
    unsaved: tuple[str, ...]  # parts that no checkpoint holds


def _fit(
    options: SeriesOptions,
    steps: Sequence[tuple[CheckpointFile, int]],
    headers: Headers,
    failures: Failures,
    network: Network,
    look: "_FirstLook",
    note: Note,
) -> _Fit:
    """Check that each checkpoint fits the network, and run the network at the first one."""
    folder, allowed = options.folder, options.options.allow_unsaved
    every = failures.fitting(
        steps,
        lambda file, step: headers.plan(file, step, look.model, look.expected),
        folder,
    )
    name = f"--model {look.settings.model.description}"
    unsaved = check_unsaved(network, name, headers.unfilled, note, allowed=allowed)
    chosen, failed = choose_part(options.options.part, every, failures.records, folder)
    _note_weights(chosen, note)
    examination, examined = look.without_fetching(chosen) or failures.first_that_runs(
        chosen or every, look.examine
    )
    parts = Parts(look.model, [record.call for record in examination.records], look.points)
    checkpoints, incomplete = failures.complete(chosen, parts, folder)
    for text in (*describe_missing(checkpoints), *examination.notes):
        note(text)
    return _Fit(
        checkpoints=checkpoints,
        failures=(*failed, *incomplete),
        examination=examination,
        examined=examined,
        unsaved=unsaved or look.compare(network, examination, note, allowed=allowed),
    )


def _build(
    choice: ModelChoice,
    headers: Headers,
    place: tuple[Sequence[CheckpointFile], Path],
    note: Note,
    *,
    skips: bool,
) -> Network:
    """Build the network, and have each checkpoint compared with what it was built from."""
    first = without_factors(headers.first or {}, headers.factored)
    weights = (first, headers.held)
    network = make_model(choice, place, weights, headers.sources(place[0]), note, skips=skips)
    headers.recorded = network.recorded
    return with_factors(network, headers.first, note)


def _find_series(options: SeriesOptions, named: Sequence[Path]) -> Series:
    """Return the checkpoints; a folder without them is reported before missing data."""
    check_names(options)
    pattern, rule = options.options.pattern or "", options.step_rule
    series = attached(
        find_checkpoints(options.folder, named, pattern, options.data_files, rule.names)
    )
    check_step_names(options, [file.label or Path(file.name).name for file in series.files])
    return series


def _provide_main(choice: ModelChoice) -> None:
    """Let trusted pickles of a script's classes find them in the module of `--model`."""
    if choice.code is not None:
        module = sys.modules.get(getattr(import_object(choice.code, "--model"), "__module__", ""))
        if module is not None:
            provide_main(module)


def _headers(
    options: AnalyzeOptions,
    settings: Settings,
    series: Series,
    entry: ListedSeries | None,
    rule: StepRule,
) -> tuple[Series, Headers]:
    """Return the series, cut to a plan file's entry if there is one, and its headers."""
    choice = settings.model
    context = HeaderContext(series.files, is_inferred=choice.is_inferred, is_hf=choice.is_hf)
    if entry is not None:
        context = replace(context, counting=Counting.of_text(entry.settings.get("counting")))
        series = listed_part(series, entry)
    return series, Headers(series, options.trust_pickle, rule, options.weights or RAW, context)


def _with_held_activation(settings: Settings, headers: Headers, options: SeriesOptions) -> Settings:
    choice = settings.model
    if (
        not choice.is_inferred
        or not headers.first
        or not can_infer(without_factors(headers.first, headers.factored))
    ):
        return settings
    given = given_activation(options)
    found = with_held_activation(choice, headers.modules, given, headers.place)
    return replace(settings, model=found)


def _note_weights(checkpoints: Sequence[PlannedCheckpoint], note: Note) -> None:
    for description in sorted({c.stripping.description for c in checkpoints} - {""}):
        note(f"stripped from the weights' names: {description}")
    if any(one.stripping.masked for one in checkpoints):
        note("pruned weights are multiplied by their masks (weight_orig * weight_mask)")
    for text in sorted(
        {_which_weights(c) for c in checkpoints if c.ignored or c.averaged or c.is_found}
    ):
        note(text)


def _which_weights(checkpoint: PlannedCheckpoint) -> str:
    container = checkpoint.container
    where = f"weights under {container!r}" if container else "bare state dict"
    average = " (ema)" * checkpoint.averaged
    ignored = f", not {', '.join(checkpoint.ignored)} (--weights)" if checkpoint.ignored else ""
    return f"using the {where}{average}{ignored}"


def _model_facts(choice: ModelChoice) -> dict[str, object]:
    if choice.code is not None and choice.code.is_file:
        return {"model_sha256": file_hash(Path(choice.code.place))}
    return {}


@dataclass
class _FirstLook:
    """The examination of a network at the first checkpoint that can be read."""

    model: nn.Module
    expected: Expected
    settings: Settings
    points: Tensor
    trust_pickle: bool
    inputs: Inputs | None = None
    checkpoint: PlannedCheckpoint | None = None
    # Whether weights on another machine are fetched; the network runs without them otherwise.
    fetches: bool = True
    finished: Finished | None = None  # what earlier results hold

    def without_fetching(
        self, planned: Sequence[PlannedCheckpoint]
    ) -> tuple[Examination, tuple[str, ...]] | None:
        """Examine the network without bringing a first checkpoint here that is finished.

        It runs with the weights of the first that is left, which are needed anyway, or else with
        those that its code gives it. None if the finished one is needed: it is not the first, or
        the network runs in another way with its weights.
        """
        known = self.finished
        if known is None or not self.fetches or not planned or not known.has(planned[0]):
            return None
        left = next((one for one in planned if not known.has(one)), None)
        if left is None and known.needs_weights:
            return None
        self.fetches = left is not None
        try:
            found = self.examine(left or planned[0])
        except LocalrankError:
            found = None
        one_source = self.settings.selection.has_one_source
        if found is None or not known.fits(found, one_source=one_source):
            self.fetches = True
            return None
        return found, (() if left is None else (left.file.name,))

    def examine(self, checkpoint: PlannedCheckpoint) -> Examination:
        """Fill the network and run a point."""
        self.checkpoint = checkpoint
        self._fill(self.model)
        try:
            return self._examined(self.points)
        except ModelError as error:
            advice = self._shape_that_runs()
            raise ModelError(error.what, advice or error.advice) from error

    def _examined(self, points: Tensor) -> Examination:
        return examine(self.model, points, self.settings.selection, self.settings.dtype)

    def _shape_that_runs(self) -> str:
        """Return what to do about points whose shape is wrong; empty if no other shape runs."""
        if self.inputs is not None:
            return f"A point consists of {self.inputs.text}: check what the model expects."
        there = tuple(self.points.shape[1:])
        source = self.settings.source
        kind, colon, _ = source.text.partition(":")
        option = f"--data {kind}{colon}" if source.is_drawn else "--data-shape "
        for shape in proposals(there, self.model):
            with suppress(LocalrankError):  # the network does not run on this shape either
                self._examined(self.points[:1].reshape(1, *shape))
                return f"A point of shape {written(shape)} runs: give {option}{written(shape)}."
        if len(there) > 1:
            with suppress(LocalrankError):  # the network does not run on this order either
                self._examined(self.points[:1].movedim(-1, 1))
                order = ", ".join(map(str, (0, len(there), *range(1, len(there)))))
                return (
                    f"A point with its last axis first runs: save x.permute({order}) in place of x,"
                    " or return it from a function for --data file.py:name."
                )
        return ""

    def compare(
        self, network: Network, examination: Examination, note: Note, *, allowed: bool
    ) -> tuple[str, ...]:
        """Compare the network with another build; see `check_outputs`."""
        if self._is_absent:
            return ()
        tolerance = agreement(self.settings.dtype, examination.survey.has_low_values)
        name = f"--model {self.settings.model.description}"
        return check_outputs(
            network, self._prepare, self.points, name, note, allowed=allowed, tolerance=tolerance
        )

    def _prepare(self, other: nn.Module) -> None:
        if self.inputs is not None:
            self.inputs.install(other)
        move_model(other, self.points.device, self.settings.dtype)
        self._fill(other)
        run_alike(self.model, other)

    @property
    def _is_absent(self) -> bool:
        assert self.checkpoint is not None
        return self.checkpoint.file.source is not None and not self.fetches

    def _fill(self, model: nn.Module) -> None:
        assert self.checkpoint is not None
        if self._is_absent:
            return
        state = load_state(self.checkpoint, self.trust_pickle)
        fill_model(model, self.expected, state, self.checkpoint.place)


def _load_for(settings: Settings, model: nn.Module) -> tuple[Settings, Points, dict[str, object]]:
    """Return the settings for a network, its points, and a description of the data.

    If it takes several inputs, it is made to take the rows of the points.

    Raises:
        LocalrankError: If the data cannot be used, or the network does not take them.
    """
    root = model.model if isinstance(model, WholeLayer) else model
    settings = replace(settings, source=replace(settings.source, forward=Forward.of(root.forward)))
    points, facts = load_points(settings.source)
    if points.inputs is not None:
        points.inputs.install(model)
        if not settings.selection.wrt:
            part = points.inputs.find_varied()
            varied = None if part is None else (part.start, part.shape)
            settings = replace(settings, selection=replace(settings.selection, part=varied))
    return settings, points, facts


def place_points(points: Points, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the points, shape (points, ...), on a device, floating point ones in a dtype."""
    floating = points.tensor.is_floating_point()
    return points.tensor.to(device=device, dtype=dtype if floating else None)


def _check_tolerances(settings: Settings, examination: Examination) -> None:
    has_low, bounds = examination.survey.has_low_precision, settings.bounds
    # What products in float32 lose is measured.
    low = has_low or (settings.dtype == torch.float32 and bounds is None)
    for pair in examination.pairs:
        shape = (pair.record.numel, pair.n_in)
        check_rounding(settings.tolerances, pair.record.call.label, shape, low=low)
    if bounds is not None and has_low:
        raise SettingsError(
            f"--method interval: parts of the network compute in less than {settings.dtype_name},"
            " and the resulting error is unknown.",
            "Leave out the layers after that part with --exclude, or use --method exact.",
        )


def _prefixed(note: Note, prefix: str) -> Note:
    return lambda text: note(prefix + text)


def footprint_or_none(file: CheckpointFile) -> Footprint | None:
    """Return what shows whether a checkpoint has changed; None if it cannot be read."""
    try:
        return footprint_of(file)
    except UnreadableError:
        return None


def listed_part(series: Series, entry: ListedSeries) -> Series:
    """Return the part of a series that a plan file lists, which may have grown since.

    Raises:
        SettingsError: If a listed checkpoint was removed or has changed.
    """
    files = {file.name: file for file in series.files}
    kept = []
    for one in entry.checkpoints:
        file = files.get(one.name)
        if file is None:
            raise SettingsError(
                f"{series.folder}: {one.name} no longer exists, and the plan lists it.",
                _RESUBMIT,
            )
        now = footprint_or_none(file)
        listed = (
            None if one.size is None or one.mtime_ns is None else (one.size, one.mtime_ns, one.pin)
        )
        if (None if now is None else (now.size, now.mtime_ns, now.pin)) != listed:
            raise SettingsError(f"{file.path}: changed since the plan was made.", _RESUBMIT)
        kept.append(file)
    return replace(series, files=tuple(kept))


def with_measures_of(series: SeriesPlan, earlier: Mapping[str, Any]) -> SeriesPlan:
    """Return a series without the measures that came after an analysis with these settings began.

    The table then has the same columns filled at every checkpoint.
    """
    before, settings = decisive(earlier)["measures"], series.settings
    if settings.bounds is not None or choice_of(before) != settings.measures:
        return series
    return replace(series, settings=replace(settings, newer=frozenset(AVERAGED) - set(before)))


def series_settings(series: SeriesPlan) -> dict[str, Any]:
    """Return everything that decides the numbers of a series, as JSON can hold it."""
    settings, bounds = series.settings, series.settings.bounds
    regex = series.scheme.rule.names.regex
    return {
        "run": series.run,
        "folder": series.series.place,
        "definitions": DEFINITIONS,
        "model": settings.model.description,
        "model_arguments": (series.recorded.described() if series.recorded is not None else {})
        | {key: repr(value) for key, value in settings.model.arguments.items()},
        **series.model_facts,
        **series.data_facts,
        **chosen_settings(settings),
        "point_indices": list(series.points.indices),
        "n_data": series.points.n_data,
        "n_cov": series.metric.n_cov,
        "information_point_indices": (
            list(series.samples.sample.indices) if series.samples.sample is not None else None
        ),
        # None as in journals of versions that had no intervals.
        "method": "interval" if bounds is not None else None,
        "confidence": bounds.confidence if bounds is not None else None,
        "width": (bounds.width or None) if bounds is not None else None,
        "products": bounds.products if bounds is not None else None,
        "optional_columns": list(series.optional_columns),
        "weights": series.weights,
        "counting": series.scheme.counting.text,
        "step_from": series.scheme.rule.source or None,
        "step_regex": regex.pattern if regex is not None else None,
        "unsaved": list(series.unsaved),
        "layers": layers_of(series.examination, one_source=settings.selection.has_one_source),
    }


def chosen_settings(settings: Settings) -> dict[str, Any]:
    """Return what decides the numbers of a series and needs neither its network nor its data."""
    positions = settings.selection.positions
    return {
        "data_shape": settings.source.shape,
        "data_scale": settings.source.scale,
        "seed": settings.source.seed,
        "wrt": settings.selection.wrt,
        # None as in journals of the first release, which had none of these.
        "positions": str(positions) if not positions.is_all else None,
        "residual": settings.selection.residual or None,
        "pooled": settings.pooled or None,
        "feature_axis": [f"{one.pattern}={one.axis}" for one in settings.selection.feature_axes]
        or None,
        "input_metric": settings.input_metric,
        "slices": settings.slices,
        "labels_key": settings.sampling.labels_key,
        "information_noise": settings.sampling.noise,
        # None as in journals of versions that had none of it.
        "beside": ",".join(settings.sampling.beside) or None,
        "dtype": settings.dtype_name,
        "precision": FLOAT64_THROUGHOUT if settings.dtype == torch.float64 else None,
        "tolerances": [tolerance.label for tolerance in settings.tolerances],
        "measures": list(settings.measured),
        "noise": settings.noise,
        "columns": dict(settings.columns),
    }
