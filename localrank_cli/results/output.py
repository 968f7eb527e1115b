"""The only writer of tables, together with their lock, journal and manifest."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from localrank_cli.errors import OutputError
from localrank_cli.results.journal import Entry, Journal, journal_path, may_be_journal
from localrank_cli.results.lock import OutputLock
from localrank_cli.results.manifest import (
    checkpoint_facts,
    extra_columns,
    make_manifest,
    may_be_manifest,
)
from localrank_cli.results.pooled import remove_sums
from localrank_cli.results.record import KIND, SETTINGS, CheckpointRecord
from localrank_cli.results.write import (
    cannot_write,
    check_suffix,
    manifest_path,
    real_target,
    refuse_existing,
    remove_temporary,
    temporary_path,
    write_json,
    write_table,
)

# The table is rewritten during a run, after this many seconds and this many times the seconds that
# the last time took, so that it costs less than a twentieth of the run.
_LEAST_SECONDS = 30.0
_WAIT_PER_WRITE = 20


class Output:
    """A table under its lock; each added checkpoint is on the disk at once.

    A new journal is written beside the earlier one, which `replace_earlier` discards together with
    its table; until then no existing file is changed.

    Args:
        target: The table.
        command: The command line, for the manifest.
        overwrite: Whether an earlier table may be discarded.
        resume: Whether to add to an earlier journal, unless `overwrite`.

    Raises:
        OutputError: If another process is writing it, it cannot be written, or there is an earlier
            one that can neither be added to nor discarded.
    """

    def __init__(
        self, target: Path, command: Sequence[str], *, overwrite: bool, resume: bool = False
    ) -> None:
        check_suffix(target)
        self.name = target  # as the user gave it
        target = real_target(target)  # a model's code may change the working directory
        self.target = target
        self._manifest = real_target(manifest_path(target))
        self._journal = real_target(journal_path(target))
        self._command = list(command)
        self._started = time.monotonic()
        self._guard = threading.RLock()  # a watcher may write while the main thread is stuck
        self._due = time.monotonic() + _LEAST_SECONDS
        path = self._journal
        self._is_fresh = overwrite or not resume
        self._is_written = False
        self._is_partial = False  # a checkpoint may lack points
        with ExitStack() as stack:
            stack.enter_context(OutputLock(target))
            check_links(target)
            remove_temporary(target, self._manifest, path)
            if not overwrite:
                _check_free(target, resume=resume)
            path = temporary_path(path) if self._is_fresh else path
            self.journal = stack.enter_context(Journal(path))
            self._stack = stack.pop_all()

    def replace_earlier(self) -> None:
        """Discard an earlier table, unless it is resumed."""
        if self._is_fresh:
            self.journal.sync()
            self.journal.move(self._journal)
            for path in (self.target, self._manifest):
                path.unlink(missing_ok=True)
            remove_sums(self.target)
            self._is_fresh = False

    def add(self, record: CheckpointRecord, *, sync: bool = True) -> None:
        """Append a checkpoint, on the disk on return if `sync`.

        The table is then written from time to time, too.
        """
        with self._guard:
            self.journal.append(*record.to_json(), sync=sync)
            if sync and time.monotonic() > self._due:
                self._write(self._about(), is_complete=False)

    def add_settings(self, settings: Mapping[str, Any]) -> None:
        """Append the settings of a series; `finish` brings them to the disk."""
        self.journal.append({"kind": SETTINGS, "run": settings["run"]}, dict(settings), sync=False)

    def records(self) -> Iterator[CheckpointRecord]:
        """Yield all checkpoints, one after another, by run and step."""
        settings = [self.journal.body(entry) for entry in self.journal.entries(SETTINGS)]
        points = {one["run"]: len(one["point_indices"]) for one in settings}
        for entry in self._sorted():
            record = CheckpointRecord.from_json(entry.head, self.journal.body(entry))
            self._check_points(record, points[record.run])
            yield record

    def _check_points(self, record: CheckpointRecord, n_points: int) -> None:
        """Check that a checkpoint has values at all points of its series, or of its part."""
        counts = {len(layer.points.finite) for layer in record.layers}
        low, high = record.points or (0, n_points)
        if not (record.is_failed or self._is_partial) and (
            counts != {high - low} or high > n_points
        ):
            self.journal.is_sound = False
            raise OutputError(
                f"{self.target}: {record.checkpoint} of {record.run!r} has values at {max(counts)}"
                f" points, but the series has {n_points}.",
                "Merge all parts of it, or analyze the series again with --overwrite.",
            )

    def _sorted(self) -> list[Entry]:
        return sorted(self.journal.entries(KIND), key=_order)

    @property
    def is_finite(self) -> bool:
        """Whether no checkpoint failed or gave a value that is not finite."""
        return all(entry.head["finite"] for entry in self.journal.entries(KIND))

    @property
    def n_kept(self) -> int:
        """The number of checkpoints in the journal."""
        return len(self.journal.entries(KIND))

    def finish(self, about: Mapping[str, Any], *, is_complete: bool = True) -> None:
        """Write the table and the manifest, to which `about` adds, in place of earlier ones.

        A failed checkpoint makes them incomplete in any case.
        """
        self.replace_earlier()
        self._is_partial = not is_complete
        self._write(about, is_complete=is_complete and not self.has_failed)

    @property
    def has_failed(self) -> bool:
        """Whether any checkpoint in the journal has no numbers."""
        return any(entry.head["status"] != "ok" for entry in self.journal.entries(KIND))

    def _about(self) -> Mapping[str, Any]:
        """Return further entries of a manifest that is written during a run."""
        return {}

    def _write(self, about: Mapping[str, Any], *, is_complete: bool) -> None:
        started = time.monotonic()
        settings = [self.journal.body(entry) for entry in self.journal.entries(SETTINGS)]
        settings.sort(key=lambda series: str(series["run"]))
        rows = (row for record in self.records() for row in record.rows)
        write_table(self.target, rows, extra_columns(settings))
        checkpoints = [checkpoint_facts(entry) for entry in self._sorted()]
        manifest = make_manifest(
            self._command, settings, checkpoints, about, is_complete=is_complete
        )
        write_json(self._manifest, manifest)
        self._is_written = True
        cost = time.monotonic() - started
        self._due = time.monotonic() + max(_LEAST_SECONDS, _WAIT_PER_WRITE * cost)

    @property
    def seconds(self) -> float:
        """The time since the output was opened."""
        return time.monotonic() - self._started

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._is_fresh or not (self.n_kept or self._is_written):
                self.journal.discard()
        finally:
            self._stack.close()


def check_links(target: Path) -> None:
    """Check that what links in place of a table's journal and manifest lead to may be replaced.

    The user names the table only: a link beside it, which came with the folder, may lead anywhere.

    Raises:
        OutputError: If it is the file of another program.
    """
    for path, is_ours in (
        (journal_path(target), may_be_journal),
        (manifest_path(target), may_be_manifest),
    ):
        if not path.is_symlink():
            continue
        real = real_target(path)
        try:
            replaceable = not real.exists() or real.stat().st_size == 0 or is_ours(real)
        except OSError as error:
            raise cannot_write(real, error) from error
        if not replaceable:
            raise OutputError(
                f"{path}: is a link to {real}, which localrank did not write and would replace.",
                "Remove the link, or choose another name with -o.",
            )


def _check_free(target: Path, *, resume: bool) -> None:
    journal = journal_path(target)
    if resume:
        if not journal.exists():
            refuse_existing(target)
        return
    for path in (target, manifest_path(target), journal):
        if path.exists() or path.is_symlink():
            raise OutputError(
                f"{path}: already exists.", "Give another name with -o, or pass --overwrite."
            )


def _order(entry: Entry) -> tuple[str, float, str, list[int]]:
    head, step = entry.head, entry.head["step"]
    points = head["points"] or []
    return head["run"], float("inf") if step is None else step, head["checkpoint"], points
