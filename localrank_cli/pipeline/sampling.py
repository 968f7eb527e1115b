"""What is asked of `--information` and `--labels-key`, by flags or by a series' own settings."""

from dataclasses import dataclass

from localrank_cli.errors import UsageError
from localrank_cli.pipeline.folder_settings import FolderSettings
from localrank_cli.pipeline.options import AnalyzeOptions


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
