"""`localrank reproduce`: train networks whose ranks are known."""

import typer

from localrank_cli.cli.command import offering
from localrank_cli.errors import UsageError
from localrank_cli.options.table import ReproduceOptions


@offering(ReproduceOptions)
def reproduce(_context: typer.Context, options: ReproduceOptions) -> None:
    """Train small networks with a known or published answer, and check that it is found.

    Prints the verdict. Exit status 4 when a claim does not hold.
    """
    if options.mnist is not None and options.experiment not in ("mnist", "patel2024"):
        raise UsageError(
            "--mnist is for `localrank reproduce mnist` and `patel2024`.", "Leave it out."
        )
    if options.steps is not None and (options.experiment != "patel2024" or options.quick):
        raise UsageError(
            "--steps is for `localrank reproduce patel2024` without --quick.", "Leave it out."
        )
    # Imported late: help, version and usage errors do not need torch.
    from localrank_cli.cli.run_reproduce import run_reproduction

    raise typer.Exit(run_reproduction(options))
