"""Plans a run: everything that can be checked is checked on every checkpoint's header."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from localrank_cli.checkpoints.counting import EPOCHS, Counting
from localrank_cli.checkpoints.names import NameRule, StepRule
from localrank_cli.checkpoints.order import StepScheme
from localrank_cli.checkpoints.reading import footprint
from localrank_cli.checkpoints.series import (
    Series,
    find_checkpoints,
    find_folders,
    run_names,
)
from localrank_cli.checkpoints.weights import RAW, describe_weights
from localrank_cli.errors import Note, SettingsError, UnreadableError
from localrank_cli.jacobian.budget import check_fits
from localrank_cli.machine import memory_budget, pick_device
from localrank_cli.measures.table import AVERAGED
from localrank_cli.model.build import move_model
from localrank_cli.model.fill import Expected, fill_model
from localrank_cli.options.folder import FolderSettings
from localrank_cli.options.resolve import (
    ModelChoice,
    SeriesOptions,
    Settings,
    check_names,
    for_series,
    resolve,
)
from localrank_cli.options.table import AnalyzeOptions, check_options
from localrank_cli.points.draw import Points
from localrank_cli.points.files import file_hash
from localrank_cli.points.source import load_points
from localrank_cli.results.columns import optional_first
from localrank_cli.results.manifest import DEFINITIONS
from localrank_cli.results.plan_file import Frozen, FrozenSeries
from localrank_cli.results.record import CheckpointRecord
from localrank_cli.run.covariance import MetricPlan, plan_metric
from localrank_cli.run.headers import (
    Failures,
    Headers,
    PlannedCheckpoint,
    Setting,
    choose_part,
    load_state,
)
from localrank_cli.run.network import check_unsaved, make_model
from localrank_cli.run.samples import SamplePlan, plan_samples
from localrank_cli.spectrum.layer import Examination, examine
from localrank_cli.spectrum.tolerance import check_rounding

_AGAIN = "Submit again when nothing writes to it; what is finished is kept."


@dataclass(frozen=True)
class SeriesPlan:
    """One series, ready to run."""

    run: str
    series: Series
    settings: Settings
    checkpoints: tuple[PlannedCheckpoint, ...]  # by step
    failures: tuple[CheckpointRecord, ...]  # that cannot be analysed, with --on-error skip
    found: frozenset[str]  # names of all checkpoints in the folder, chosen or not
    model: nn.Module
    expected: Expected
    points: Points
    model_facts: dict[str, object]
    data_facts: dict[str, object]
    examination: Examination  # of the first checkpoint
    metric: MetricPlan
    samples: SamplePlan
    scheme: StepScheme  # how the steps were found
    weights: str  # which of several sets in one file
    unsaved: tuple[str, ...] = ()  # parts of the network that no checkpoint holds, let through
    examined: tuple[str, ...] = ()  # names of the checkpoints that the network has run with

    @property
    def in_order(self) -> list[PlannedCheckpoint | CheckpointRecord]:
        """Checkpoints and failures by step; what has none comes last."""
        every: list[PlannedCheckpoint | CheckpointRecord] = [*self.checkpoints, *self.failures]
        return sorted(every, key=lambda one: math.inf if one.step is None else one.step)

    @property
    def optional_columns(self) -> tuple[str, ...]:
        """The columns after `message`, in order: the tool's own, then the series' constants."""
        own = ("epoch",) if self.scheme.counting.kind == EPOCHS else ()
        own = (*own, "n_cov") if self.settings.input_metric == "data" else own
        own = (*own, *self.settings.slices)
        return (*own, *self.samples.columns, *self.settings.columns)


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
        """How many checkpoints there are to analyse."""
        return sum(len(series.in_order) for series in self.series)


def make_plan(options: AnalyzeOptions, note: Note, listed: Frozen | None = None) -> Plan:
    """Plan a run.

    Args:
        options: What the user asked for.
        note: Receives each note for the user.
        listed: A plan file, whose checkpoints alone are planned.

    Returns:
        The plan; nothing has been computed but one forward pass for each series.
    """
    check_options(options)
    check_names(SeriesOptions(options, FolderSettings(), Path()))
    device = pick_device(options.device or "auto")
    named = find_folders(options.checkpoints, partial(names_rule, options))
    runs = run_names(list(named))
    memory = memory_budget(device) if options.memory is None else options.memory
    planned = []
    # Models draw their first weights, and a user's code may set seeds when it is imported.
    with torch.random.fork_rng(devices=[]):
        for folder in sorted(named, key=lambda folder: runs[folder]):
            prefix = f"{runs[folder]}: " if len(named) > 1 else ""
            planned.append(
                _plan_series(
                    for_series(replace(options, memory=memory), folder),
                    named[folder],
                    listed.of_run(runs[folder]) if listed is not None else None,
                    runs[folder],
                    device,
                    _prefixed(note, prefix),
                )
            )
    extra = optional_first(name for plan in planned for name in plan.optional_columns)
    for plan in planned:
        n_in = plan.examination.n_in
        width = n_in if plan.metric.n_cov is None else min(n_in, plan.metric.n_cov)
        check_fits(plan.examination.records, width, memory - plan.metric.n_bytes)
        if plan.settings.by_whole:
            whole = plan.examination.whole_records
            check_fits(whole, plan.examination.survey.n_in, memory - plan.metric.n_bytes)
    return Plan(tuple(planned), device, memory, extra, options.trust_pickle, options.skips_errors)


def names_rule(options: AnalyzeOptions, folder: Path) -> NameRule:
    """Return the rule by which the names in a folder are read, if it is a series."""
    try:
        return for_series(options, folder).step_rule.names
    except SettingsError:  # it need not be one: the parent of a series may hold anything
        return SeriesOptions(options, FolderSettings(), folder).step_rule.names


def _plan_series(
    own: SeriesOptions,
    named: Sequence[Path],
    listed: FrozenSeries | None,
    run: str,
    device: torch.device,
    note: Note,
) -> SeriesPlan:
    check_names(own)
    options, folder, rule = own.options, own.folder, own.step_rule
    # A folder without checkpoints is the mistake to name first, not the data that it lacks.
    pattern = options.pattern or ""
    find_checkpoints(folder, named, pattern, own.own_files, rule.names)
    settings = resolve(own)
    for text in settings.notes:
        note(text)
    data_files = [*own.own_files, *filter(None, [settings.source.path])]
    series = find_checkpoints(folder, named, pattern, data_files, rule.names)
    series, headers = _headers(options, settings, series, listed, rule)
    failures = Failures(run, skips=options.skips_errors)
    steps = headers.steps(note, failures.taker)
    if not steps:
        failures.refuse_all(folder)
    failures.place_unread(headers.scheme.step_of_unread)
    files, allowed = [file for file, _ in steps], options.allow_unsaved
    built = make_model(settings.model, (files, folder), headers.first, note, allowed=allowed)
    model = built.model
    expected = Expected(model)
    points, facts = load_points(settings.source)
    for text in points.notes:
        note(text)
    move_model(model, device, settings.dtype)
    every = failures.fitting(
        steps, lambda file, step: headers.plan(file, step, model, expected), folder
    )
    name = settings.model.description
    unsaved = check_unsaved(built, f"--model {name}", headers.unfilled, note, allowed=allowed)
    checkpoints, failed = choose_part(options.part, every, failures.records, folder)
    _tell_weights(checkpoints, note)
    placed = place_points(points, device, settings.dtype)
    examination, examined = failures.first_that_runs(
        checkpoints or every,
        partial(_examine, model, expected, settings, placed, options.trust_pickle),
    )
    for text in examination.notes:
        note(text)
    _check_tolerances(settings, examination)
    metric = plan_metric(settings, points, examination, options.memory or 0, note)
    return SeriesPlan(
        run=run,
        series=series,
        settings=settings,
        checkpoints=checkpoints,
        failures=failed,
        found=frozenset(file.name for file in series.files),
        model=model,
        expected=expected,
        points=points,
        model_facts=_model_facts(settings.model),
        data_facts=facts,
        examination=examination,
        metric=metric,
        samples=plan_samples(settings, points, examination, options.memory or 0),
        scheme=headers.scheme,
        weights=options.weights or RAW,
        unsaved=unsaved,
        examined=examined,
    )


def _headers(
    options: AnalyzeOptions,
    settings: Settings,
    series: Series,
    listed: FrozenSeries | None,
    rule: StepRule,
) -> tuple[Series, Headers]:
    """Return the checkpoints to look at, of a plan file if there is one, and their headers."""
    choice = settings.model
    setting = Setting(series.files, is_inferred=choice.is_inferred, is_hf=choice.is_hf)
    if listed is not None:
        setting = replace(setting, counting=Counting.of_text(listed.settings.get("counting")))
        series = narrow(series, listed)
    return series, Headers(series, options.trust_pickle, rule, options.weights or RAW, setting)


def _tell_weights(checkpoints: Sequence[PlannedCheckpoint], note: Note) -> None:
    stripped = {c.stripping.description for c in checkpoints} - {""}
    for description in sorted(stripped):
        note(f"taken off the weights' names: {description}")
    for text in sorted({_which_weights(c) for c in checkpoints if c.aside or c.averaged}):
        note(text)


def _which_weights(checkpoint: PlannedCheckpoint) -> str:
    taken = describe_weights(
        checkpoint.container, {checkpoint.container} if checkpoint.averaged else ()
    )
    aside = f"; left aside: {', '.join(checkpoint.aside)} (--weights)" if checkpoint.aside else ""
    return f"the weights are those under {taken}{aside}"


def _model_facts(choice: ModelChoice) -> dict[str, object]:
    if choice.code is not None and choice.code.is_file:
        return {"model_sha256": file_hash(Path(choice.code.place))}
    return {}


def _examine(
    model: nn.Module,
    expected: Expected,
    settings: Settings,
    points: Tensor,
    trust_pickle: bool,
    checkpoint: PlannedCheckpoint,
) -> Examination:
    fill_model(model, expected, load_state(checkpoint, trust_pickle), checkpoint.place)
    return examine(model, points, settings.selection, settings.dtype)


def place_points(points: Points, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Puts the points where the model is.

    Args:
        points: As drawn.
        device: Of the model.
        dtype: Of the analysis; integers stay integers.

    Returns:
        Shape (points, ...).
    """
    floating = points.tensor.is_floating_point()
    return points.tensor.to(device=device, dtype=dtype if floating else None)


