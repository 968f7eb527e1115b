"""The output of an analysis: what is left to do, and the manifest of its plan."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from localrank_cli.errors import DataError, Note, OutputError, SettingsError
from localrank_cli.machine import peak_memory
from localrank_cli.options.decisive import find_difference
from localrank_cli.results.output import Output
from localrank_cli.results.pooled import sums_path, write_sums
from localrank_cli.results.record import KIND, CheckpointRecord
from localrank_cli.results.spectra import (
    check_ours,
    is_spectra,
    opened,
    spectra_path,
    write_spectra,
)
from localrank_cli.results.write import make_folder, remove_temporary, remove_temporary_in
from localrank_cli.run.finished import Finished, finished_runs
from localrank_cli.run.headers import PlannedCheckpoint
from localrank_cli.run.plan import Plan, series_settings
from localrank_cli.run.resume import Resume, check_shard, find_resume, record_settings
from localrank_cli.run.units import Division
from localrank_cli.spectrum.layer import LayerSpectrum


def about_run(plan: Plan, seconds: float) -> dict[str, Any]:
    """Return the manifest's entries on a run that took `seconds`."""
    device = plan.device
    return {
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "memory_budget_bytes": plan.memory,
        "peak_memory_bytes": peak_memory(),
        "seconds": round(seconds, 3),
    }


class RunOutput(Output):
    """The output of an analysis, which resumes an earlier one of the same plan."""

    def __init__(self, target: Path, *, overwrite: bool, command: Sequence[str]) -> None:
        super().__init__(target, command, overwrite=overwrite, resume=True)
        self._plan: Plan | None = None
        self._division: Division | None = None

    def begin(
        self,
        plan: Plan,
        note: Note,
        spectra: "SpectraFolder | None" = None,
        division: Division | None = None,
    ) -> Resume:
        """Compare the plan with earlier results, and return what is left to do.

        With --overwrite, earlier results are discarded now. A checkpoint whose singular values are
        missing from `spectra` is not finished. The plan is a part of `division`, if there is one.
        """
        check_shard(division, self.journal)
        self._division = division

        def is_kept(run: str, checkpoint: PlannedCheckpoint) -> bool:
            """Return whether the files beside the table hold what they should of a checkpoint."""
            path = sums.get((run, checkpoint.file.name, checkpoint.points))
            has_sums = path is None or path.is_file()
            name = checkpoint.file.name
            return has_sums and (
                spectra is None or spectra.has(run, checkpoint, digests.get((run, name)))
            )

        sums = self._sums(plan)
        digests = {
            (entry.head["run"], entry.head["checkpoint"]): entry.head["facts"].get(
                "sha256_of_tensors"
            )
            for entry in self.journal.entries(KIND)
        }
        resume = find_resume(plan, self.journal, note, is_kept)
        self.replace_earlier()
        remove_temporary(*sums.values())
        self._plan = resume.whole
        return resume

    def finished(self) -> dict[str, Finished]:
        """Return what earlier results hold of each run, before there is a plan.

        Raises:
            SettingsError: If they cannot be read.
        """
        return finished_runs(self.journal)

    def _sums(self, plan: Plan) -> dict[tuple[str, str, tuple[int, int] | None], Path]:
        """Return the files of sums for --pooled, which parts of checkpoints have."""
        return {
            (series.run, one.file.name, one.points): sums_path(
                self.target, series.run, one.file.name, one.points
            )
            for series in plan.series
            if series.settings.pooled
            for one in series.checkpoints
            if one.points is not None
        }

    def add(self, record: CheckpointRecord, *, sync: bool = True) -> None:
        """Append a checkpoint, and before the first one the settings of its series."""
        assert self._plan is not None
        with self._guard:
            pooled = {one.run for one in self._plan.series if one.settings.pooled}
            if record.points is not None and not record.is_failed and record.run in pooled:
                write_sums(self.target, record)  # before the line that says that they are there
            record_settings(self._plan, self.journal, self._division)
            super().add(record, sync=sync)

    @property
    def is_complete(self) -> bool:
        """Whether every checkpoint of the plan has numbers."""
        assert self._plan is not None
        done = {
            (entry.head["run"], entry.head["checkpoint"], tuple(entry.head["points"] or ()))
            for entry in self.journal.entries(KIND)
            if entry.head["status"] == "ok"
        }
        return all(
            (series.run, checkpoint.file.name, checkpoint.points or ()) in done
            for series in self._plan.series
            for checkpoint in series.checkpoints
        ) and not any(series.failures for series in self._plan.series)

    def commit(self, timeout: float = -1) -> bool:
        """Write table and manifest from the journal, and return whether they are written.

        There may be nothing to write, or another writer for more than `timeout` seconds (negative:
        wait forever).
        """
        if self._plan is None or not self.n_kept or not self.journal.is_sound:
            return False
        if not self._guard.acquire(timeout=timeout):
            return False
        try:
            self._write(self._about(), is_complete=self.is_complete)
        finally:
            self._guard.release()
        return True

    def _about(self) -> Mapping[str, Any]:
        assert self._plan is not None
        about = about_run(self._plan, self.seconds)
        return about if self._division is None else about | {"shard": self._division.to_json()}


