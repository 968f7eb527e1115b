"""`localrank export`: write a table in the format of a logger."""

import typer

from localrank_cli.cli.command import with_options
from localrank_cli.options.views import ExportOptions


@with_options(ExportOptions, example="localrank export ranks.csv --to tensorboard events")
def export(_context: typer.Context, options: ExportOptions) -> None:
    """Convert a table to the format of an experiment logger, such as TensorBoard."""
    # Imported late, since pandas and torch are slow to import.
    from localrank_cli.cli.screen import Screen
    from localrank_cli.results.read import read_table, without_failed
    from localrank_cli.results.tensorboard import write_events

    screen = Screen(quiet=options.quiet, verbose=False)
    frame, left_out = without_failed(read_table(options.table))
    if left_out:
        screen.note(left_out)
    for place in write_events(frame, options.folder):
        screen.note(f"wrote {place}")
