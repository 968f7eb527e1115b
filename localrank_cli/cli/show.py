"""`localrank show`: print a table."""

import typer

from localrank_cli.cli.command import with_options
from localrank_cli.options.views import ShowOptions


@with_options(ShowOptions, example="localrank show ranks.csv")
def show(_context: typer.Context, options: ShowOptions) -> None:
    """Print a table in the terminal: the summary that analyze prints, and a chart."""
    from localrank_cli.cli.run_show import run_show

    run_show(options)
