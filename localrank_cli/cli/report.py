"""`localrank report`: write a page of a table."""

import typer

from localrank_cli.cli.command import with_options
from localrank_cli.errors import UsageError
from localrank_cli.options.views import ReportOptions


@with_options(ReportOptions, example="localrank report ranks.csv")
def report(_context: typer.Context, options: ReportOptions) -> None:
    """Write an HTML report of a table: one file that works offline."""
    target = options.output or options.tables[0].with_suffix(".html")
    if target.suffix.lower() not in {".html", ".htm"}:
        raise UsageError(f"--output {target}: the page is HTML.", "Give a name that ends in .html.")
    from localrank_cli.cli.run_report import run_report

    run_report(options, target)
