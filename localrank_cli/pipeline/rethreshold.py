"""New tolerances over singular values that were kept: no Jacobian is computed again."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from localrank_cli.errors import OutputError, UnreadableError
from localrank_cli.measures.points import point_measures
from localrank_cli.pipeline.machine import versions
from localrank_cli.pipeline.manifest import FORMAT, extra_columns
from localrank_cli.pipeline.tolerances import check_rounding
from localrank_cli.pipeline.unsaved import unsaved_message
from localrank_cli.spectrum.tolerance import Tolerance
from localrank_cli.table.columns import Row
from localrank_cli.table.journal import journal_path
from localrank_cli.table.lock import OutputLock
from localrank_cli.table.record import CheckpointRecord, LayerRecord
from localrank_cli.table.spectra_files import find_spectra, read_spectra
from localrank_cli.table.write import (
    cannot_write,
    manifest_path,
    remove_temporary,
    write_table,
    write_whole,
)

_STEP = re.compile(r"step_(\d+)$")


@dataclass
class Rethreshold:
    """A folder of singular values at other tolerances."""

    folder: Path
    tolerances: tuple[Tolerance, ...]
    noise: float | None  # None: as when they were kept
    series: dict[str, dict[str, Any]] = field(default_factory=dict)  # settings seen so far

    @classmethod
    def at(
        cls,
        folder: Path,
        atol: Sequence[float],
        rtol: Sequence[float | None],
        noise: float | None,
    ) -> "Rethreshold":
        """Takes tolerances as numbers.

        Args:
            folder: Of the singular values.
            atol: Absolute.
            rtol: Relative; None is eps.
            noise: As for the class.

        Returns:
            What gives the records.
        """
        every = [Tolerance(atol=value) for value in atol] + [Tolerance(rtol=r) for r in rtol]
        return cls(folder, tuple(every), noise)

    def records(self) -> Iterator[CheckpointRecord]:
        """Measures each checkpoint again.

        Yields:
            By run and step.

        Raises:
            UnreadableError: If the folder holds no singular values.
        """
        if not self.folder.is_dir():
            raise UnreadableError(
                f"{self.folder}: there is no such folder.",
                "Name a folder that was written with analyze --spectra.",
            )
        paths = sorted(find_spectra(self.folder), key=_order)
        if not paths:
            raise UnreadableError(
                f"{self.folder}: holds no singular values.",
                "Name a folder that was written with analyze --spectra.",
            )
        for path in paths:
            yield self._record(path)

    def _record(self, path: Path) -> CheckpointRecord:
        kept = read_spectra(path)
        noise = kept.settings["noise"] if self.noise is None else self.noise
        layers = []
        for layer in kept.layers:
            facts = layer.facts
            low = facts.method != "exact"
            check_rounding(self.tolerances, facts.layer, (facts.n_out, layer.n_columns), low=low)
            points = point_measures(layer.spectrum, self.tolerances, noise)
            layers.append(LayerRecord(facts, points, layer.cells))
        first = kept.layers[0].facts
        labels = [tolerance.label for tolerance in self.tolerances]
        self.series[first.run] = dict(kept.settings) | {"tolerances": labels, "noise": noise}
        return CheckpointRecord(
            first.run,
            first.checkpoint,
            first.step,
            layers=tuple(layers),
            message=unsaved_message(kept.settings.get("unsaved", ())),
        )

    @property
    def extra_columns(self) -> tuple[str, ...]:
        """Optional columns of the series seen so far."""
        return extra_columns(self.series.values())

    def manifest(self, command: Sequence[str]) -> dict[str, Any]:
        """Describes the table.

        Args:
            command: The command line.

        Returns:
            Anything that JSON can hold.
        """
        return {
            "localrank_manifest": FORMAT,
            "complete": True,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": list(command),
            "versions": versions(),
            "spectra": str(self.folder.absolute()),
            "series": [self.series[run] for run in sorted(self.series)],
        }


def refuse_existing(target: Path) -> None:
    """Check that a table of this name would replace nothing.

    Raises:
        OutputError: If there is a table, a manifest or a journal.
    """
    for path in (target, manifest_path(target), journal_path(target)):
        if path.exists() or path.is_symlink():
            raise OutputError(
                f"{path}: exists already.", "Give another name with -o, or pass --overwrite."
            )


def write_rethresholded(
    work: Rethreshold,
    rows: Sequence[Row],
    target: Path,
    command: Sequence[str],
    *,
    overwrite: bool,
) -> None:
    """Write table and manifest in place of whatever had their name, journal included.

    The journal of an earlier analysis would give its old rows to whoever merges or resumes.

    Args:
        work: All of whose records were taken.
        rows: Of these records.
        target: The table.
        command: The command line, for the manifest.
        overwrite: Whether to discard what is there.
    """
    with OutputLock(target):
        remove_temporary(target)
        if not overwrite:
            refuse_existing(target)
        try:
            journal_path(target).unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(journal_path(target), error) from error
        write_table(target, rows, work.extra_columns)
        write_whole(manifest_path(target), work.manifest(command))


def _order(path: Path) -> tuple[str, int]:
    match = _STEP.search(path.stem)
    return str(path.parent), int(match.group(1)) if match else -1
