"""`localrank rethreshold`: other tolerances over kept singular values."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localrank_cli.cli.arguments import Debug
from localrank_cli.cli.command import NoNotes, OverwriteTable
from localrank_cli.errors import INCOMPLETE
from localrank_cli.options.table import check_numbers, check_tolerances, parse_rtol

if TYPE_CHECKING:  # torch is imported only when there is something to do
    from localrank_cli.results.record import CheckpointRecord
    from localrank_cli.results.rethreshold import Rethreshold


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
    from localrank_cli.results.write import check_suffix

    target = output if output != Path("-") else None
    if target is not None:
        check_suffix(target)
    from localrank_cli.results.rethreshold import Rethreshold

    work = Rethreshold.at(spectra, absolute, relative, noise)
    if target is None:
        is_finite = _print(work, as_table=output is None and sys.stdout.isatty())
    else:
        is_finite = _write(work, target, overwrite=overwrite, quiet=quiet)
    if not is_finite:
        raise typer.Exit(INCOMPLETE)


def _print(work: "Rethreshold", *, as_table: bool) -> bool:
    """Print a table for a person, or CSV; return whether all values are finite."""
    from localrank_cli.results.columns import header
    from localrank_cli.results.write import RowWriter

    records = list(work.records())
    if as_table:
        _show(records)
    else:
        writer = RowWriter(sys.stdout, header(work.extra_columns))
        for record in records:
            writer.write(record.rows)
    return all(record.is_finite for record in records)


def _write(work: "Rethreshold", target: Path, *, overwrite: bool, quiet: bool) -> bool:
    """Write a file as analyze does; return whether all values are finite."""
    from localrank_cli.cli.screen import Screen

    is_finite, shown = True, []

    def take(record: "CheckpointRecord") -> None:
        nonlocal is_finite
        is_finite &= record.is_finite
        if sys.stdout.isatty():
            shown.append(record)

    work.write(target, sys.argv, take, overwrite=overwrite)
    Screen(quiet=quiet, verbose=False).note(f"wrote {target} and {target.name}.json")
    if shown:
        _show(shown)
    return is_finite


def _show(records: "list[CheckpointRecord]") -> None:
    from rich.console import Console

    from localrank_cli.cli.chart import Summary

    summary = Summary()
    for record in records:
        summary.add(record.rows)
    summary.show(Console(highlight=False))
