"""The manifest beside a table: what decided the numbers, and what they cost."""

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from localrank_cli.errors import DataError, one_line
from localrank_cli.files import read_regular
from localrank_cli.results.columns import optional_first
from localrank_cli.results.journal import Entry
from localrank_cli.results.write import manifest_path
from localrank_cli.validation import loads

FORMAT = 1
_KEY = "localrank_manifest"
_MOST_BYTES = 2**29  # a million checkpoints
# Raised when the same command would give other numbers.
DEFINITIONS = 1


def may_be_manifest(path: Path) -> bool:
    """Return whether a file begins as a manifest does."""
    with path.open("rb") as file:
        return f'"{_KEY}"'.encode() in file.read(64)


def make_manifest(
    command: Sequence[str],
    series: Sequence[Mapping[str, Any]],
    checkpoints: Sequence[Mapping[str, Any]],
    about: Mapping[str, Any],
    *,
    is_complete: bool,
) -> dict[str, Any]:
    """Return the manifest of a table, as JSON can hold it.

    Args:
        command: The command line, or a description of it.
        series: The settings of each series in the table.
        checkpoints: The facts of each checkpoint in the table.
        about: Further entries.
        is_complete: Whether every selected checkpoint is there.
    """
    from localrank_cli.machine import versions

    return {
        _KEY: FORMAT,
        "complete": is_complete,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "versions": versions(),
        **about,
        "series": list(series),
        "checkpoints": list(checkpoints),
    }


def read_manifest(table: Path) -> dict[str, Any] | None:
    """Read the manifest beside a table.

    None where there is none, or where another program wrote a file of its name.

    Raises:
        DataError: If it is a manifest with invalid content.
    """
    path = manifest_path(Path(os.path.realpath(table)))
    if not path.is_file():  # opening a pipe would wait for its other end
        return None
    try:
        text = read_regular(path, _MOST_BYTES).decode("utf-8")
    except (OSError, ValueError):
        return None
    if f'"{_KEY}"' not in text:
        return None
    from localrank_cli.results.schema import Manifest, check

    try:
        found = loads(text, non_finite=True)
        if isinstance(found, dict) and _KEY not in found:
            return None
        check(Manifest, found)
    except ValueError as error:
        raise DataError(
            f"{path}: is not a valid manifest: {one_line(error)}.",
            "Remove it, or analyze again with --overwrite; the table can be shown without it.",
        ) from error
    assert isinstance(found, dict)
    return found


def model_of(manifest: dict[str, Any] | None) -> str:
    """Return the description of the network that all series share; empty if unknown or several."""
    series = (manifest or {}).get("series")
    if not isinstance(series, list):
        return ""
    found = {str(one.get("model") or "") for one in series if isinstance(one, dict)}
    return found.pop() if len(found) == 1 else ""


def extra_columns(series: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the optional columns of a table, in order, from the settings of its series."""
    return optional_first(name for one in series for name in one["optional_columns"])


def checkpoint_facts(entry: Entry) -> dict[str, Any]:
    """Return the entry of a checkpoint in the manifest."""
    head = entry.head
    named: dict[str, Any] = {key: head[key] for key in ("run", "checkpoint", "step", "status")}
    if head["points"]:
        named["points"] = head["points"]
    return named | dict(head["facts"])
