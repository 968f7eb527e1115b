"""The table and journal of a monitor, which resume with the training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localrank_cli.errors import DataError, LocalrankError, Note
from localrank_cli.options.folder import FolderSettings
from localrank_cli.options.resolve import resolve, with_folder
from localrank_cli.options.table import AnalyzeOptions
from localrank_cli.results.columns import Row, header
from localrank_cli.results.journal import Entry
from localrank_cli.results.manifest import extra_columns, read_manifest
from localrank_cli.results.output import Output
from localrank_cli.results.record import KIND, SETTINGS, CheckpointRecord
from localrank_cli.run.compute import hash_of
from localrank_cli.run.headers import failed_record, load_state
from localrank_cli.run.output import about_run
from localrank_cli.run.plan import Plan, chosen_settings
from localrank_cli.run.resume import check_settings, compare_settings, record_settings

_COMMAND = ("localrank_cli.Monitor",)


class MonitorTable(Output):
    """The table of one training, to which steps are added as they are measured.

    Args:
        target: The table.
        run: The name of the training.
        options: What is measured, compared with an earlier journal now as far as it can be.
        overwrite: Whether to discard an earlier table.

    Raises:
        OutputError: If it cannot be written.
        SettingsError: If an earlier journal holds other settings.
    """

    def __init__(self, target: Path, run: str, options: AnalyzeOptions, *, overwrite: bool) -> None:
        super().__init__(target, _COMMAND, overwrite=overwrite, resume=True)
        self._run = run
        self._pending: list[CheckpointRecord] = []  # failed before the settings were known
        self._plan: Plan | None = None
        self.facts: dict[str, Any] = {}  # for the manifest
        self.skipped = set[int]() if overwrite else _skipped(self.target)  # steps, by max_share
        try:
            self._check(options)
        except BaseException:  # raised again
            self.__exit__()
            raise
        self.replace_earlier()
        self._due = 0.0  # the table is there from the first step on

    def _check(self, options: AnalyzeOptions) -> None:
        self.journal.check_settings()
        now = chosen_settings(resolve(with_folder(options, FolderSettings(), Path())))
        for entry in self.journal.entries(SETTINGS):
            if entry.head["run"] == self._run:
                saved = self.journal.body(entry)
                compare_settings(self._run, saved, {**saved, **now}, self.journal)

    def _entry(self, checkpoint: str) -> Entry | None:
        """Return what the journal holds of a step that was measured."""
        for entry in self.journal.entries(KIND):
            head = entry.head
            if (head["run"], head["checkpoint"], head["status"]) == (self._run, checkpoint, "ok"):
                return entry
        return None

    def is_done(self, plan: Plan) -> bool:
        """Return whether the step of a plan was measured with the same weights."""
        (checkpoint,) = plan.series[0].checkpoints
        earlier = self._entry(checkpoint.file.name)
        if earlier is None:
            return False
        digest: str = earlier.head["facts"]["sha256_of_tensors"]
        return digest == hash_of(load_state(checkpoint, trust_pickle=False))

    def accept(self, plan: Plan) -> None:
        """Check that a plan has the settings of the steps that are there.

        Raises:
            SettingsError: If it has others.
        """
        check_settings(plan, self.journal.entries(KIND), self.journal)
        self._plan = plan

    def add_step(self, record: CheckpointRecord, note: Note) -> None:
        """Add a step that was measured, in place of an earlier one of the same step."""
        assert self._plan is not None
        record_settings(self._plan, self.journal, None)
        if self._entry(record.checkpoint) is not None:
            note(f"{self.name}: step {record.step} had different weights before; it is replaced")
        self.add(record)
        self.skipped -= {record.step or 0}
        self._add_pending()

    def add_failed(self, step: int, error: LocalrankError) -> None:
        """Add a row that says why a step has no numbers."""
        self._pending.append(failed_record(self._run, f"step_{step}", step, error))
        self._add_pending()

    def _add_pending(self) -> None:
        there = {entry.head["run"] for entry in self.journal.entries(SETTINGS)}
        if self._run in there:
            pending, self._pending = self._pending, []
            for record in pending:
                self.add(record)

    def all_rows(self) -> tuple[list[Row], tuple[str, ...]]:
        """Return all rows so far, and their columns."""
        settings = [self.journal.body(entry) for entry in self.journal.entries(SETTINGS)]
        records = [*self.records(), *self._pending]
        rows: list[Row] = [row for record in records for row in record.rows]
        return rows, header(extra_columns(settings))

    def save(self) -> None:
        """Write table and manifest."""
        if self.n_kept:
            self._write(self._about(), is_complete=not self.has_failed)

    def _about(self) -> Mapping[str, Any]:
        about = about_run(self._plan, self.seconds) if self._plan is not None else {}
        return {**about, "monitor": self.facts}


def _skipped(target: Path) -> set[int]:
    """Return the steps that the manifest of an earlier part of the training lists as skipped."""
    try:
        facts = (read_manifest(target) or {}).get("monitor")
    except DataError:  # it is written anew
        return set()
    found = facts.get("skipped_steps") if isinstance(facts, dict) else None
    return {step for step in found if type(step) is int} if isinstance(found, list) else set()
