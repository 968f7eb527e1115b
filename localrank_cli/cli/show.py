"""`localrank show`: the summary of a table, and a chart, in the terminal."""

from pathlib import Path
from typing import Annotated

import typer

from localrank_cli.cli.command import Debug, NoNotes, ShownLayers, globs


def show(
    table: Annotated[
        Path,
        typer.Argument(
            metavar="RANKS",
            readable=False,
            help="A table that analyze wrote (.csv, .tsv, .jsonl, .parquet).",
            show_default=False,
        ),
    ],
    y: Annotated[
        str,
        typer.Option("--y", metavar="COLUMN", help="The measure of the chart, not negative."),
    ] = "local_rank",
    layers: ShownLayers = None,
    tolerance: Annotated[
        str | None,
        typer.Option(metavar="LABEL", help="Only this one. Default: one after the other."),
    ] = None,
    quiet: NoNotes = False,
    debug: Debug = False,
) -> None:
    """Show a table in the terminal: the summary of analyze, and a chart."""
    del debug  # seen by the program itself
    from localrank_cli.cli.run_show import run_show

    run_show(table, y, globs(layers), tolerance, quiet=quiet)
