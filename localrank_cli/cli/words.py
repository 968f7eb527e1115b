"""Lines that break at words on a terminal."""

import os
from typing import TextIO


def broken(line: str, width: int) -> str:
    """Break a line at words. Longer words stay whole, so that a path can be copied."""
    first, *words = line.split(" ")
    lines = [first]
    for word in words:
        if _cells(lines[-1]) + 1 + _cells(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)


def width_of(stream: TextIO) -> int | None:
    """Return the columns of the terminal that a stream writes to; None if there is none, or dumb.

    Raises:
        OSError: If the stream is closed.
    """
    if os.environ.get("TERM", "") in {"dumb", "unknown"} or not stream.isatty():
        return None
    set_by_user = os.environ.get("COLUMNS", "")
    if set_by_user.isdecimal():
        return int(set_by_user) or None
    return os.get_terminal_size(stream.fileno()).columns or None


def _cells(text: str) -> int:
    """Return the columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)
