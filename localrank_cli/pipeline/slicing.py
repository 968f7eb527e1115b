"""`--input-slice`, `--output-slice` and `--sigma-1`: parts of a Jacobian, and their scale."""

from localrank_cli.errors import SettingsError
from localrank_cli.layers.select import Selection
from localrank_cli.pipeline.folder_settings import FolderSettings
from localrank_cli.pipeline.options import AnalyzeOptions


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
