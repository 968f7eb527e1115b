"""Notes, progress and warnings on stderr, and a stdout that carries only data."""

import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from localrank_cli.cli.words import broken
from localrank_cli.errors import duration, printable

# Seconds until the first line of a log about a checkpoint, and between lines.
FIRST_LINE, LINE_EVERY = 20.0, 60.0
PROGRESS = "progress: "  # how these lines begin
_LONG = 2.0  # seconds after which a checkpoint has a bar of its own
_REDRAW = 0.2  # seconds
# Beside the words: a bar of ten, counts, time elapsed, "left", time left, and five spaces.
_NUMBERS = 10 + 7 + 7 + 4 + 7 + 5
_FEWEST_WORDS = 12  # on a terminal that is too narrow for all


class Screen:
    """What a person sees on stderr while a command works."""

    def __init__(self, *, quiet: bool, verbose: bool) -> None:
        self._quiet = quiet
        self._verbose = verbose
        self._printed: set[str] = set()
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a note, unless it was printed before."""
        if not self._quiet and text not in self._printed:
            self._printed.add(text)
            self.warn(f"note: {text}")

    def detail(self, text: str) -> None:
        """Print a line if the user asked for details."""
        if self._verbose and not self._quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        """Print a line even if quiet."""
        self.plain(f"localrank: {text}")

    def plain(self, text: str) -> None:
        """Print one line of another process, without a prefix; on a terminal it breaks at words."""
        line = printable(text)
        with suppress(OSError):  # stderr is closed
            if self.console.is_terminal:
                # The width of a dumb terminal is not known.
                is_known = not self.console.is_dumb_terminal
                self.console.print(Text(broken(line, self.console.width) if is_known else line))
            else:
                print(line, file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, total: int, done: int = 0) -> Iterator["Steps"]:
        """Show what is done: a bar over checkpoints and within a long one, or lines in a log.

        Yields:
            The steps to advance.
        """
        if self._quiet or not self.console.is_terminal:
            yield Steps(None, None if self._quiet else self.warn)
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        # Do not redirect stdout: it may carry data.
        with Progress(
            *columns,
            console=self.console,
            transient=True,
            redirect_stdout=False,
            speed_estimate_period=math.inf,  # rich forgets what finished over 30 seconds ago
        ) as bar:
            bar.add_task("checkpoints", total=total, completed=done)
            yield Steps(bar)


class Steps:
    """Advance the progress bar, or print lines where there is none."""

    def __init__(self, bar: Progress | None, log: Callable[[str], None] | None = None) -> None:
        self._bar, self._log = bar, log
        self._inner: TaskID | None = None  # of the bar within a checkpoint
        self._checkpoint = ""
        self._began = self._shown = 0.0

    def done(self, text: str) -> None:
        """Count one checkpoint and show `text` beside the bar."""
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, advance=1, description=self._fitted(text))
            if self._inner is not None:
                self._bar.remove_task(self._inner)
                self._inner = None
        self._checkpoint = ""

    def within(self, checkpoint: str, share: float, place: str) -> None:
        """Show which share (0 to 1) of a slow checkpoint is done, and what is running."""
        now = time.monotonic()
        if checkpoint != self._checkpoint:
            self._checkpoint, self._began = checkpoint, now
            self._shown = now + FIRST_LINE - LINE_EVERY
        if self._bar is not None:
            self._show(now, share, place)
        elif self._log is not None and now - self._shown >= LINE_EVERY:
            self._shown = now
            left = (now - self._began) * (1 - share) / share if share else 0.0
            end = f", about {duration(left)} left of this checkpoint" if share else ""
            self._log(f"{PROGRESS}{checkpoint}: {100 * share:.0f} % done, {place}{end}")

    def _show(self, now: float, share: float, place: str) -> None:
        assert self._bar is not None
        if now - self._began < _LONG or now - self._shown < _REDRAW:
            return
        self._shown = now
        if self._inner is None:
            self._inner = self._bar.add_task("", total=100)
        text = self._fitted(f"  {self._checkpoint}, {place}")
        self._bar.update(self._inner, completed=int(100 * share), description=text)

    def _fitted(self, text: str) -> str:
        """Cut words that would leave no room for bar and numbers, which rich would cut instead."""
        assert self._bar is not None
        words = Text(printable(text))
        room = max(self._bar.console.width - _NUMBERS, _FEWEST_WORDS)
        words.truncate(room, overflow="ellipsis")
        return words.plain


@contextmanager
def stdout_for_data(screen: Screen) -> Iterator[TextIO]:
    """Keep stdout for the table: whatever a user's model prints goes to stderr.

    Yields:
        The stream for the table, UTF-8 and without newline translation if that can be set.
    """
    data = sys.stdout
    saved: int | None = None
    with suppress(OSError, ValueError, AttributeError):  # no real file behind it, as in tests
        descriptor = data.fileno()
        if descriptor == 1:
            data.flush()
            saved = os.dup(1)
            # Also redirects what does not print through Python: C libraries, child processes.
            os.dup2(2, 1)
            data = os.fdopen(
                os.dup(saved), "w", encoding="utf-8", errors="backslashreplace", newline=""
            )
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.showwarning = _show_through(screen)
        try:
            yield data
        finally:
            if saved is not None:
                # Every row was flushed, and every failure reported, when it was written.
                with suppress(OSError):
                    data.close()
                os.dup2(saved, 1)
                os.close(saved)


def _show_through(screen: Screen) -> Callable[..., None]:
    def show(message: Warning | str, category: type[Warning], *place: object) -> None:
        """Print a warning as a note, in place of `warnings.showwarning`."""
        del place
        screen.note(f"{category.__name__}: {message}")

    return show
