"""Files of localrank with invalid content and valid checksums."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEEP = "[" * 100_000 + "]" * 100_000


class Raw(str):
    """Text that replaces a value verbatim."""

    __slots__ = ()


def dumped(value: Any) -> str:
    """As JSON, with each `Raw` verbatim."""
    raws: list[str] = []

    def marked(part: Any) -> Any:
        if isinstance(part, Raw):
            raws.append(part)
            return f"\x01{len(raws) - 1}\x01"
        if isinstance(part, dict):
            return {key: marked(inner) for key, inner in part.items()}
        return [marked(inner) for inner in part] if isinstance(part, list) else part

    text = json.dumps(marked(value), separators=(",", ":"))
    for number, raw in enumerate(raws):
        text = text.replace(f'"\\u0001{number}\\u0001"', raw)
    return text


def put(holder: Any, path: str, value: Any) -> None:
    """Set, change, or with `...` remove, the value at a path such as `layers.0.points`."""
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parents:
        holder = holder[part]
    if value is ...:
        del holder[last]
    else:
        holder[last] = value(holder[last]) if callable(value) else value


def spoil_line(journal: Path, kind: str, change: Callable[[dict[str, Any]], str | None]) -> None:
    """Change the last line of a kind, and give it the checksum of what it then holds.

    Args:
        journal: The file.
        kind: Of the line.
        change: Changes `head` and `body` in place, or returns the text that follows the checksum.
    """
    lines = journal.read_bytes().splitlines(keepends=True)
    place = max(i for i, line in enumerate(lines) if json.loads(line)["head"]["kind"] == kind)
    line = json.loads(lines[place])
    text = change(line)
    if text is None:
        text = f'"head":{dumped(line["head"])},"body":{dumped(line["body"])}}}'
    rest = text.encode() + b"\n"
    lines[place] = b'{"crc32":"%08x",' % zlib.crc32(rest) + rest
    journal.write_bytes(b"".join(lines))


def spoil_json(path: Path, place: str, value: Any) -> None:
    """Change one value of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    put(content, place, value)
    path.write_text(dumped(content), encoding="utf-8")
