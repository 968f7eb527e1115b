"""New tolerances over singular values that were kept: no Jacobian is computed again."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from localrank_cli.errors import UnreadableError
from localrank_cli.measures.points import point_measures
from localrank_cli.pipeline.machine import versions
from localrank_cli.pipeline.manifest import FORMAT, extra_columns
from localrank_cli.pipeline.tolerances import check_rounding
from localrank_cli.pipeline.unsaved import unsaved_message
from localrank_cli.spectrum.tolerance import Tolerance
from localrank_cli.table.record import CheckpointRecord, LayerRecord
from localrank_cli.table.spectra_files import find_spectra, read_spectra

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


def _order(path: Path) -> tuple[str, int]:
    match = _STEP.search(path.stem)
    return str(path.parent), int(match.group(1)) if match else -1