def _check_tolerances(settings: Settings, examination: Examination) -> None:
    low = examination.survey.has_low_precision or settings.dtype == torch.float32
    for record in examination.records:
        shape = (record.numel, examination.n_in)
        check_rounding(settings.tolerances, record.call.label, shape, low=low)


def _prefixed(note: Note, prefix: str) -> Note:
    return lambda text: note(prefix + text)


def marks(path: Path) -> tuple[int | None, int | None]:
    """By what a checkpoint that has not changed is known.

    Args:
        path: Its file.

    Returns:
        Bytes and time of change; None where it cannot be looked at.
    """
    try:
        found = footprint(path)
    except UnreadableError:
        return None, None
    return found.size, found.mtime_ns


def narrow(series: Series, frozen: FrozenSeries) -> Series:
    """Leaves of a series what the plan lists, however much it has grown since.

    Args:
        series: As it is now.
        frozen: As it was.

    Returns:
        The listed files.

    Raises:
        SettingsError: If one of them is not there any more, or has changed.
    """
    files = {file.name: file for file in series.files}
    kept = []
    for one in frozen.checkpoints:
        file = files.get(one.name)
        if file is None:
            raise SettingsError(
                f"{series.folder}: {one.name} is not there any more, and the plan lists it.",
                _AGAIN,
            )
        if marks(file.path) != (one.size, one.mtime_ns):
            raise SettingsError(f"{file.path}: changed since the plan was made.", _AGAIN)
        kept.append(file)
    return replace(series, files=tuple(kept))


