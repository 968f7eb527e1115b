"""Watches a run in progress: new checkpoints are planned as they appear and are whole."""

import json
import struct
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from localrank_cli.checkpoints.order import StepScheme
from localrank_cli.checkpoints.reading import footprint
from localrank_cli.checkpoints.series import CheckpointFile, find_checkpoints, find_folders
from localrank_cli.checkpoints.weights import RAW
from localrank_cli.errors import LocalrankError, Note, SettingsError, UnreadableError
from localrank_cli.options.resolve import for_series
from localrank_cli.options.table import AnalyzeOptions
from localrank_cli.results.record import CheckpointRecord
from localrank_cli.run.headers import Headers, PlannedCheckpoint, Setting, failed_record
from localrank_cli.run.plan import Plan, SeriesPlan, make_plan, names_rule

# A file that nothing has written to for so long, and that still is not whole, will not be.
_PATIENCE = 60.0


@dataclass
class Watch:
    """The folders of a run in progress.

    Args:
        options: With `follow`.
        note: Takes each note for the user.
        sleep: Waits; replaced in tests.
        poll: Seconds between looks.
    """

    options: AnalyzeOptions
    note: Note
    sleep: Callable[[float], None] = time.sleep
    poll: float = 2.0  # seconds between looks
    _seen: dict[Path, tuple[object, float]] = field(default_factory=dict)  # footprint, since when
    _taken: set[tuple[str, str]] = field(default_factory=set)  # run, checkpoint
    _schemes: dict[str, StepScheme] = field(default_factory=dict)  # run -> how steps are found

    def first_plan(self) -> Plan:
        """Waits until every series has a checkpoint that is whole, and plans.

        Returns:
            A plan of the checkpoints that are whole by then.
        """
        told = False
        while True:
            ready = self._ready()
            if ready is not None:
                break
            if not told:
                self.note("waiting for the first checkpoint")
                told = True
            self.sleep(self.poll)
        plan = make_plan(replace(self.options, checkpoints=tuple(ready)), self.note)
        for series in plan.series:
            self._taken |= {(series.run, name) for name in series.found}
        return _unmapped(plan)

    def _ready(self) -> list[Path] | None:
        """Single checkpoints that are whole, of every series; None while one has none."""
        ready: list[Path] = []
        for path in self.options.checkpoints:
            with suppress(UnreadableError):
                (folder, named), *_ = find_folders(
                    [path], partial(names_rule, self.options)
                ).items()
                files = self._files(folder, named)
                whole = [file for file in files if self._is_settled(file)]
                if whole:
                    ready += [folder / file.name for file in whole]
                    continue
            return None
        return ready

    def plans(self, plan: Plan) -> Iterator[Plan]:
        """Waits for more checkpoints.

        Args:
            plan: The first one.

        Yields:
            Plans of new checkpoints alone, until the step to stop at has come in every series.
        """
        latest = {series.run: _latest(series) for series in plan.series}
        while self.options.until is None or min(latest.values()) < self.options.until:
            self.sleep(self.poll)
            series = [self._more(one) for one in plan.series]
            new = replace(plan, series=tuple(series))
            if new.n_checkpoints:
                latest = {one.run: max(latest[one.run], _latest(one)) for one in series}
                yield new

    def _more(self, series: SeriesPlan) -> SeriesPlan:
        folder = series.series.folder
        files = [
            file
            for file in self._files(folder, ())
            if (series.run, file.name) not in self._taken and self._is_settled(file)
        ]
        planned: list[PlannedCheckpoint] = []
        failures: list[CheckpointRecord] = []
        for file in files:
            self._taken.add((series.run, file.name))
            try:
                planned += self._plan_one(file, series)
            except LocalrankError as error:
                # Steps that cannot be told concern the series, not the one checkpoint.
                if not self.options.skips_errors or isinstance(error, SettingsError):
                    raise
                step = self._schemes.get(series.run, series.scheme).step_of_unread(file)
                failures.append(failed_record(series.run, file.name, step, error))
        planned.sort(key=lambda one: one.step)
        return replace(
            series,
            checkpoints=tuple(planned),
            failures=tuple(failures),
            scheme=self._schemes.get(series.run, series.scheme),
        )

    def _plan_one(self, file: CheckpointFile, series: SeriesPlan) -> list[PlannedCheckpoint]:
        alone = replace(series.series, files=(file,))
        own = for_series(self.options, series.series.folder)
        setting = Setting(
            earlier=self._schemes.get(series.run, series.scheme),
            is_inferred=series.settings.model.is_inferred,
            is_hf=series.settings.model.is_hf,
        )
        weights = own.options.weights or RAW
        headers = Headers(alone, self.options.trust_pickle, own.step_rule, weights, setting)
        found = headers.steps(self.note)
        self._schemes[series.run] = headers.scheme
        steps = self.options.part.steps
        return [
            replace(headers.plan(one, step, series.model, series.expected), mapped=False)
            for one, step in found
            if steps is None or step in steps
        ]

    def _files(self, folder: Path, named: Sequence[Path]) -> tuple[CheckpointFile, ...]:
        own = for_series(self.options, folder)
        excluded, pattern = own.own_files, own.options.pattern or ""
        if isinstance(self.options.data, str):
            excluded.append(Path(self.options.data).absolute())
        try:
            found = find_checkpoints(folder, named, pattern, excluded, own.step_rule.names)
        except UnreadableError:  # none yet
            return ()
        return found.files

    def _is_settled(self, file: CheckpointFile) -> bool:
        """Whether nothing wrote to it since the last look, and it is whole by its own account."""
        try:
            print_now = footprint(file.path)
        except UnreadableError:  # an index whose shards are still to come
            return False
        before, since = self._seen.get(file.path, (None, 0.0))
        if print_now != before:
            self._seen[file.path] = (print_now, time.monotonic())
            return False
        # What stays incomplete is planned all the same in the end, and is an error then.
        return is_whole(file.path) or time.monotonic() - since > _PATIENCE


def _latest(series: SeriesPlan) -> int:
    """The last step that has come; one that cannot be analysed has come too."""
    return max((one.step for one in series.in_order if one.step is not None), default=-1)


def is_whole(path: Path) -> bool:
    """Tells by its end whether a file was written to its end.

    Args:
        path: A weights file, or anything else.

    Returns:
        False for a safetensors file shorter than its header says, and for a zip of torch without
        its table of contents; True for what cannot be told.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            if path.name.lower().endswith(".safetensors"):
                return _is_whole_safetensors(path, start)
            return not start.startswith(b"PK\x03\x04") or zipfile.is_zipfile(path)
    except OSError:
        return False


def _is_whole_safetensors(path: Path, start: bytes) -> bool:
    if len(start) < 8:
        return False
    (length,) = struct.unpack("<Q", start)
    size = path.stat().st_size
    if length > size:
        return False
    with path.open("rb") as file:
        file.seek(8)
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            ends = [entry["data_offsets"][1] for entry in header.values()]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return True  # damaged, not unfinished: the reader says so
    needed: int = 8 + length + max(ends, default=0)
    return size >= needed


def _unmapped(plan: Plan) -> Plan:
    return replace(
        plan,
        series=tuple(
            replace(
                series,
                checkpoints=tuple(replace(one, mapped=False) for one in series.checkpoints),
            )
            for series in plan.series
        ),
    )
