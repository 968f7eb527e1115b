"""Writes a table in one go, with its journal and manifest, under the lock of its output."""

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from localrank_cli.errors import OutputError
from localrank_cli.machine import versions
from localrank_cli.results.journal import Journal, journal_path
from localrank_cli.results.lock import OutputLock
from localrank_cli.results.manifest import FORMAT, checkpoint_facts, extra_columns
from localrank_cli.results.record import KIND, SETTINGS, CheckpointRecord
from localrank_cli.results.write import manifest_path, remove_temporary, write_json, write_table


def write_finished(
    target: Path,
    fill: Callable[[Journal], None],
    command: Sequence[str],
    about: Mapping[str, Any],
    *,
    overwrite: bool,
) -> None:
    """Write a table, its journal and its manifest, in place of what is there or not at all.

    What is there is discarded only when all that replaces it is in a journal on the disk, so that
    the three always belong together.

    Args:
        target: The table.
        fill: Appends the settings of each series, and each checkpoint in the order of the table.
        command: The command line, for the manifest.
        about: What else the manifest says; `complete` may only be lowered.
        overwrite: Whether to discard what is there.

    Raises:
        OutputError: If another process is writing it, it cannot be written, or is there already.
    """
    with OutputLock(target):
        if not overwrite:
            check_absent(target)
        remove_temporary(target)
        kept = journal_path(target)
        fresh = kept.with_name(f".{kept.name}.{os.getpid()}.tmp")
        try:
            with Journal(fresh) as journal:
                fill(journal)
                journal.sync()
                journal.move(kept)
                for path in (target, manifest_path(target)):
                    path.unlink(missing_ok=True)
                _write(target, journal, command, about)
        finally:
            fresh.unlink(missing_ok=True)


def check_absent(target: Path) -> None:
    """Check that no table is there, nor anything that belongs to one.

    Args:
        target: The table.

    Raises:
        OutputError: If there is.
    """
    for path in (target, manifest_path(target), journal_path(target)):
        if path.exists() or path.is_symlink():
            raise OutputError(
                f"{path}: exists already.", "Give another name with -o, or pass --overwrite."
            )


def _write(
    target: Path, journal: Journal, command: Sequence[str], about: Mapping[str, Any]
) -> None:
    entries = journal.entries(KIND)  # in the order in which they were appended
    settings = [journal.body(entry) for entry in journal.entries(SETTINGS)]
    settings.sort(key=lambda series: str(series["run"]))
    rows = (
        row
        for entry in entries
        for row in CheckpointRecord.from_json(entry.head, journal.body(entry)).rows
    )
    write_table(target, rows, extra_columns(settings))
    is_complete = about.get("complete", True) and all(e.head["status"] == "ok" for e in entries)
    manifest = {
        "localrank_manifest": FORMAT,
        "complete": is_complete,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "versions": versions(),
        **{name: value for name, value in about.items() if name != "complete"},
        "series": settings,
        "checkpoints": [checkpoint_facts(entry) for entry in entries],
    }
    write_json(manifest_path(target), manifest)
