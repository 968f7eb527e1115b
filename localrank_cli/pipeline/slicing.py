"""`--input-slice`, `--output-slice` and `--sigma-1`: parts of a Jacobian, and their scale."""

from localrank_cli.errors import UsageError
from localrank_cli.layers.select import Selection


def check_whole(selection: Selection, input_metric: str) -> None:
    """Checks that there is a whole Jacobian beside the part, and that the two can be compared.

    Args:
        selection: With the slices.
        input_metric: `identity` or `data`.

    Raises:
        UsageError: If not.
    """
    if not selection.input_slice and not selection.output_slice:
        raise UsageError(
            "--sigma-1 full without --input-slice or --output-slice: the whole Jacobian is measured"
            " anyway.",
            "Leave it out.",
        )
    if selection.input_slice and input_metric == "data":
        raise UsageError(
            "--sigma-1 full with --input-slice and --input-metric data: the covariance of the slice"
            " and that of the whole are two metrics.",
            "Leave one of them out.",
        )
