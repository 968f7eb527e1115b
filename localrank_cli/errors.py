"""The errors a user can mend. Every other exception that escapes is a bug of localrank."""


class LocalrankError(Exception):
    """Something in the user's files or settings is at fault.

    Args:
        what: One sentence: what was wrong and where, expected and got.
        advice: One sentence: what to do next. May be empty.
    """

    exit_code = 1
    status = "failed"

    def __init__(self, what: str, advice: str = "") -> None:
        end = "" if what.endswith((".", "?", "!")) else "."  # what others say may lack it
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


class MismatchError(LocalrankError):
    """A checkpoint does not fit the model."""

    status = "mismatch"


class DataError(LocalrankError):
    """The data do not serve: wrong shape, type, number or values."""


class ModelError(LocalrankError):
    """The model cannot be built, or cannot be run on the points."""


class LayerError(LocalrankError):
    """A layer was asked for that cannot be analysed."""


class OutputError(LocalrankError):
    """The output cannot be written."""
