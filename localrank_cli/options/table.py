"""What the user asked for, as given; None or empty where nothing was said."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localrank_cli.checkpoints.names import StepRule
from localrank_cli.errors import UsageError
from localrank_cli.options.parse import Part, Preset, Shard, check_part
from localrank_cli.results.plan_file import PlanFile

if TYPE_CHECKING:  # torch is not imported where options are only parsed
    from torch import Tensor, nn

DTYPES = ("float64", "float32")
ON_ERROR = ("stop", "skip")
METRICS = ("identity", "data")
SIGMA_1 = ("slice", "full")


@dataclass(frozen=True)
class Follow:
    """Watch a run in progress."""

    until: int | None = None  # the step after which to stop; None: until a signal
    poll: float = 2.0  # seconds between looks


@dataclass(frozen=True)
class AnalyzeOptions:
    """The arguments of `localrank analyze`, unresolved."""

    checkpoints: tuple[Path, ...]
    model: "str | Callable[..., nn.Module] | None" = None
    model_args: tuple[tuple[str, Any], ...] = ()
    activation: str | None = None
    data: "str | Tensor | None" = None
    data_key: str | None = None
    data_scale: float | None = None
    points: int | None = None
    seed: int | None = None
    layers: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    wrt: str | None = None
    atol: tuple[float, ...] = ()
    rtol: tuple[float | None, ...] = ()  # None: eps
    noise: float | None = None
    dtype: str | None = None
    input_metric: str | None = None
    allow_small_cov: bool = False
    allow_unsaved: bool = False
    preset: Preset | None = None
    hidden: bool = False  # by a preset alone
    input_slice: str | None = None
    output_slice: str | None = None
    sigma_1: str | None = None  # of what relative tolerances are taken under a slice
    information: bool | None = None
    information_points: int | None = None
    information_noise: float | None = None  # of tr Cov(T); None: the square of noise
    labels_key: str | None = None
    device: str = "auto"
    memory: int | None = None  # bytes; None: a quarter of what is free
    pattern: str = ""
    part: Part = field(default_factory=Part)
    weights: str = "raw"
    step_regex: str | None = None
    step_from: str | None = None
    output: Path | None = None
    overwrite: bool = False
    spectra: Path | None = None
    on_error: str = "stop"
    shard: Shard | None = None
    frozen: PlanFile | None = None  # only the checkpoints of a plan file
    follow: Follow | None = None
    trust_model: bool = False
    trust_pickle: bool = False


def check_options(options: AnalyzeOptions) -> None:
    """Checks everything that can be seen without opening a file or importing torch.

    Args:
        options: As given.

    Raises:
        UsageError: If something is wrong.
    """
    if not options.checkpoints:
        raise UsageError("no checkpoints were named.", "Name a folder of checkpoints.")
    check_tolerances(options.atol, options.rtol)
    check_numbers(options.noise, options.points, options.seed, options.data_scale)
    check_words(options.dtype, options.input_metric, options.sigma_1)
    check_sampling(options.information_points, options.information_noise)
    _check_device(options.device)
    check_part(options.part)
    _check_follow(options)
    if options.on_error not in ON_ERROR:
        raise UsageError(
            f"--on-error {options.on_error}: not known.", f"Known are {' and '.join(ON_ERROR)}."
        )
    StepRule.parse(options.step_regex, options.step_from)


def _check_follow(options: AnalyzeOptions) -> None:
    if options.follow is None:
        return
    if options.part.every != 1 or options.part.last is not None:
        raise UsageError(
            "--follow with --every or --last: nobody knows which checkpoints are still to come.",
            "Choose steps with --steps A:B:C.",
        )
    if options.shard is not None:
        raise UsageError(
            "--follow with --shard: a series that grows cannot be divided.", "Give one of them."
        )


def check_sampling(points: int | None, noise: float | None) -> None:
    """Checks the numbers of `--information`, of flags or of a series' own settings.

    Args:
        points: How many.
        noise: Share of tr Cov(T).

    Raises:
        UsageError: If one is out of range.
    """
    if points is not None and points < 2:
        raise UsageError(f"--information-points {points}: at least 2.")
    if noise is not None and not _positive(noise):
        raise UsageError(f"--information-noise {noise:g}: must be positive and finite.")


def check_tolerances(atol: Sequence[float], rtol: Sequence[float | None]) -> None:
    """Checks tolerances, of flags or of a series' own settings.

    Args:
        atol: Absolute tolerances.
        rtol: Relative tolerances; None is eps.

    Raises:
        UsageError: If one is out of range.
    """
    for value in atol:
        if not _positive(value):
            raise UsageError(
                f"--atol {value:g}: a tolerance must be positive and finite.",
                "Below the rounding of the SVD every count is noise: with --atol 0 every layer"
                " would have full rank. Use --rtol eps for the least tolerance that means"
                " something.",
            )
    for relative in rtol:
        if relative is None:
            continue
        if not _positive(relative):
            raise UsageError(
                f"--rtol {relative:g}: a tolerance must be positive.",
                "Below the rounding of the SVD every count is noise. Use --rtol eps for the least"
                " tolerance that means something.",
            )
        if relative >= 1:
            raise UsageError(
                f"--rtol {relative:g}: must be under 1.", "No singular value exceeds sigma_1."
            )


def check_numbers(
    noise: float | None, points: int | None, seed: int | None, scale: float | None
) -> None:
    """Checks the numbers that flags and a series' own settings share.

    Args:
        noise: Standard deviation.
        points: How many points.
        seed: Of the draw.
        scale: Of the data.

    Raises:
        UsageError: If one is out of range.
    """
    if noise is not None and not _positive(noise):
        raise UsageError(f"--noise {noise:g}: must be positive and finite.")
    if noise is not None and not 1e-150 <= noise <= 1e150:
        raise UsageError(f"--noise {noise:g}: its square must be a float: 1e-150 to 1e150.")
    if points is not None and points < 1:
        raise UsageError(f"--points {points}: at least 1.")
    if seed is not None and not 0 <= seed < 2**63:
        raise UsageError(f"--seed {seed}: a number from 0 to 2^63 - 1.")
    if scale is not None and not _positive(abs(scale)):
        raise UsageError(f"--data-scale {scale}: a finite number other than 0.")


def check_words(dtype: str | None, input_metric: str | None, sigma_1: str | None = None) -> None:
    """Checks settings that take one of a few words.

    Args:
        dtype: Of the Jacobian.
        input_metric: Of the varied tensor.
        sigma_1: What a relative tolerance refers to.

    Raises:
        UsageError: If a word is not known.
    """
    for option, word, known in (
        ("--dtype", dtype, DTYPES),
        ("--input-metric", input_metric, METRICS),
        ("--sigma-1", sigma_1, SIGMA_1),
    ):
        if word is not None and word not in known:
            raise UsageError(f"{option} {word}: not known.", f"Known are {' and '.join(known)}.")


_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?$", flags=re.IGNORECASE)
# Bytes: below this a Jacobian of a few hundred rows is cut into single products.
LEAST_MEMORY = 16 * 2**20


def parse_size(text: str) -> int:
    """Reads a size in bytes.

    Args:
        text: `2GiB`, `512MB`, `1.5G` (1024^3) or a number of bytes.

    Returns:
        Bytes.

    Raises:
        UsageError: If it is no size, or too little to work in.
    """
    match = _SIZE.match(text.strip())
    if match is None:
        raise UsageError(f"--memory {text}: not a size.", "Sizes are 2GiB, 512MB or 1.5G.")
    number, prefix, binary = match.groups()
    # MB is 1000^2, as disks and SI have it; MiB and a bare M are 1024^2, as Slurm has it.
    base = 1000 if text.strip().lower().endswith("b") and not binary else 1024
    size = int(float(number) * base ** " kmgt".index(prefix.lower() or " "))
    if size < LEAST_MEMORY:
        raise UsageError(f"--memory {text}: too little to work in.", "Give at least 16MiB.")
    return size


def parse_rtol(text: str) -> float | None:
    """Reads a relative tolerance.

    Args:
        text: A number, or `eps`.

    Returns:
        The number; None for eps.

    Raises:
        UsageError: If it is neither.
    """
    if text.strip().lower() == "eps":
        return None
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--rtol {text}: neither a number nor eps.") from None


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _check_device(device: str) -> None:
    if device == "all":
        return
    names = device.split(",")
    for name in names:
        kind, _, index = name.strip().partition(":")
        known = name.strip() in ("cpu", "cuda") or (kind == "cuda" and index.isdecimal())
        if not known and (name != "auto" or len(names) > 1):
            raise UsageError(
                f"--device {device}: not known.",
                "Known are auto, cpu, cuda, cuda:K, several with commas, and all (GPUs).",
            )
