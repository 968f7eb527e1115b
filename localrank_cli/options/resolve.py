"""Resolve the settings of a series: a flag beats its localrank.toml, which beats the default."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from localrank_cli.checkpoints.names import StepRule
from localrank_cli.errors import SettingsError, UsageError
from localrank_cli.intervals.layer import Bounds
from localrank_cli.layers.axes import FeatureAxis
from localrank_cli.layers.positions import ALL, FIRST, LAST, Positions
from localrank_cli.layers.select import Selection
from localrank_cli.layers.slices import parse_slice
from localrank_cli.measures.table import CHOICES, ESTIMATED
from localrank_cli.model.mlp import ACTIVATIONS
from localrank_cli.options.folder import FolderSettings, inside, read_folder_settings
from localrank_cli.options.needs import HF, need_of_data, refusal
from localrank_cli.options.parse import Preset
from localrank_cli.options.setting import options_of
from localrank_cli.options.table import (
    DEFAULT_ATOL,
    DEFAULT_CONFIDENCE,
    DEFAULT_PRODUCTS,
    AnalyzeOptions,
)
from localrank_cli.points.source import DataSource, check_source
from localrank_cli.spectrum.tolerance import Tolerance
from localrank_cli.userimport import CodeSpec

# The settings in localrank.toml that hold only for its own model, data or layers.
_REPLACED = {
    "model": {"model", "model_arg"},
    "data": {"data", "data_key", "data_shape", "data_scale", "labels_key"},
    "layers": {"layers", "exclude"},
}
# Without points and atol: the data must hold as many points as the user asks for but need not hold
# the default number, and the default tolerance holds only without an rtol.
_DEFAULTS: dict[str, Any] = {
    option.name: option.setting.default
    for option in options_of(AnalyzeOptions)
    if option.setting.default is not None and option.name not in {"points", "atol"}
}
# An empty slice removes that of localrank.toml.
_NEEDS_NO_CHECK = {"model": (HF,), "input_slice": ("",), "output_slice": ("",)}

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Sampling:
    """What to estimate from samples, besides the Jacobians."""

    information: bool = False
    points: int | None = None  # None: the default number
    noise: float | None = None  # as a share of tr Cov(T); None: the square of --noise
    labels_key: str = ""
    beside: tuple[str, ...] = ()  # activations, weights

    @property
    def needs_points(self) -> bool:
        """Whether points are drawn for it."""
        return self.information or "activations" in self.beside


@dataclass(frozen=True)
class ModelChoice:
    """Where the network comes from: code, or the weights alone."""

    code: CodeSpec | None
    factory: Callable[..., nn.Module] | None  # from Python
    arguments: dict[str, Any]
    activation: str
    is_hf: bool = False  # built by transformers from the config.json beside the weights
    is_seen: bool = False  # a whole module in the file shows what is between its layers

    @property
    def is_inferred(self) -> bool:
        """Whether the network is a plain MLP inferred from its weights."""
        return self.code is None and self.factory is None and not self.is_hf

    @property
    def description(self) -> str:
        """The text for notes and the manifest."""
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
    sigma_1: str = "slice"  # or "full": what relative tolerances refer to under a slice
    pooled: bool = False  # whether to measure the means over points of J and of J^T J
    measures: str = "all"  # a key of `measures.table.CHOICES`
    newer: frozenset[str] = frozenset()  # measures that came after the analysis that is resumed
    bounds: Bounds | None = None  # of --method interval

    @property
    def slices(self) -> dict[str, str]:
        """Optional columns for slices, and whose sigma_1 a relative tolerance refers to."""
        inner, outer = self.selection.input_slice, self.selection.output_slice
        if not inner and not outer:
            return {}
        return {"input_slice": inner, "output_slice": outer, "sigma_1_of": self.sigma_1}

    @property
    def measured(self) -> tuple[str, ...]:
        """The names of the measures that each have one number per point."""
        return self.averaged if self.bounds is None else ESTIMATED

    @property
    def averaged(self) -> tuple[str, ...]:
        """The names of the measures of whole spectra, whatever the method."""
        return tuple(name for name in CHOICES[self.measures] if name not in self.newer)

    @property
    def has_parts(self) -> bool:
        """Whether the table says which parts of which Jacobians were measured."""
        return self.selection.has_parts or self.pooled

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
    folder_settings: FolderSettings
    folder: Path
    from_user: frozenset[str] = frozenset()  # names of options
    from_folder: frozenset[str] = frozenset()  # names of options that localrank.toml decides

    @property
    def step_rule(self) -> StepRule:
        """Where steps come from, and how they are found in names."""
        options = self.options
        return StepRule.parse(options.step_regex, options.step_from, options.step_pattern)

    @property
    def data_files(self) -> list[Path]:
        """Files that are named as data, which are no checkpoints, whether they are used or not."""
        own = self.folder_settings.values.get("data")
        files = [self.folder / own] if own is not None else []
        if "data" in self.from_user and isinstance(self.options.data, str):
            path = DataSource(self.options.data).path
            files += [path.absolute()] if path is not None else []
        return files


def for_series(options: AnalyzeOptions, folder: Path) -> SeriesOptions:
    """Return the options that hold for a series, with those of its localrank.toml.

    Raises:
        SettingsError: If the file cannot be read, or is wrong.
    """
    return with_folder(options, read_folder_settings(folder), folder)


def with_folder(options: AnalyzeOptions, settings: FolderSettings, folder: Path) -> SeriesOptions:
    """Fill in missing options: from the preset, localrank.toml, its preset, and the defaults.

    The user's preset replaces that of the file. The user's `--model`, `--data` or `--layers`
    replaces what the file says about its own model, data or layers (model-arg; data-key,
    data-shape, data-scale, labels-key; exclude).
    """
    flags = {
        option.name: value
        for option in options_of(AnalyzeOptions)
        if (value := getattr(options, option.name)) is not option.unset and value != ()
    }
    values = dict(settings.values)
    for flag, dependents in _REPLACED.items():
        if flag in flags:
            values = {name: value for name, value in values.items() if name not in dependents}
    if "model_arg" in values and "model_arg" in flags:  # single arguments are replaced
        arguments = dict(values["model_arg"]) | dict(flags["model_arg"])
        flags["model_arg"] = tuple(arguments.items())
    preset = preset_values(values)
    if flags.get("layers"):
        preset.pop("hidden", None)
    result: dict[str, Any] = {"hidden": True} if options.hidden else {}
    for source in [flags, preset_values(flags), values, {} if "preset" in flags else preset]:
        has_tolerances = "atol" in result or "rtol" in result
        for name, value in source.items():
            if not (has_tolerances and name in {"atol", "rtol"}):
                result.setdefault(name, value)
    names = frozenset(flags)
    return SeriesOptions(
        options=replace(options, **(_DEFAULTS | result)),
        folder_settings=settings,
        folder=folder,
        from_user=names,
        from_folder=frozenset(values) - names,
    )


def check_names(series: SeriesOptions) -> None:
    """Check the form of names in options, without opening a file.

    Raises:
        UsageError: If an option of the user has no known form.
        SettingsError: If an option in localrank.toml has none.
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
            path = series.folder_settings.path
            raise SettingsError(f"{path}: {error.what}", error.advice) from error


