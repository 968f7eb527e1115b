"""What is said of files that cannot be read."""

from pathlib import Path

from localrank_cli.errors import UnreadableError, one_line

DAMAGED = "Is the file complete? Copy or save it again, or leave it out with --pattern."


def cannot_read(path: Path, error: OSError) -> UnreadableError:
    """Says why the system did not give a file.

    Args:
        path: The file.
        error: What the system said.

    Returns:
        The error to raise.
    """
    reason = error.strerror or one_line(error)
    return UnreadableError(
        f"{path}: cannot be read ({reason}).", "Check that it exists and that you may read it."
    )


def shown(name: str) -> str:
    """A name that a file holds, as it may stand in a sentence.

    Args:
        name: Any text: who made the file chose it.

    Returns:
        Its beginning, without line breaks and what a terminal would obey.
    """
    return "".join(letter if letter.isprintable() else "?" for letter in name[:160])
