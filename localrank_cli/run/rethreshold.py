"""Count kept singular values at other tolerances, without computing Jacobians again."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localrank_cli.errors import SettingsError, UnreadableError
from localrank_cli.measures.points import point_measures
from localrank_cli.measures.table import AVERAGED
from localrank_cli.options.decisive import PRECISION, combine, find_difference
from localrank_cli.options.table import DEFAULT_ATOL, RethresholdOptions
from localrank_cli.results.manifest import extra_columns
from localrank_cli.results.output import Output
from localrank_cli.results.pooled import with_pooled
from localrank_cli.results.record import CheckpointRecord, LayerRecord, unsaved_message
from localrank_cli.results.spectra import find_spectra, read_spectra
from localrank_cli.spectrum.layer import EXACT_FLOAT32
from localrank_cli.spectrum.tolerance import Tolerance, check_rounding

_STEP = re.compile(r"step_(\d+)$")


@dataclass
class Rethreshold:
    """A folder of singular values at other tolerances."""

    folder: Path
    tolerances: tuple[Tolerance, ...]
    noise: float | None  # None: as when they were kept
    series: dict[str, dict[str, Any]] = field(default_factory=dict)  # settings seen so far
    # Of each run seen so far: how precise its files are, and one of an earlier version in float32.
    _precisions: dict[str, set[Any]] = field(default_factory=dict)
    _in_float32: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def at(
        cls,
        folder: Path,
        atol: Sequence[float],
        rtol: Sequence[float | None],
        noise: float | None,
    ) -> "Rethreshold":
        """Build it from tolerances as numbers; a relative one of None is eps."""
        every = [Tolerance(atol=value) for value in atol] + [Tolerance(rtol=r) for r in rtol]
        return cls(folder, tuple(every), noise)

    @classmethod
    def of(cls, options: RethresholdOptions) -> "Rethreshold":
        """Build it from options; without a tolerance, at the default one."""
        absolute = options.atol or (() if options.rtol else (DEFAULT_ATOL,))
        return cls.at(options.spectra, absolute, options.rtol, options.noise)

    def records(self) -> Iterator[CheckpointRecord]:
        """Measure each checkpoint again, by run and step.

        Raises:
            UnreadableError: If the folder holds no singular values.

        Yields:
            The records.
        """
        paths = sorted(find_spectra(self.folder), key=_order)
        if not paths:
            fault = (
                "holds no singular values" if self.folder.is_dir() else "there is no such folder"
            )
            raise UnreadableError(
                f"{self.folder}: {fault}.",
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
            layers.append(with_pooled(LayerRecord(facts, points, layer.cells), layer.pooled))
        first = kept.layers[0].facts
        labels = [tolerance.label for tolerance in self.tolerances]
        # All measures of this version are computed, whichever version wrote the file.
        measured = {"tolerances": labels, "measures": list(AVERAGED), "noise": noise}
        settings = dict(kept.settings) | measured
        earlier = self.series.setdefault(first.run, settings)
        self._check_settings(settings, earlier, path)
        self.series[first.run] = combine(earlier, settings)
        record = CheckpointRecord(
            first.run,
            first.checkpoint,
            first.step,
            layers=tuple(layers),
            message=unsaved_message(kept.settings.get("unsaved", ())),
            facts=dict(kept.facts),
        )
        self._check_precision(record, settings.get(PRECISION), path)
        return record

    def _check_settings(self, now: dict[str, Any], earlier: dict[str, Any], path: Path) -> None:
        """Refuse a folder into which two analyses of one run kept their singular values."""
        found = find_difference(earlier, now)
        if found is not None:
            raise SettingsError(
                f"{path}: was kept with a different {found.name} from the files of earlier steps"
                f" of {now['run']!r}: two analyses wrote into {self.folder}.",
                "Remove the files of one, or keep the singular values again in a new folder.",
            )

    def _check_precision(self, record: CheckpointRecord, precision: object, path: Path) -> None:
        """Refuse files of an earlier version that are partly in float32 beside later ones."""
        found = self._precisions.setdefault(record.run, set())
        found.add(precision)
        if precision is None and record.is_in_float32:
            self._in_float32.setdefault(record.run, path)
        if len(found) > 1 and record.run in self._in_float32:
            earlier = self._in_float32[record.run]
            raise SettingsError(
                f"{earlier}: was partly computed in float32 ({EXACT_FLOAT32}), by an earlier"
                f" version than other files of {record.run!r} in {self.folder}.",
                "Remove the files of one version, or keep the singular values again in a new"
                " folder.",
            )

    @property
    def extra_columns(self) -> tuple[str, ...]:
        """Optional columns of the series seen so far."""
        return extra_columns(self.series.values())

    def write(
        self,
        target: Path,
        command: Sequence[str],
        take: Callable[[CheckpointRecord], None],
        *,
        overwrite: bool,
    ) -> None:
        """Write table, journal and manifest as an analysis does, and pass each record to `take`."""
        with Output(target, command, overwrite=overwrite) as output:
            for record in self.records():
                output.add(record, sync=False)
                take(record)
            for run in sorted(self.series):
                output.add_settings(self.series[run])
            output.finish({"spectra": str(self.folder.absolute())})


def _order(path: Path) -> tuple[str, int]:
    match = _STEP.search(path.stem)
    return str(path.parent), int(match.group(1)) if match else -1
