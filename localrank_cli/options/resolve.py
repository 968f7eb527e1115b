"""Settings of one series: a flag beats its `localrank.toml`, which beats the default."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from localrank_cli.errors import SettingsError, UsageError
from localrank_cli.layers.select import Selection
from localrank_cli.layers.slices import parse_slice
from localrank_cli.model.mlp import ACTIVATIONS
from localrank_cli.options.folder import FolderSettings, inside
from localrank_cli.options.presets import own_with_preset
from localrank_cli.options.table import AnalyzeOptions
from localrank_cli.points.source import DataSource, check_source
from localrank_cli.spectrum.tolerance import Tolerance
from localrank_cli.userimport import CodeSpec


def slices_of(options: AnalyzeOptions, own: FolderSettings) -> tuple[str, str]:
    """Merges flags and the series' own settings; an empty flag takes a slice of the file away.

    Args:
        options: The flags.
        own: The series' file.

    Returns:
        Of the varied tensor and of each output, in numpy's notation; empty: all.
    """
    pairs = (
        (options.input_slice, own.input_slice),
        (options.output_slice, own.output_slice),
    )
    given, taken = (flag if flag is not None else other or "" for flag, other in pairs)
    return given, taken


def check_whole(selection: Selection, input_metric: str) -> None:
    """Checks that there is a whole Jacobian beside the part, and that the two can be compared.

    Args:
        selection: With the slices.
        input_metric: `identity` or `data`.

    Raises:
        SettingsError: If not.
    """
    if not selection.input_slice and not selection.output_slice:
        raise SettingsError(
            "--sigma-1 full without --input-slice or --output-slice: the whole Jacobian is measured"
            " anyway.",
            "Leave it out, or give --sigma-1 slice where the series' own settings ask for it.",
        )
    if selection.input_slice and input_metric == "data":
        raise SettingsError(
            "--sigma-1 full with --input-slice and --input-metric data: the covariance of the slice"
            " and that of the whole are two metrics.",
            "Leave one of them out, or give --sigma-1 slice.",
        )


@dataclass(frozen=True)
class Sampling:
    """What is estimated from samples, beside the Jacobians."""

    information: bool = False
    points: int | None = None  # None: the default number
    noise: float | None = None  # of tr Cov(T); None: the square of --noise
    labels_key: str = ""


def resolve_sampling(options: AnalyzeOptions, own: FolderSettings) -> Sampling:
    """Merges flags and the series' own settings.

    A `--data` flag puts aside the labels that the file names in its own data.

    Args:
        options: The flags.
        own: The series' file.

    Returns:
        What is asked for.

    Raises:
        UsageError: If numbers are given for information that nobody asks for.
    """
    asked = own.information if options.information is None else options.information
    points, noise = options.information_points, options.information_noise
    if not asked and (points is not None or noise is not None):
        name = "noise" if points is None else "points"
        raise UsageError(f"--information-{name} without --information.", "Give both or neither.")
    labels = options.labels_key
    if labels is None and options.data is None:
        labels = own.labels_key
    return Sampling(
        information=bool(asked),
        points=own.information_points if points is None else points,
        noise=own.information_noise if noise is None else noise,
        labels_key=labels or "",
    )


DEFAULT_ATOL = 0.01
HF = "hf"  # the --model that transformers builds


@dataclass(frozen=True)
class ModelChoice:
    """Where the network comes from: code, or the weights alone."""

    code: CodeSpec | None
    factory: Callable[..., nn.Module] | None  # given from Python
    arguments: dict[str, Any]
    activation: str
    is_hf: bool = False  # built by transformers from the config.json beside the weights

    @property
    def is_inferred(self) -> bool:
        """Whether the network is a plain MLP inferred from its weights."""
        return self.code is None and self.factory is None and not self.is_hf

    @property
    def description(self) -> str:
        """For notes and the manifest."""
        if self.code is not None:
            return f"{self.code.place}:{self.code.name}"
        if self.factory is not None:
            return getattr(self.factory, "__qualname__", repr(self.factory))
        if self.is_hf:
            return HF
        return f"plain MLP inferred from the weights, {self.activation}"


@dataclass(frozen=True)
class Settings:
    """Everything that decides the numbers of one series."""

    model: ModelChoice
    source: DataSource
    selection: Selection
    tolerances: tuple[Tolerance, ...]
    noise: float
    dtype: torch.dtype
    columns: dict[str, str | int | float]
    notes: tuple[str, ...] = ()
    input_metric: str = "identity"
    allow_small_cov: bool = False
    sampling: Sampling = field(default_factory=Sampling)
    sigma_1: str = "slice"  # or full: what relative tolerances refer to under a slice

    @property
    def slices(self) -> dict[str, str]:
        """Optional columns for slices, and whose sigma_1 a relative tolerance refers to."""
        chosen = self.selection
        found = {"input_slice": chosen.input_slice, "output_slice": chosen.output_slice}
        return found | {"sigma_1_of": self.sigma_1} if any(found.values()) else {}

    @property
    def by_whole(self) -> bool:
        """Whether the whole Jacobian is computed for its sigma_1."""
        return self.sigma_1 == "full"

    @property
    def dtype_name(self) -> str:
        """`float64` or `float32`."""
        return str(self.dtype).removeprefix("torch.")


def resolve(options: AnalyzeOptions, own: FolderSettings, folder: Path) -> Settings:
    """Merges flags, the series' own settings and the defaults.

    A `--model` or `--data` flag also puts aside what the file says to describe its own model or
    data (model-arg; data-key, data-scale).

    Args:
        options: The flags.
        own: The series' file.
        folder: The series.

    Returns:
        The settings.

    Raises:
        SettingsError: If the file names code without --trust-model, or something is missing.
    """
    notes: list[str] = []
    if options.preset is None:  # a preset that was asked for beats the file, its preset included
        own = own_with_preset(own)
    model = _model(options, own, folder, notes)
    include, exclude = _patterns(options, own)
    wrt = options.wrt if options.wrt is not None else own.wrt
    noise = _first(options.noise, own.noise, 1.0)
    metric = _first(options.input_metric, own.input_metric, "identity")
    sampling = resolve_sampling(options, own)
    hidden = options.hidden or (own.hidden and not options.layers)
    settings = Settings(
        model=model,
        source=replace(
            _source(options, own, folder), keep=metric == "data" or bool(sampling.labels_key)
        ),
        selection=Selection(include, exclude, wrt or "", hidden, *slices_of(options, own)),
        tolerances=_tolerances(options, own),
        noise=noise,
        dtype=getattr(torch, options.dtype or own.dtype or "float64"),
        columns=own.columns,
        notes=tuple(notes),
        input_metric=metric,
        allow_small_cov=options.allow_small_cov,
        sampling=sampling,
        sigma_1=_first(options.sigma_1, own.sigma_1, "slice"),
    )
    if settings.by_whole:
        check_whole(settings.selection, metric)
    return settings


def _model(
    options: AnalyzeOptions, own: FolderSettings, folder: Path, notes: list[str]
) -> ModelChoice:
    activation = _first(options.activation, own.activation, "relu")
    if activation not in ACTIVATIONS:
        raise SettingsError(
            f"{own.path}: activation = {activation!r} is not known.",
            f"Known are {', '.join(ACTIVATIONS)}.",
        )
    arguments = dict(options.model_args)
    code: CodeSpec | None = None
    factory: Callable[..., nn.Module] | None = None
    is_hf = options.model == HF or (options.model is None and own.model == HF)
    if is_hf:
        arguments = arguments if options.model == HF else own.model_args | arguments
    elif isinstance(options.model, str):
        code = _code(options.model, "--model")
    elif options.model is not None:
        factory = options.model
    elif own.model is not None:
        code = _trusted(_own_code(own.model, own), "model", options, own, folder)
        arguments = own.model_args | arguments
    elif arguments or own.model_args:
        raise SettingsError(
            "--model-arg was given without --model.", "A plain MLP takes no arguments."
        )
    if options.activation and (code or factory or is_hf):
        notes.append("--activation is ignored: the model's own code decides")
    return ModelChoice(code, factory, arguments, activation, is_hf)


def check_names(options: AnalyzeOptions) -> None:
    """Checks the form of what flags name, without opening a file.

    Args:
        options: The flags.

    Raises:
        UsageError: If something has no known form.
    """
    if options.activation is not None and options.activation not in ACTIVATIONS:
        raise UsageError(
            f"--activation {options.activation}: not known.",
            f"Known are {', '.join(ACTIVATIONS)}.",
        )
    if isinstance(options.model, str) and options.model != HF:
        _code(options.model, "--model")
    if isinstance(options.data, str):
        check_source(options.data)
    for text, option in (
        (options.input_slice, "--input-slice"),
        (options.output_slice, "--output-slice"),
    ):
        if text:
            parse_slice(text, option)


def _code(text: str, option: str) -> CodeSpec:
    code = CodeSpec.parse(text)
    if code is None:
        raise UsageError(
            f"{option} {text}: not of the form path/to/file.py:name or package.module:name.",
            "Name the class, or a function that returns the module, after a colon; or give hf for"
            " a model of transformers.",
        )
    return code


def _own_code(text: str, own: FolderSettings) -> CodeSpec:
    try:
        return _code(text, "model =")
    except UsageError as error:
        raise SettingsError(f"{own.path}: {error.what}", error.advice) from error


def _trusted(
    code: CodeSpec, key: str, options: AnalyzeOptions, own: FolderSettings, folder: Path
) -> CodeSpec:
    if not options.trust_model:
        raise SettingsError(
            f"{own.path}: names code to run, {code.place}:{code.name}.",
            "Code that came with a folder runs only when you ask for it: read it, then pass"
            " --trust-model (or name it yourself with --model or --data).",
        )
    if code.is_file:
        return CodeSpec(str(inside(folder, code.place, key)), code.name)
    return code


def _source(options: AnalyzeOptions, own: FolderSettings, folder: Path) -> DataSource:
    count = _first(options.points, own.points, None)
    seed = _first(options.seed, own.seed, 0)
    if options.data is not None:
        text = options.data if isinstance(options.data, str) else ""
        array = options.data if isinstance(options.data, Tensor) else None
        key, scale = options.data_key or "", options.data_scale
        return DataSource(text, key, scale, count, seed, array)
    if own.data is None:
        raise SettingsError(
            f"{folder}: no data to take points from.",
            "Give --data FILE (.safetensors, .npz, .npy, .pt), --data file.py:name, or"
            " --data normal:784 for random points of that shape.",
        )
    key = _first(options.data_key, own.data_key, "")
    scale = _first(options.data_scale, own.data_scale, None)
    return DataSource(_own_data(own.data, options, own, folder), key, scale, count, seed)


def _own_data(text: str, options: AnalyzeOptions, own: FolderSettings, folder: Path) -> str:
    try:
        check_source(text)
    except UsageError as error:
        raise SettingsError(f"{own.path}: {error.what}", error.advice) from error
    source = DataSource(text)
    if source.path is not None:
        return str(inside(folder, text, "data"))
    if source.code is not None:
        code = _trusted(source.code, "data", options, own, folder)
        return f"{code.place}:{code.name}"
    return text


def own_files(own: FolderSettings, folder: Path) -> list[Path]:
    """Files that a series' settings name as data: they are no checkpoints, used or not.

    Args:
        own: The series' file.
        folder: The series.

    Returns:
        Paths.
    """
    return [folder / own.data] if own.data is not None else []


def _patterns(
    options: AnalyzeOptions, own: FolderSettings
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    patterns = options.layers or own.layers
    include = tuple(pattern for pattern in patterns if not pattern.startswith("!"))
    exclude = tuple(pattern[1:] for pattern in patterns if pattern.startswith("!"))
    return include, exclude + options.exclude


def _tolerances(options: AnalyzeOptions, own: FolderSettings) -> tuple[Tolerance, ...]:
    atol, rtol = options.atol, options.rtol
    if not atol and not rtol:
        atol, rtol = own.atol, own.rtol
    if not atol and not rtol:
        atol = (DEFAULT_ATOL,)
    every = [Tolerance(atol=value) for value in atol] + [Tolerance(rtol=value) for value in rtol]
    return tuple({tolerance.label: tolerance for tolerance in every}.values())


def _first(flag: Any, own: Any, default: Any) -> Any:
    return flag if flag is not None else own if own is not None else default
