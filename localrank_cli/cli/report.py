"""`localrank report`: parses its options and hands over."""

from pathlib import Path
from typing import Annotated

import typer

from localrank_cli.cli.command import Debug, NoNotes, OneMetric, Tables
from localrank_cli.errors import UsageError


def report(
    tables: Tables,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            readable=False,
            help="An .html file; an existing one is replaced. Default: RANKS.html, next to the"
            " table.",
        ),
    ] = None,
    spectra: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            readable=False,
            help="Singular values kept by analyze --spectra: adds a slider for the tolerance.",
        ),
    ] = None,
    input_metric: OneMetric = None,
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="The page's heading.")] = None,
    quiet: NoNotes = False,
    debug: Debug = False,
) -> None:
    """Write an HTML page of a table: one file that works offline."""
    del debug  # read by the program itself
    target = tables[0].with_suffix(".html") if output is None else output
    if target.suffix.lower() not in {".html", ".htm"}:
        raise UsageError(f"--output {target}: the page is HTML.", "Give a name that ends in .html.")
    from localrank_cli.cli.run_report import run_report

    run_report(tuple(tables), target, spectra, input_metric, title, quiet=quiet)
