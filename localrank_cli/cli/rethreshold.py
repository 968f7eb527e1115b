"""`localrank rethreshold`: other tolerances over kept singular values."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localrank_cli.cli.arguments import Debug
from localrank_cli.cli.shared import NoNotes, OverwriteTable
from localrank_cli.pipeline.options import check_numbers, check_tolerances, parse_rtol

if TYPE_CHECKING:  # torch is imported only when there is something to do
    from localrank_cli.pipeline.rethreshold import Rethreshold

_NOT_FINITE = 3


def rethreshold(
    spectra: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            readable=False,
            help="What analyze --spectra FOLDER wrote.",
            show_default=False,
        ),
    ],
    atol: Annotated[
        list[float] | None,
        typer.Option(metavar="X", help="Absolute tolerance; repeat. Default: 0.01."),
    ] = None,
    rtol: Annotated[
        list[str] | None,
        typer.Option(metavar="X", help="Relative tolerance, or eps; repeat."),
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            help="Standard deviation for gaussian_information. Default: as it was.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            readable=False,
            help="A .csv, .tsv, .jsonl or .parquet file. Default: a table on a terminal, CSV in a"
            " pipe.",
        ),
    ] = None,
    overwrite: OverwriteTable = False,
    quiet: NoNotes = False,
    debug: Debug = False,
) -> None:
    """Count again at other tolerances, from kept singular values; nothing is differentiated."""
    del debug  # seen by the program itself
    relative = tuple(parse_rtol(text) for text in rtol or [])
    absolute = tuple(atol or (() if relative else (0.01,)))
    check_tolerances(absolute, relative)
    check_numbers(noise, None, None, None)
    from localrank_cli.pipeline.rethreshold import refuse_existing
    from localrank_cli.table.write import check_suffix

    if output is not None and output != Path("-"):
        check_suffix(output)
        if not overwrite:
            refuse_existing(output)
    from localrank_cli.pipeline.rethreshold import Rethreshold

    if not _write(
        Rethreshold.at(spectra, absolute, relative, noise), output, overwrite=overwrite, quiet=quiet
    ):
        raise typer.Exit(_NOT_FINITE)


def _write(work: "Rethreshold", output: Path | None, *, overwrite: bool, quiet: bool) -> bool:
    """Writes where the results belong, as analyze does; tells whether all values are finite."""
    from rich.console import Console

    from localrank_cli.cli.screen import Screen
    from localrank_cli.cli.summary import Summary
    from localrank_cli.pipeline.rethreshold import write_rethresholded
    from localrank_cli.table.columns import header
    from localrank_cli.table.write import RowWriter

    rows, is_finite = [], True
    for record in work.records():
        rows += record.rows
        is_finite &= record.is_finite
    to_file = output is not None and output != Path("-")
    if output is not None and to_file:
        write_rethresholded(work, rows, output.absolute(), sys.argv, overwrite=overwrite)
        Screen(quiet=quiet, verbose=False).note(f"wrote {output} and {output.name}.json")
    if sys.stdout.isatty() and (to_file or output is None):
        summary = Summary()
        summary.add(rows)
        summary.show(Console(highlight=False))
    elif not to_file:
        RowWriter(sys.stdout, header(work.extra_columns)).write(rows)
    return is_finite