def check_step_names(series: SeriesOptions, names: Sequence[str]) -> None:
    """Check that `--step-regex` or `--step-pattern`, if there is one, fits the names of a series.

    Raises:
        SettingsError: If it finds a step in none of them.
    """
    options, rule = series.options, series.step_rule.names
    if rule.regex is None or not names or any(rule.step(name) is not None for name in names):
        return
    text = f"{rule.option} {options.step_regex or options.step_pattern}"
    if options.step_regex is None and "step_pattern" in series.from_folder:
        text = f"{series.folder_settings.path}: step-pattern = {options.step_pattern!r}"
    raise SettingsError(
        f"{text}: finds no step in the name of any checkpoint of {series.folder}, such as"
        f" {names[0]!r}.",
        "Correct it, or leave it out; --step-pattern '' ignores the one in a localrank.toml.",
    )


def _check_activation(text: str, option: str) -> None:
    if text not in ACTIVATIONS:
        raise UsageError(f"{option} {text}: unknown.", f"Choose one of {', '.join(ACTIVATIONS)}.")


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
            include,
            exclude + options.exclude,
            options.wrt or "",
            options.hidden,
            *slices,
            positions=Positions.parse(options.positions or ALL),
            feature_axes=tuple(_feature_axis(text) for text in options.feature_axis),
            residual=bool(options.residual),
        ),
        tolerances=_tolerances(options),
        noise=_value(options.noise),
        dtype=getattr(torch, _value(options.dtype)),
        columns=dict(series.folder_settings.columns),
        notes=tuple(notes),
        input_metric=metric,
        allow_small_cov=options.allow_small_cov,
        sampling=sampling,
        sigma_1=_value(options.sigma_1),
        pooled=bool(options.pooled),
        measures=_value(options.measures),
        bounds=_bounds(series),
    )
    if settings.bounds is not None:
        _check_interval(settings)
    if settings.by_whole:
        check_whole(settings.selection, metric)
        _check_not_pooled(settings)
    _check_parts(settings.selection)
    _check_one_metric(settings)
    return settings


