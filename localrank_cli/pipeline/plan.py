"""Plans a run: everything that can be checked is checked on every checkpoint's header."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from localrank_cli.checkpoints.content import Content
from localrank_cli.checkpoints.prefixes import WRAPPERS, candidates
from localrank_cli.checkpoints.series import (
    Series,
    find_checkpoints,
    find_folders,
    run_names,
)
from localrank_cli.errors import SettingsError
from localrank_cli.jacobian.budget import check_fits
from localrank_cli.model.build import build_model, move_model
from localrank_cli.model.fill import Expected, fill_model
from localrank_cli.model.mlp import InferredMlp, infer_mlp
from localrank_cli.pipeline.folder_settings import read_folder_settings
from localrank_cli.pipeline.headers import Headers, PlannedCheckpoint, load_state
from localrank_cli.pipeline.machine import memory_budget, pick_device
from localrank_cli.pipeline.metric import MetricPlan, plan_metric
from localrank_cli.pipeline.options import AnalyzeOptions, check_options
from localrank_cli.pipeline.presets import with_preset
from localrank_cli.pipeline.samples import SamplePlan, plan_samples
from localrank_cli.pipeline.settings import (
    ModelChoice,
    Settings,
    check_names,
    own_files,
    resolve,
)
from localrank_cli.points.draw import Points
from localrank_cli.points.files import file_hash
from localrank_cli.points.source import load_points
from localrank_cli.spectrum.spectra import Examination, examine
from localrank_cli.table.columns import optional_first
from localrank_cli.userimport import import_object

Note = Callable[[str], None]


@dataclass(frozen=True)
class SeriesPlan:
    """One series, ready to run."""

    run: str
    series: Series
    settings: Settings
    checkpoints: tuple[PlannedCheckpoint, ...]  # by step
    model: nn.Module
    expected: Expected
    points: Points
    model_facts: dict[str, object]
    data_facts: dict[str, object]
    examination: Examination  # of the first checkpoint
    metric: MetricPlan
    samples: SamplePlan

    @property
    def optional_columns(self) -> tuple[str, ...]:
        """The columns after `message`, in order: the tool's own, then the series' constants."""
        own = ("n_cov",) if self.settings.input_metric == "data" else ()
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

    @property
    def n_checkpoints(self) -> int:
        """How many checkpoints there are to analyse."""
        return sum(len(series.checkpoints) for series in self.series)


def make_plan(options: AnalyzeOptions, note: Note) -> Plan:
    """Plans a run.

    Args:
        options: What the user asked for.
        note: Takes each note for the user.

    Returns:
        The plan; nothing has been computed but one forward pass for each series.
    """
    check_options(options)
    options = with_preset(options)
    check_names(options)
    device = pick_device(options.device)
    named = find_folders(options.checkpoints)
    runs = run_names(list(named))
    memory = memory_budget(device) if options.memory is None else options.memory
    planned = []
    # Models draw their first weights, and a user's code may set seeds when it is imported.
    with torch.random.fork_rng(devices=[]):
        for folder in sorted(named, key=lambda folder: runs[folder]):
            prefix = f"{runs[folder]}: " if len(named) > 1 else ""
            planned.append(
                _plan_series(
                    replace(options, memory=memory),
                    folder,
                    named[folder],
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
    return Plan(tuple(planned), device, memory, extra, options.trust_pickle)


def _plan_series(
    options: AnalyzeOptions,
    folder: Path,
    named: Sequence[Path],
    run: str,
    device: torch.device,
    note: Note,
) -> SeriesPlan:
    own = read_folder_settings(folder)
    # A folder without checkpoints is the mistake to name first, not the data that it lacks.
    find_checkpoints(folder, named, options.pattern, own_files(own, folder))
    settings = resolve(options, own, folder)
    for text in settings.notes:
        note(text)
    data_files = own_files(own, folder)
    if settings.source.path is not None:
        data_files.append(settings.source.path)
    series = find_checkpoints(folder, named, options.pattern, data_files)
    headers = Headers(series, options.trust_pickle)
    steps = headers.steps(note)
    model = _make_model(settings.model, headers.first, note)
    expected = Expected(model)
    points, facts = load_points(settings.source)
    for text in points.notes:
        note(text)
    move_model(model, device, settings.dtype)
    checkpoints = tuple(headers.plan(file, step, model, expected) for file, step in steps)
    stripped = {c.stripping.description for c in checkpoints} - {""}
    for description in sorted(stripped):
        note(f"taken off the weights' names: {description}")
    for container, aside in sorted({(c.container, c.aside) for c in checkpoints if c.aside}):
        note(f"the weights are those under {container!r}; left aside: {', '.join(aside)}")
    examination = _examine_first(
        checkpoints[0], model, expected, settings, points, device, options.trust_pickle
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
        model=model,
        expected=expected,
        points=points,
        model_facts=_model_facts(settings.model),
        data_facts=facts,
        examination=examination,
        metric=metric,
        samples=plan_samples(settings, points, examination, options.memory or 0),
    )


def _make_model(choice: ModelChoice, first: Content | None, note: Note) -> nn.Module:
    if choice.factory is not None:
        return build_model(choice.factory, choice.arguments, choice.description)
    if choice.code is not None:
        factory = import_object(choice.code, "--model")
        return build_model(factory, choice.arguments, f"--model {choice.description}")  # type: ignore[arg-type]  # build_model itself checks that it can be called
    assert first is not None
    state = next(iter(first.states.values()))
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    *_, (_, bare) = candidates(shapes, WRAPPERS)
    in_order = not all(tensor.is_meta for tensor in state.values())
    layout = infer_mlp(bare, in_order)
    note(
        f"no --model: read as a plain MLP {layout.description} with {choice.activation}"
        " between its layers"
    )
    model = InferredMlp(layout, choice.activation)
    model.eval()
    return model.requires_grad_(False)


def _model_facts(choice: ModelChoice) -> dict[str, object]:
    if choice.code is not None and choice.code.is_file:
        return {"model_sha256": file_hash(Path(choice.code.place))}
    return {}


def _examine_first(
    checkpoint: PlannedCheckpoint,
    model: nn.Module,
    expected: Expected,
    settings: Settings,
    points: Points,
    device: torch.device,
    trust_pickle: bool,
) -> Examination:
    fill_model(model, expected, load_state(checkpoint, trust_pickle), checkpoint.place)
    return examine(
        model, place_points(points, device, settings.dtype), settings.selection, settings.dtype
    )


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
    eps = torch.finfo(torch.float32 if low else torch.float64).eps
    n_in = examination.n_in
    for record in examination.records:
        least = max(record.numel, n_in) * eps
        for tolerance in settings.tolerances:
            rtol = tolerance.relative(record.numel, n_in)
            if 0 < rtol < least:
                raise SettingsError(
                    f"--{tolerance.label.replace('=', ' ')} is under the rounding of the method"
                    f" for layer {record.call.label!r} ({record.numel} x {n_in}): {least:.2g}.",
                    "Below it every count is noise; --rtol eps is the least that is meaningful"
                    " for weights stored in float32.",
                )


def _prefixed(note: Note, prefix: str) -> Note:
    return lambda text: note(prefix + text)