def series_settings(series: SeriesPlan) -> dict[str, Any]:
    """Everything that decides the numbers of a series.

    Args:
        series: Planned.

    Returns:
        Anything that JSON can hold; as JSON gives it back.
    """
    settings = series.settings
    regex = series.scheme.rule.names.regex
    return {
        "run": series.run,
        "folder": str(series.series.folder),
        "definitions": DEFINITIONS,
        "model": settings.model.description,
        "model_arguments": {key: repr(value) for key, value in settings.model.arguments.items()},
        **series.model_facts,
        **series.data_facts,
        "data_scale": settings.source.scale,
        "seed": settings.source.seed,
        "point_indices": list(series.points.indices),
        "n_data": series.points.n_data,
        "wrt": settings.selection.wrt,
        "input_metric": settings.input_metric,
        "n_cov": series.metric.n_cov,
        "slices": settings.slices,
        "labels_key": settings.sampling.labels_key,
        "information_point_indices": (
            list(series.samples.drawn.indices) if series.samples.drawn is not None else None
        ),
        "information_noise": settings.sampling.noise,
        "dtype": settings.dtype_name,
        "tolerances": [tolerance.label for tolerance in settings.tolerances],
        "measures": list(AVERAGED),
        "noise": settings.noise,
        "columns": dict(settings.columns),
        "optional_columns": list(series.optional_columns),
        "weights": series.weights,
        "counting": series.scheme.counting.text,
        "step_from": series.scheme.rule.source or None,
        "step_regex": regex.pattern if regex is not None else None,
        "unsaved": list(series.unsaved),
        "layers": [
            asdict(record.call) | {"module": record.module, "shape": list(record.shape)}
            for record in series.examination.records
        ],
    }
