"""Settings of one series: a flag beats its `localrank.toml`, which beats the default."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from localrank_cli.checkpoints.names import StepRule
from localrank_cli.errors import SettingsError, UsageError
from localrank_cli.layers.select import Selection
from localrank_cli.layers.slices import parse_slice
from localrank_cli.model.mlp import ACTIVATIONS
from localrank_cli.options.folder import FolderSettings, inside, read_folder_settings
from localrank_cli.options.presets import preset_values
from localrank_cli.options.setting import options_of
from localrank_cli.options.table import DEFAULT_ATOL, AnalyzeOptions
from localrank_cli.points.source import DataSource, check_source
from localrank_cli.spectrum.tolerance import Tolerance
from localrank_cli.userimport import CodeSpec


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


_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Sampling:
    """What is estimated from samples, beside the Jacobians."""

    information: bool = False
    points: int | None = None  # None: the default number
    noise: float | None = None  # of tr Cov(T); None: the square of --noise
    labels_key: str = ""


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


@dataclass(frozen=True)
class SeriesOptions:
    """The options that hold for one series, and which of them its folder decides."""

    options: AnalyzeOptions
    own: FolderSettings
    folder: Path
    given: frozenset[str] = frozenset()  # names of options that the user gave
    from_folder: frozenset[str] = frozenset()  # names of options that localrank.toml gives

    @property
    def step_rule(self) -> StepRule:
        """How the steps are found."""
        options = self.options
        return StepRule.parse(options.step_regex, options.step_from, options.step_pattern)

    @property
    def data_files(self) -> list[Path]:
        """Files that the folder's settings name as data: they are no checkpoints, used or not."""
        data = self.own.values.get("data")
        return [self.folder / data] if data is not None else []


def for_series(options: AnalyzeOptions, folder: Path) -> SeriesOptions:
    """Return the options that hold for a series, with what its localrank.toml says.

    Raises:
        SettingsError: If the file cannot be read, or is wrong.
    """
    return with_own(options, read_folder_settings(folder), folder)


def with_own(options: AnalyzeOptions, own: FolderSettings, folder: Path) -> SeriesOptions:
    """Fill in what was not given: from a preset, from the series' own settings, from their preset.

    What still is not given then has its default. A preset that was given ranks above the file,
    whose own preset it replaces. A `--model` or `--data` that was given replaces what the file says
    of its own model or data (model-arg; data-key, data-scale, labels-key).
    """
    flags = {
        option.name: value
        for option in options_of(AnalyzeOptions)
        if (value := getattr(options, option.name)) is not option.unset and value != ()
    }
    ours = dict(own.values)
    for flag, about in _REPLACED.items():
        if flag in flags:
            ours = {name: value for name, value in ours.items() if name not in about}
    if "model_arg" in ours:  # single arguments are replaced
        arguments = dict(ours["model_arg"]) | dict(flags.get("model_arg", ()))
        flags |= {"model_arg": tuple(arguments.items())} if "model_arg" in flags else {}
    found: dict[str, Any] = {"hidden": True} if options.hidden else {}
    preset = preset_values(ours)
    if flags.get("layers") or ours.get("layers"):
        preset.pop("hidden", None)
    sources = [flags, preset_values(flags), ours, *([preset] if "preset" not in flags else [])]
    for source in sources:
        has_tolerances = "atol" in found or "rtol" in found
        for name, value in source.items():
            if not (has_tolerances and name in {"atol", "rtol"}):
                found.setdefault(name, value)
    filled: dict[str, Any] = _DEFAULTS | found
    given = frozenset(flags)
    return SeriesOptions(replace(options, **filled), own, folder, given, frozenset(ours) - given)


# What localrank.toml says of its own model or data serves no other.
_REPLACED = {
    "model": {"model", "model_arg"},
    "data": {"data", "data_key", "data_scale", "labels_key"},
}
# A number of points that was asked for is demanded of the data; the default is not. A default
# tolerance holds only where neither kind was given.
_DEFAULTS: dict[str, Any] = {
    option.name: option.setting.default
    for option in options_of(AnalyzeOptions)
    if option.setting.default is not None and option.name not in {"points", "atol"}
}


def resolve(series: SeriesOptions) -> Settings:
    """Return everything that decides the numbers of a series.

    Raises:
        SettingsError: If the file names code without --trust-model, or something is missing.
    """
    options, notes = series.options, list[str]()
    model = _model(series, notes)
    include = tuple(pattern for pattern in options.layers if not pattern.startswith("!"))
    exclude = tuple(pattern[1:] for pattern in options.layers if pattern.startswith("!"))
    slices = options.input_slice or "", options.output_slice or ""
    metric = _value(options.input_metric)
    sampling = _sampling(series)
    settings = Settings(
        model=model,
        source=replace(_source(series), keep=metric == "data" or bool(sampling.labels_key)),
        selection=Selection(
            include, exclude + options.exclude, options.wrt or "", options.hidden, *slices
        ),
        tolerances=_tolerances(options),
        noise=_value(options.noise),
        dtype=getattr(torch, _value(options.dtype)),
        columns=dict(series.own.columns),
        notes=tuple(notes),
        input_metric=metric,
        allow_small_cov=options.allow_small_cov,
        sampling=sampling,
        sigma_1=_value(options.sigma_1),
    )
    if settings.by_whole:
        check_whole(settings.selection, metric)
    return settings


