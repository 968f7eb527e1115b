"""Errors that the user can fix, and the wording that messages share.

Every exception that is not a `LocalrankError` is a bug of localrank.
"""

import errno
import os
from collections.abc import Callable, Iterable

Note = Callable[[str], None]  # receives one note for the user

# Exit status of a run that finished although some checkpoints failed or gave non-finite values.
INCOMPLETE = 3


def status_of_signal(number: int) -> int:
    """Return the exit status of a program that a signal ended, as shells report it."""
    return 128 + number


# What the libraries say where an allocation failed, when they raise no MemoryError.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "bad_alloc",
    "bad allocation",
    "out of memory",
    "unable to mmap",
    "failed to map segment",
    "can't start new thread",
    "memory allocation",
)
OUT_OF_MEMORY = "not enough memory"
MORE_MEMORY = (
    "Free some memory or raise its limit (ulimit -v, the batch system's), or need less: fewer"
    " --points, a smaller --memory."
)

MORE_FILES = "Raise the limit on open files (ulimit -n 1024), and run the same command."

# Long enough for a sentence of another library, short enough for one line of a log.
_LONGEST_CAUSE = 300


class LocalrankError(Exception):
    """Something in the user's files or settings is at fault.

    Args:
        what: One sentence: what was wrong and where, expected and got.
        advice: One sentence: what to do next. May be empty.
    """

    exit_code = 1
    status = "failed"

    def __init__(self, what: str, advice: str = "") -> None:
        end = (
            "" if what.endswith((".", "?", "!")) else "."
        )  # messages of other libraries may lack it
        super().__init__(f"{what}{end} {advice}".strip())
        self.what = what
        self.advice = advice


class UsageError(LocalrankError):
    """The command line is wrong in itself, seen without opening a file."""

    exit_code = 2


class SettingsError(LocalrankError):
    """A setting is wrong for these files."""


class UnreadableError(LocalrankError):
    """A checkpoint or data file cannot be read."""

    status = "unreadable"


class NoWeightsError(UnreadableError):
    """A file was read in full and holds no weights: it is no checkpoint."""


class MismatchError(LocalrankError):
    """A checkpoint does not fit the model."""

    status = "mismatch"


class DataError(LocalrankError):
    """The data cannot be used: wrong shape, type, number or values."""


class ModelError(LocalrankError):
    """The model cannot be built, or cannot be run on the points."""


class BudgetError(ModelError):
    """Jacobians do not fit in memory.

    What is wrong may have several lines, which are printed as such.
    """

    @property
    def lines(self) -> list[str]:
        """The lines of the message."""
        return [*self.what.split("\n"), *([self.advice] if self.advice else [])]

    def __str__(self) -> str:
        return "\n".join(self.lines)


class LayerError(LocalrankError):
    """A requested layer cannot be analyzed."""


class OutputError(LocalrankError):
    """The output cannot be written."""


def one_line(error: BaseException | str) -> str:
    """Return the message of another library's error, without its type, on one line."""
    return " ".join(str(error).split())[:_LONGEST_CAUSE]


def cause(error: BaseException) -> str:
    """Return the type and the message of another library's error on one line."""
    text = one_line(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of Python or of another library means that memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    text = str(error).lower()
    known = isinstance(error, (OSError, RuntimeError, ImportError)) or "Safetensor" in str(
        type(error)
    )
    return known and any(phrase in text for phrase in _OUT_OF_MEMORY)


def is_out_of_files(error: BaseException) -> bool:
    """Return whether an error means that no more files can be opened, whichever was the next."""
    if isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}:
        return True
    numbers = (f"{os.strerror(number)} ({number})" for number in (errno.EMFILE, errno.ENFILE))
    return isinstance(error, RuntimeError) and any(one in str(error) for one in numbers)


def listed(names: Iterable[object], most: int = 8) -> str:
    """Join names with commas; those after the first `most` are only counted."""
    texts = [str(name) for name in names]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def readable(size: int) -> str:
    """Return a number of bytes for a person."""
    if size < 2**10:
        return f"{size} bytes"
    power, unit = 10, "KiB"
    if size >= 2**20:
        power, unit = (30, "GiB") if size >= 2**30 else (20, "MiB")
    number = size / 2**power
    return f"{number:.3g} {unit}" if number < 999.5 else f"{number:.0f} {unit}"


def duration(seconds: float) -> str:
    """Return a time for a person."""
    if seconds < 90:
        return f"{max(seconds, 0.1):.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = seconds / 60
    hours = minutes / 60
    if minutes < 90:
        return f"{minutes:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.0f} days"


def shortened(value: object) -> str:
    """Return a setting's value for a message, in at most 60 characters."""
    text = "not set" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def printable(text: str) -> str:
    """Return a text on one line, with control characters shown as escapes."""
    line = " ".join(text.split())
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