def _bounds(series: SeriesOptions) -> Bounds | None:
    """Return how intervals are to be computed; None for exact ranks."""
    options = series.options
    own = {"confidence": options.confidence, "width": options.width, "products": options.products}
    if options.method != "interval":
        for name, value in own.items():
            if value is None or (name in series.from_folder and "method" in series.from_user):
                continue  # --method exact replaces what the folder says of intervals
            if name in series.from_folder:
                raise SettingsError(
                    f"{series.folder_settings.path}: {name} without method = 'interval': it"
                    " does not apply to exact ranks.",
                    "Remove it, or add method = 'interval'.",
                )
            raise SettingsError(
                f"--{name} without --method interval: it does not apply to exact ranks.",
                "Leave it out, or add --method interval.",
            )
        return None
    return Bounds(
        options.confidence or DEFAULT_CONFIDENCE,
        options.width or 0.0,
        options.products or DEFAULT_PRODUCTS,
    )


# Under it the share of the Lanczos matrix that decides is of the size of its rounding.
_LEAST_RTOL = 1e-5


def _check_interval(settings: Settings) -> None:
    """Check that all settings are ones that products alone can serve.

    Raises:
        SettingsError: If one is not.
    """
    positions = settings.selection.positions
    if not positions.is_all:
        raise SettingsError(
            f"--method interval with --positions {positions}: the bounds are for whole Jacobians"
            " only.",
            "Use --method exact, since single positions have small Jacobians; or name one position"
            " by --input-slice and --output-slice instead of --positions.",
        )
    if settings.pooled:
        raise SettingsError(
            "--method interval with --pooled: means of Jacobians are formed from the Jacobians"
            " themselves.",
            "Use --method exact, or leave out --pooled.",
        )
    if settings.by_whole:
        raise SettingsError(
            "--method interval with --sigma-1 full: products use only the slice.",
            "Use --method exact; or leave out --sigma-1 full and give the tolerance as --atol, from"
            " sigma_1_low of a run without the slice.",
        )
    for tolerance in settings.tolerances:
        if tolerance.rtol is not None and 0 < tolerance.rtol < _LEAST_RTOL:
            raise SettingsError(
                f"--method interval with --rtol {tolerance.rtol:g}: products cannot resolve"
                f" singular values below {_LEAST_RTOL:g} of the largest.",
                "Give a larger --rtol, or use --method exact.",
            )


def _feature_axis(text: str) -> FeatureAxis:
    pattern, equals, number = text.rpartition("=")
    try:
        return FeatureAxis(int(number), pattern if equals else "*")
    except ValueError:
        raise UsageError(
            f"--feature-axis {text}: {number!r} is not an integer.",
            "Write an axis such as 1 or -1, or NAME=AXIS.",
        ) from None


def _check_parts(selection: Selection) -> None:
    """Check that pairs and positions are not combined with what measures whole Jacobians.

    Raises:
        SettingsError: If they are.
    """
    asked = []
    if not selection.positions.is_all:
        asked.append(f"--positions {selection.positions}")
    if not selection.has_one_source:
        asked.append(f"--wrt {selection.wrt}")
    if selection.residual:
        asked.append("--residual")
    if not asked:
        return
    slices = [
        option
        for option, text in (
            ("--input-slice", selection.input_slice), ("--output-slice", selection.output_slice),
        )
        if text
    ]  # fmt: skip
    if slices:
        raise SettingsError(
            f"{slices[0]} with {asked[0]}: both choose parts of the Jacobian.",
            "Leave one of them out; --positions last, for example, is the last token.",
        )


def _check_one_metric(settings: Settings) -> None:
    """Check that pooled Jacobians have one metric, as L is only one of many with L L^T = Cov.

    J L has the same singular values for all of them, and a mean of J_1 L_1 and J_2 L_2 has not.

    Raises:
        SettingsError: If they have several.
    """
    positions = settings.selection.positions
    one = positions.takes_whole_source or positions.kind in (FIRST, LAST)
    if settings.pooled and settings.input_metric == "data" and not one:
        raise SettingsError(
            f"--pooled with --positions {positions} and --input-metric data: each position has a"
            " covariance of its own, and Jacobians in several metrics have no mean.",
            "Leave one of them out, or choose --positions last or first.",
        )