class SpectraFolder:
    """A folder with a file of singular values for each checkpoint; files are written atomically.

    Args:
        folder: Absolute; made if it is not there.

    Raises:
        OutputError: If it cannot be made, or is a file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._settings: dict[str, dict[str, Any]] = {}
        if os.path.exists(folder) and not folder.is_dir():  # noqa: PTH110  # Path raises for too long a name
            raise OutputError(
                f"{folder}: is a file.",
                "--spectra names a folder, with a file for each checkpoint.",
            )
        make_folder(folder)

    def check(self, plan: Plan) -> None:
        """Check that the values of a plan's checkpoints replace no file of another kind.

        `has` needs it first.

        Raises:
            OutputError: If one is there.
        """
        for series in plan.series:
            self._settings[series.run] = series_settings(series)
            for checkpoint in series.checkpoints:
                check_ours(spectra_path(self._folder, series.run, checkpoint.step))

    def begin(self, plan: Plan) -> None:
        """Make the folder of each series, and remove what killed processes left in it.

        Raises:
            SettingsError: If a shard has only a part of the points of a checkpoint.
        """
        for series in plan.series:
            if series.settings.bounds is not None:
                raise SettingsError(
                    "--spectra with --method interval: products do not give the singular values"
                    " that rethreshold would recount.",
                    "Leave --spectra out, and give all tolerances that you need at once: they share"
                    " the products.",
                )
            if any(checkpoint.points is not None for checkpoint in series.checkpoints):
                raise SettingsError(
                    "--spectra: there are more shards than checkpoints, so each shard has only part"
                    " of the points.",
                    "Give at most as many shards as there are checkpoints.",
                )
            of_run = spectra_path(self._folder, series.run, 0).parent
            make_folder(of_run)
            remove_temporary_in(of_run, is_spectra)

    def has(self, run: str, checkpoint: PlannedCheckpoint, sha256: str | None) -> bool:
        """Return whether the folder holds a checkpoint's singular values, under the same settings.

        `sha256` is the hash of the weights that the table is of, where known.
        """
        path = spectra_path(self._folder, run, checkpoint.step)
        if not path.is_file():
            return False
        try:
            with opened(path) as (_, about):
                entries, facts = about["entries"], about.get("facts", {})
                return (
                    all(
                        (one["run"], one["checkpoint"], one["step"])
                        == (run, checkpoint.file.name, checkpoint.step)
                        for one in entries
                    )
                    and facts.get("sha256_of_tensors") in {None, sha256}
                    and self._is_alike(about["settings"], run)
                )
        except DataError:
            return False

    def _is_alike(self, earlier: Mapping[str, Any], run: str) -> bool:
        # Singular values serve every measure, also those that came later.
        now = self._settings[run] | {"measures": earlier.get("measures")}
        return find_difference(earlier, now) is None

    def keep(self, record: CheckpointRecord, spectra: Sequence[LayerSpectrum]) -> None:
        """Write the singular values of a checkpoint's layers."""
        assert record.step is not None
        path = spectra_path(self._folder, record.run, record.step)
        write_spectra(path, record, spectra, self._settings[record.run])
