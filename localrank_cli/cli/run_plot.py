"""The work of `plot`: from tables to a file with a figure."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from localrank_cli.cli.screen import Screen
from localrank_cli.cli.signals import signal_handler
from localrank_cli.options.views import PlotOptions
from localrank_cli.plotting import content_of, draw
from localrank_cli.results.write import check_replaceable, write_bytes


def run_plot(options: PlotOptions, target: Path) -> None:
    """Draw the figure and write it.

    Raises:
        SettingsError: If matplotlib is not installed.
    """
    screen = Screen(quiet=options.quiet, verbose=False)
    check_replaceable(target)
    with signal_handler() as handler:
        with handler.interruptible(), warnings_as_notes(screen):
            figure, notes = draw(options)
            content = content_of(figure, target, options)
        write_bytes(target, content)
    for note in notes:
        screen.note(note)
    screen.note(f"wrote {target}")


@contextmanager
def warnings_as_notes(screen: Screen) -> Iterator[None]:
    """Print warnings of libraries as notes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        yield
    for warning in caught:
        if not issubclass(warning.category, (DeprecationWarning, FutureWarning)):
            screen.note(str(warning.message))
