"""The manifest beside a table: what decided the numbers, and what they cost."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from localrank_cli.errors import DataError, one_line
from localrank_cli.results.columns import optional_first
from localrank_cli.results.journal import Entry
from localrank_cli.results.write import manifest_path
from localrank_cli.validation import loads

FORMAT = 1
_KEY = "localrank_manifest"
# Raised when the same command would give other numbers.
DEFINITIONS = 1


def make_manifest(
    command: Sequence[str],
    series: Sequence[Mapping[str, Any]],
    checkpoints: Sequence[Mapping[str, Any]],
    about: Mapping[str, Any],
    *,
    is_complete: bool,
) -> dict[str, Any]:
    """Describe a table.

    Args:
        command: The command line, or what stands for it.
        series: The settings of each series in the table.
        checkpoints: The facts of each checkpoint in the table.
        about: What else there is to say.
        is_complete: Whether everything that was asked for is there.

    Returns:
        Anything that JSON can hold.
    """
    from localrank_cli.machine import versions  # noqa: PLC0415  # torch is slow

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

    Args:
        table: The table.

    Returns:
        The manifest; None where there is none, or where another program wrote a file of its name.

    Raises:
        DataError: If it is a manifest, and holds what no manifest holds.
    """
    path = manifest_path(table)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    if f'"{_KEY}"' not in text:
        return None
    from localrank_cli.results.schema import Manifest, check  # noqa: PLC0415  # pydantic is slow

    try:
        found = loads(text, non_finite=True)
        if isinstance(found, dict) and _KEY not in found:
            return None
        check(Manifest, found)
    except ValueError as error:
        raise DataError(
            f"{path}: is no sound manifest: {one_line(error)}.",
            "Remove it, or analyse again with --overwrite; the table can be shown without it.",
        ) from error
    assert isinstance(found, dict)
    return found


def model_of(manifest: dict[str, Any] | None) -> str:
    """Return what the network is, in a few words.

    Args:
        manifest: Of `read_manifest`.

    Returns:
        The description that all series share; empty where they differ or nothing is known.
    """
    series = (manifest or {}).get("series")
    if not isinstance(series, list):
        return ""
    found = {str(one.get("model") or "") for one in series if isinstance(one, dict)}
    return found.pop() if len(found) == 1 else ""


def extra_columns(series: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the optional columns of a table.

    Args:
        series: The settings of all series in it.

    Returns:
        Names in order: what was asked for, then constants.
    """
    return optional_first(name for one in series for name in one["optional_columns"])


def checkpoint_facts(entry: Entry) -> dict[str, Any]:
    """Return what the manifest says of a checkpoint.

    Args:
        entry: Of the journal.

    Returns:
        Run, checkpoint, step, status, and what was noted of it.
    """
    head = entry.head
    named: dict[str, Any] = {key: head[key] for key in ("run", "checkpoint", "step", "status")}
    if head["points"]:
        named["points"] = head["points"]
    return named | dict(head["facts"])
