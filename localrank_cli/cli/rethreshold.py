"""`localrank rethreshold`: count kept singular values at other tolerances."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from localrank_cli.cli.command import with_options
from localrank_cli.errors import INCOMPLETE
from localrank_cli.options.table import RethresholdOptions

if TYPE_CHECKING:  # importing torch is slow
    from localrank_cli.results.record import CheckpointRecord
    from localrank_cli.run.rethreshold import Rethreshold


@with_options(
    RethresholdOptions, example="localrank rethreshold spectra --atol 0.1 -o ranks_0.1.csv"
)
def rethreshold(_context: typer.Context, options: RethresholdOptions) -> None:
    """Recount kept singular values at other tolerances, without recomputing Jacobians."""
    output = options.output
    from localrank_cli.results.write import check_suffix

    target = output if output != Path("-") else None
    if target is not None:
        check_suffix(target)
    from localrank_cli.run.rethreshold import Rethreshold

    work = Rethreshold.of(options)
    if target is None:
        is_finite = _print(work, as_table=output is None and sys.stdout.isatty())
    else:
        is_finite = _write(work, target, overwrite=options.overwrite, quiet=options.quiet)
    if not is_finite:
        raise typer.Exit(INCOMPLETE)


def _print(work: "Rethreshold", *, as_table: bool) -> bool:
    """Print a table for the user, or CSV; return whether all values are finite."""
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
    from localrank_cli.results.write import written

    is_finite, shown = True, []

    def take(record: "CheckpointRecord") -> None:
        """Note whether a checkpoint's values are finite, and keep it for the chart."""
        nonlocal is_finite
        is_finite &= record.is_finite
        if sys.stdout.isatty():
            shown.append(record)

    work.write(target, sys.argv, take, overwrite=overwrite)
    Screen(quiet=quiet, verbose=False).note(written(target))
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