def _value(value: _Value | None) -> _Value:
    assert value is not None  # options with a default have one in a series
    return value


def _sampling(series: SeriesOptions) -> Sampling:
    options = series.options
    points, noise = options.information_points, options.information_noise
    needless = series.given & {"information_points", "information_noise"}
    if needless and not options.information:
        flag = max(needless).replace("_", "-")
        raise UsageError(f"--{flag} without --information.", "Give both or neither.")
    return Sampling(bool(options.information), points, noise, options.labels_key or "")


def _model(series: SeriesOptions, notes: list[str]) -> ModelChoice:
    options, activation = series.options, _value(series.options.activation)
    code: CodeSpec | None = None
    factory: Callable[..., nn.Module] | None = None
    is_hf = options.model == HF
    if isinstance(options.model, str) and not is_hf:
        code = _code(options.model, "--model")
        if "model" in series.from_folder:
            code = _trusted(code, "model", series)
    elif options.model is not None and not isinstance(options.model, str):
        factory = options.model
    elif options.model_arg and not is_hf:
        raise SettingsError(
            "--model-arg was given without --model.", "A plain MLP takes no arguments."
        )
    if options.model is not None and "activation" in series.given:
        notes.append("--activation is ignored: the model's own code decides")
    return ModelChoice(code, factory, dict(options.model_arg), activation, is_hf)


def check_names(series: SeriesOptions) -> None:
    """Check the form of what options name, without opening a file.

    Raises:
        UsageError: If something that was given has no known form.
        SettingsError: If something that the series' localrank.toml says has none.
    """
    options = series.options
    checks: tuple[tuple[str, Callable[[str, str], object]], ...] = (
        ("activation", _check_activation),
        ("model", _code),
        ("data", lambda text, _: check_source(text)),
        ("input_slice", parse_slice),
        ("output_slice", parse_slice),
    )
    for name, check in checks:
        text = getattr(options, name)
        if not isinstance(text, str) or text in _NEEDS_NO_CHECK.get(name, ()):
            continue
        key = name.replace("_", "-")
        try:
            check(text, f"{key} =" if name in series.from_folder else f"--{key}")
        except UsageError as error:
            if name not in series.from_folder:
                raise
            raise SettingsError(f"{series.own.path}: {error.what}", error.advice) from error


# An empty slice takes away the one that the folder's settings name.
_NEEDS_NO_CHECK = {"model": (HF,), "input_slice": ("",), "output_slice": ("",)}


def _check_activation(text: str, option: str) -> None:
    if text not in ACTIVATIONS:
        raise UsageError(f"{option} {text}: not known.", f"Known are {', '.join(ACTIVATIONS)}.")


def _code(text: str, option: str) -> CodeSpec:
    code = CodeSpec.parse(text)
    if code is None:
        raise UsageError(
            f"{option} {text}: not of the form path/to/file.py:name or package.module:name.",
            "Name the class, or a function that returns the module, after a colon; or give hf for"
            " a model of transformers.",
        )
    return code


def _trusted(code: CodeSpec, key: str, series: SeriesOptions) -> CodeSpec:
    if not series.options.trust_model:
        raise SettingsError(
            f"{series.own.path}: names code to run, {code.place}:{code.name}.",
            "Code that came with a folder runs only when you ask for it: read it, then pass"
            " --trust-model (or name it yourself with --model or --data).",
        )
    if code.is_file:
        return CodeSpec(str(inside(series.folder, code.place, key)), code.name)
    return code


def _source(series: SeriesOptions) -> DataSource:
    options = series.options
    if options.data is None:
        raise SettingsError(
            f"{series.folder}: no data to take points from.",
            "Give --data FILE (.safetensors, .npz, .npy, .pt), --data file.py:name, or"
            " --data normal:784 for random points of that shape.",
        )
    array = options.data if isinstance(options.data, Tensor) else None
    text = options.data if isinstance(options.data, str) else ""
    if "data" in series.from_folder:
        text = _own_data(text, series)
    key, scale, seed = options.data_key or "", options.data_scale, _value(options.seed)
    return DataSource(text, key, scale, options.points, seed, array)


def _own_data(text: str, series: SeriesOptions) -> str:
    source = DataSource(text)
    if source.path is not None:
        return str(inside(series.folder, text, "data"))
    if source.code is not None:
        code = _trusted(source.code, "data", series)
        return f"{code.place}:{code.name}"
    return text


def _tolerances(options: AnalyzeOptions) -> tuple[Tolerance, ...]:
    atol = options.atol or (() if options.rtol else (DEFAULT_ATOL,))
    every = [
        *(Tolerance(atol=value) for value in atol),
        *(Tolerance(rtol=value) for value in options.rtol),
    ]
    return tuple({tolerance.label: tolerance for tolerance in every}.values())
