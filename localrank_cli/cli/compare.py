"""`localrank compare`: whether groups of runs differ, and when a measure falls."""

from pathlib import Path

import typer

from localrank_cli.cli.command import with_options
from localrank_cli.errors import UsageError
from localrank_cli.options.views import CompareOptions

_FIGURES = (".png", ".svg", ".pdf")


@with_options(
    CompareOptions, example="localrank compare decay/*.csv control/*.csv --by weight_decay"
)
def compare(_context: typer.Context, options: CompareOptions) -> None:
    """Compare groups of runs: differences with intervals over runs, and when the fall begins."""
    from localrank_cli.results.write import check_suffix

    for file in (options.output, options.onsets):
        if file is not None and file != Path("-"):
            check_suffix(file)
    if options.onsets == Path("-"):
        raise UsageError(
            "--onsets -: only the differences can go to standard output.", "Name a file."
        )
    if options.figure is not None and options.figure.suffix.lower() not in _FIGURES:
        raise UsageError(
            f"--figure {options.figure}: the suffix {options.figure.suffix!r} is not a figure"
            " format.",
            f"Choose one of {', '.join(_FIGURES)}.",
        )
    # Imported late, since pandas and scipy are slow to import.
    from localrank_cli.cli.run_compare import run_compare

    run_compare(options)
