"""One output file and what stands beside it: lock, journal, table, manifest."""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from localrank_cli.errors import Note, OutputError, SettingsError
from localrank_cli.machine import peak_memory, versions
from localrank_cli.results.journal import Entry, Journal, journal_path
from localrank_cli.results.lock import OutputLock
from localrank_cli.results.manifest import FORMAT, checkpoint_facts, extra_columns
from localrank_cli.results.record import KIND, SETTINGS, CheckpointRecord
from localrank_cli.results.spectra import spectra_path, write_spectra
from localrank_cli.results.write import (
    check_suffix,
    make_folder,
    manifest_path,
    refuse_existing,
    remove_temporary,
    write_json,
    write_table,
)
from localrank_cli.run.plan import Plan, series_settings
from localrank_cli.run.resume import GoingOn, check_shard, go_on, record_settings
from localrank_cli.run.units import Division
from localrank_cli.spectrum.layer import LayerSpectrum


def make_manifest(
    plan: Plan,
    command: Sequence[str],
    series: Iterable[Mapping[str, Any]],
    checkpoints: Iterable[Mapping[str, Any]],
    *,
    seconds: float,
    complete: bool,
) -> dict[str, object]:
    """Describes a run, finished or not.

    Args:
        plan: What was run last.
        command: The command line, or what stands for it.
        series: The settings of each series in the table.
        checkpoints: The facts of each checkpoint in the table.
        seconds: From start to end.
        complete: Whether everything that was asked for is there.

    Returns:
        Anything that JSON can hold.
    """
    device = plan.device
    return {
        "localrank_manifest": FORMAT,
        "complete": complete,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "versions": versions(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "memory_budget_bytes": plan.memory,
        "peak_memory_bytes": peak_memory(),
        "seconds": round(seconds, 3),
        "series": list(series),
        "checkpoints": list(checkpoints),
    }


class SpectraFolder:
    """A folder with a file for each checkpoint: each is whole or not there.

    Args:
        folder: Absolute; made if it is not there.

    Raises:
        OutputError: If it cannot be made, or is a file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._settings: dict[str, dict[str, Any]] = {}
        if folder.exists() and not folder.is_dir():
            raise OutputError(
                f"{folder}: is a file.",
                "--spectra names a folder, with a file for each checkpoint.",
            )
        make_folder(folder)

    def begin(self, plan: Plan) -> None:
        """Takes the settings of each series, and makes its folder.

        Args:
            plan: What is run.

        Raises:
            SettingsError: If a shard has only a part of the points of a checkpoint.
        """
        for series in plan.series:
            self._settings[series.run] = series_settings(series)
            make_folder(spectra_path(self._folder, series.run, 0).parent)
            if any(checkpoint.points is not None for checkpoint in series.checkpoints):
                raise SettingsError(
                    "--spectra: there are more shards than checkpoints, so that each has a part of"
                    " the points only.",
                    "Give at most as many shards as there are checkpoints.",
                )

    def has(self, run: str, step: int) -> bool:
        """Tells whether a checkpoint's singular values are there.

        Args:
            run: Name of the series.
            step: Of the checkpoint.

        Returns:
            True when they are.
        """
        return spectra_path(self._folder, run, step).is_file()

    def keep(self, record: CheckpointRecord, spectra: Sequence[LayerSpectrum]) -> None:
        """Writes a checkpoint's singular values.

        Args:
            record: The checkpoint.
            spectra: Of its layers.
        """
        assert record.step is not None
        path = spectra_path(self._folder, record.run, record.step)
        write_spectra(path, record, spectra, self._settings[record.run])


# The table is written again while a run goes on, but never so often that it costs a twentieth.
_LEAST_SECONDS = 30.0
_SHARE = 20


class Output:
    """Takes finished checkpoints, and keeps them whatever happens.

    Args:
        target: The table.
        overwrite: Whether to discard what is there.
        command: The command line, for the manifest.

    Raises:
        OutputError: If another process writes it, it cannot be written, or a table stands there
            that has no journal.
    """

    def __init__(self, target: Path, *, overwrite: bool, command: Sequence[str]) -> None:
        check_suffix(target)
        self.name = str(target)  # as the user gave it
        target = target.absolute()  # a model's code may change the working directory
        self.target = target
        self._command = list(command)
        self._overwrite = overwrite
        self._started = time.monotonic()
        self._plan: Plan | None = None
        self._division: Division | None = None
        self._guard = threading.RLock()  # a watcher may write while the main thread is stuck
        self._due = time.monotonic() + _LEAST_SECONDS
        with ExitStack() as stack:
            stack.enter_context(OutputLock(target))
            remove_temporary(target)
            path = journal_path(target)
            if not path.exists() and not overwrite:
                refuse_existing(target)
            self._new_path = path.with_name(path.name + ".new") if overwrite else path
            if overwrite:
                self._new_path.unlink(missing_ok=True)
            self._journal = stack.enter_context(Journal(self._new_path))
            self._stack = stack.pop_all()

    def begin(
        self,
        plan: Plan,
        note: Note,
        spectra: SpectraFolder | None = None,
        division: Division | None = None,
    ) -> GoingOn:
        """Compares the plan with what is there; with --overwrite, discards that now.

        Args:
            plan: All that was asked for.
            note: Takes each note for the user.
            spectra: Where singular values are kept too; a checkpoint without them is not finished.

            division: Of which the plan is a part.

        Returns:
            What is left to do.
        """
        check_shard(division, self._journal)
        self._division = division
        going_on = go_on(plan, self._journal, note, spectra.has if spectra is not None else None)
        if self._overwrite:
            self._journal.move(journal_path(self.target))
            for path in (self.target, manifest_path(self.target)):
                path.unlink(missing_ok=True)
        self._plan = plan
        return going_on

    def add(self, record: CheckpointRecord) -> None:
        """Keeps a finished checkpoint: when this returns, it is on the disk.

        Args:
            record: The checkpoint.
        """
        assert self._plan is not None
        with self._guard:
            record_settings(self._plan, self._journal, self._division)
            self._journal.append(*record.to_json())
            if time.monotonic() > self._due:
                self._write(complete=False)

    def records(self) -> Iterator[CheckpointRecord]:
        """All checkpoints that are kept, one after another.

        Yields:
            By run and step.
        """
        for entry in self._sorted():
            yield CheckpointRecord.from_json(entry.head, self._journal.body(entry))

    def _sorted(self) -> list[Entry]:
        return sorted(self._journal.entries(KIND), key=_order)

    @property
    def is_complete(self) -> bool:
        """Whether every checkpoint of the plan has numbers."""
        assert self._plan is not None
        done = {
            (entry.head["run"], entry.head["checkpoint"], tuple(entry.head["points"] or ()))
            for entry in self._journal.entries(KIND)
            if entry.head["status"] == "ok"
        }
        return all(
            (series.run, checkpoint.file.name, checkpoint.points or ()) in done
            for series in self._plan.series
            for checkpoint in series.checkpoints
        ) and not any(series.failures for series in self._plan.series)

    @property
    def is_finite(self) -> bool:
        """Whether no checkpoint failed or gave a value that is not finite."""
        return all(entry.head["finite"] for entry in self._journal.entries(KIND))

    @property
    def n_kept(self) -> int:
        """How many checkpoints are kept."""
        return len(self._journal.entries(KIND))

    def commit(self, timeout: float = -1) -> bool:
        """Writes table and manifest from the journal, where there is anything to write.

        Args:
            timeout: Seconds to wait for whoever is writing; forever if negative.

        Returns:
            Whether they are written.
        """
        if self._plan is None or not self._journal.entries(KIND):
            return False
        if not self._guard.acquire(timeout=timeout):
            return False
        try:
            self._write(complete=self.is_complete)
        finally:
            self._guard.release()
        return True

    def _write(self, *, complete: bool) -> None:
        assert self._plan is not None
        started = time.monotonic()
        settings = [self._journal.body(entry) for entry in self._journal.entries(SETTINGS)]
        settings.sort(key=lambda series: str(series["run"]))
        rows = (row for record in self.records() for row in record.rows)
        write_table(self.target, rows, extra_columns(settings))
        manifest = make_manifest(
            self._plan,
            self._command,
            settings,
            [checkpoint_facts(entry) for entry in self._sorted()],
            seconds=started - self._started,
            complete=complete,
        )
        if self._division is not None:
            manifest["shard"] = self._division.to_json()
        write_json(manifest_path(self.target), manifest)
        cost = time.monotonic() - started
        self._due = time.monotonic() + max(_LEAST_SECONDS, _SHARE * cost)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if not self._journal.entries(KIND):
                self._journal.discard()
        finally:
            self._stack.close()


def _order(entry: Entry) -> tuple[str, float, str, list[int]]:
    head, step = entry.head, entry.head["step"]
    points = head["points"] or []
    return head["run"], float("inf") if step is None else step, head["checkpoint"], points
