"""`localrank merge`: merge the tables of shards."""

import sys

import typer

from localrank_cli.cli.command import with_options
from localrank_cli.errors import INCOMPLETE, UsageError
from localrank_cli.options.table import MergeOptions


@with_options(MergeOptions, example="localrank merge parts -o ranks.csv")
def merge(_context: typer.Context, options: MergeOptions) -> None:
    """Merge the tables of shards into one, equal to that of a single run."""
    if options.output is None:  # before torch is imported
        raise UsageError("merge: no file to write.", "Name one with -o FILE.")
    from localrank_cli.cli.screen import Screen
    from localrank_cli.divide.merging import merge_tables
    from localrank_cli.results.write import written

    screen = Screen(quiet=False, verbose=False)
    flaws = merge_tables(options, sys.argv, lambda text: screen.warn(f"warning: {text}"))
    for flaw in flaws:
        screen.warn(f"warning: {flaw}")
    screen.note(written(options.output))
    if flaws:
        raise typer.Exit(INCOMPLETE)
