"""`localrank show`: parses its options and hands over."""

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
            help="A table written by analyze (.csv, .tsv, .jsonl, .parquet).",
            show_default=False,
        ),
    ],
    y: Annotated[
        str,
        typer.Option("--y", metavar="COLUMN", help="The measure of the chart; no negative values."),
    ] = "local_rank",
    layers: ShownLayers = None,
    tolerance: Annotated[
        str | None,
        typer.Option(metavar="LABEL", help="Show only this one. Default: all of them."),
    ] = None,
    quiet: NoNotes = False,
    debug: Debug = False,
) -> None:
    """Print a table in the terminal: the summary of analyze, and a chart."""
    del debug  # read by the program itself
    from localrank_cli.cli.run_show import run_show

    run_show(table, y, globs(layers), tolerance, quiet=quiet)