def _value(value: _Value | None) -> _Value:
    assert value is not None  # options with a default have one in a series
    return value


def check_whole(selection: Selection, input_metric: str) -> None:
    """Check that `--sigma-1 full` has a slice, and that slice and whole can be compared.

    Raises:
        SettingsError: If it has none, or they cannot be compared.
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


def _check_not_pooled(settings: Settings) -> None:
    if settings.pooled:
        raise SettingsError(
            "--sigma-1 full with --pooled: relative tolerances refer to the largest singular value"
            " of the pooled matrix itself.",
            "Leave one of them out: --sigma-1 slice, or --no-pooled.",
        )


def _sampling(series: SeriesOptions) -> Sampling:
    options = series.options
    needless = series.from_user & {"information_points", "information_noise"}
    if "activations" in options.beside:
        needless -= {"information_points"}
    if needless and not options.information:
        flag = max(needless).replace("_", "-")
        other = " or --beside activations" if flag == "information-points" else ""
        raise UsageError(f"--{flag} without --information{other}.", "Give both or neither.")
    return Sampling(
        beside=tuple(sorted(set(options.beside))),
        information=bool(options.information),
        points=options.information_points,
        noise=options.information_noise,
        labels_key=options.labels_key or "",
    )


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
    if options.model is not None and "activation" in series.from_user:
        notes.append("--activation is ignored: the model's own code decides")
    return ModelChoice(
        code=code,
        factory=factory,
        arguments=dict(options.model_arg),
        activation=activation,
        is_hf=is_hf,
    )


def _code(text: str, option: str) -> CodeSpec:
    code = CodeSpec.parse(text)
    if code is None:
        raise UsageError(
            f"{option} {text}: not of the form path/to/file.py:name or package.module:name.",
            "Name the class, or a function that returns the module, after a colon; or give hf for"
            " a transformers model.",
        )
    return code


def _trusted(code: CodeSpec, key: str, series: SeriesOptions) -> CodeSpec:
    if not series.options.trust_model:
        raise SettingsError(
            f"{series.folder_settings.path}: names code to run, {code.place}:{code.name}.",
            "Code that came with a folder runs only when you ask for it: read it, then pass"
            " --trust-model (or name it yourself with --model or --data).",
        )
    if code.is_file:
        return CodeSpec(str(inside(series.folder, code.place, key)), code.name)
    return code


def _source(series: SeriesOptions) -> DataSource:
    options = series.options
    if options.data is None:
        raise refusal(series.folder, [need_of_data()])
    array = None if isinstance(options.data, str) else options.data
    text = options.data if isinstance(options.data, str) else ""
    if "data" in series.from_folder:
        text = _folder_data(text, series)
    return DataSource(
        text,
        key=options.data_key or "",
        shape=options.data_shape,
        scale=options.data_scale,
        count=options.points,
        seed=_value(options.seed),
        array=array,
        labels_key=options.labels_key or "",
        memory=options.memory,
    )


def _folder_data(text: str, series: SeriesOptions) -> str:
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


# max(n) eps(float32) is matrix_rank's own tolerance on the float32 Gram matrix of a 3 x 16 x 16
# patch, whose eigenvalues are squares: (768 * 2^-23)^(1/2) on sigma, relative to sigma_1.
_GRAM_RTOL = (3 * 16 * 16 * 2.0**-23) ** 0.5

# The rules of published work behind `--preset`; docs/local_rank.md has the sources. `hidden` leaves
# out the last layer; there is no option for it.
_PRESETS: Mapping[Preset, Mapping[str, Any]] = {
    Preset.patel2024: {"atol": (0.01,), "points": 128, "hidden": True},
    # matrix_rank is called on the patch alone there.
    Preset.feng2022: {"rtol": (_GRAM_RTOL,), "input_slice": "center:16", "sigma_1": "slice"},
    Preset.numpy: {"rtol": (None,)},
}


def preset_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the preset among some options, by name; none without a preset.

    Layers among the same options override the preset's choice, so that they may include the last.
    """
    preset = options.get("preset")
    values = dict(_PRESETS[preset]) if preset is not None else {}
    if options.get("layers"):
        values.pop("hidden", None)
    return values
