"""The lines of a journal: a checksum, a head that tells which record it is, and the body.

Heads are read without the bodies, of files that others may be writing too.
"""

import json
import sys
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localrank_cli.errors import OutputError

_START = len(b'{"crc32":"00000000",')
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Entry:
    """Where a record stands, and its head."""

    head: dict[str, Any]
    offset: int  # of the line, in bytes
    length: int


def read_heads(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """Reads the heads of whole lines, of a journal that may be growing.

    Args:
        path: The file.
        offset: Where to begin, in bytes.

    Returns:
        The heads, and where to begin next time.
    """
    heads = []
    with suppress(OSError), path.open("rb") as file:
        file.seek(offset)
        for line in file:
            head = head_of(line)
            if head is None:  # torn, or not yet whole
                break
            heads.append(head)
            offset += len(line)
    return heads, offset


def read_line(path: Path, entry: Entry) -> bytes:
    """Reads a record as it stands in a journal that is not open.

    Args:
        path: The journal.
        entry: From its `entries`.

    Returns:
        The line.

    Raises:
        OutputError: If it is not what it was, or gone.
    """
    try:
        with path.open("rb") as file:
            file.seek(entry.offset)
            line = file.read(entry.length)
    except OSError as error:
        raise changed(path) from error
    if head_of(line) != entry.head:
        raise changed(path)
    return line


def line_of(head: dict[str, Any], body: Any) -> bytes:
    """Writes a line.

    Args:
        head: What tells which record it is.
        body: Anything that JSON can hold.

    Returns:
        The line, with its end.
    """
    parts = [json.dumps(part, ensure_ascii=True, separators=(",", ":")) for part in (head, body)]
    rest = f'"head":{parts[0]},"body":{parts[1]}}}\n'.encode()
    return b'{"crc32":"%08x",' % zlib.crc32(rest) + rest


def head_of(line: bytes) -> dict[str, Any] | None:
    """Reads the head of a line, without the body.

    Args:
        line: With its end.

    Returns:
        The head; None of a line that is torn or damaged.
    """
    rest = line[_START:]
    if not line.endswith(b"\n") or line[:_START] != b'{"crc32":"%08x",' % zlib.crc32(rest):
        return None
    head, _ = _DECODER.raw_decode(rest.decode(), len('"head":'))
    return _shared(head) if isinstance(head, dict) else None


def _shared(value: dict[str, Any]) -> dict[str, Any]:
    """With one string for each name: thousands of heads are held at once."""
    return {sys.intern(k): _shared(v) if isinstance(v, dict) else v for k, v in value.items()}


def changed(path: Path) -> OutputError:
    """Says that a line is not what it was.

    Args:
        path: The journal.

    Returns:
        The error to raise.
    """
    return OutputError(f"{path}: changed while it was in use.", "Run the same command again.")
