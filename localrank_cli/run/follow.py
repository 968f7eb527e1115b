"""Watch a run in progress: plan new checkpoints once they are complete."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from localrank_cli.checkpoints.formats import is_whole
from localrank_cli.checkpoints.order import StepScheme
from localrank_cli.checkpoints.reading import footprint, read_checkpoint
from localrank_cli.checkpoints.series import CheckpointFile, find_checkpoints, find_folders
from localrank_cli.checkpoints.weights import RAW
from localrank_cli.errors import (
    LocalrankError,
    Note,
    NoWeightsError,
    SettingsError,
    UnreadableError,
    UsageError,
)
from localrank_cli.options.resolve import for_series
from localrank_cli.options.table import AnalyzeOptions
from localrank_cli.remote.places import is_remote
from localrank_cli.results.record import CheckpointRecord
from localrank_cli.run.headers import (
    HeaderContext,
    Headers,
    PlannedCheckpoint,
    failed_record,
    may_be_data,
)
from localrank_cli.run.missing import Parts
from localrank_cli.run.plan import Plan, SeriesPlan, make_plan, names_rule, place_points

# Seconds after which a file that nothing writes to is read, complete or not.
_PATIENCE = 60.0


@dataclass
class Watch:
    """The folders of a run in progress."""

    options: AnalyzeOptions
    note: Note
    sleep: Callable[[float], None] = time.sleep  # replaced in tests
    poll: float = 2.0  # seconds between looks
    _footprints: dict[Path, tuple[object, float]] = field(default_factory=dict)  # and since when
    _planned: set[tuple[str, str]] = field(default_factory=set)  # run, checkpoint
    _schemes: dict[str, StepScheme] = field(default_factory=dict)  # run -> how steps are found

    def first_plan(self) -> Plan:
        """Wait until every series has a complete checkpoint, and plan those that are complete."""
        _refuse_remote(self.options)
        ready = self._complete()
        if ready is None:
            self.note("waiting for the first checkpoint")
        while ready is None:
            self.sleep(self.poll)
            ready = self._complete()
        plan = make_plan(replace(self.options, checkpoints=tuple(ready)), self.note)
        for series in plan.series:
            self._planned |= {(series.run, name) for name in series.names}
        return _unmapped(plan)

    def _complete(self) -> list[Path] | None:
        """Return the complete checkpoints of all series; None while a series has none."""
        ready: list[Path] = []
        for path in self.options.checkpoints:
            with suppress(UnreadableError):  # no checkpoint yet
                (folder, named), *_ = find_folders(
                    [path], partial(names_rule, self.options)
                ).items()
                files = self._files(folder, named)
                complete = [
                    file
                    for file in files
                    if self._is_complete(file) and not _is_no_checkpoint(file)
                ]
                if complete:
                    ready += [folder / file.name for file in complete]
                    continue
            return None
        return ready

    def plans(self, plan: Plan) -> Iterator[Plan]:
        """Wait for more checkpoints, until every series has one at the step of `--until` or later.

        Yields:
            Plans of the new checkpoints alone.
        """
        latest = {series.run: _latest(series) for series in plan.series}
        while self.options.until is None or min(latest.values()) < self.options.until:
            self.sleep(self.poll)
            series = [self._new(one) for one in plan.series]
            new = replace(plan, series=tuple(series))
            if new.n_checkpoints:
                latest = {one.run: max(latest[one.run], _latest(one)) for one in series}
                yield new

    def _new(self, series: SeriesPlan) -> SeriesPlan:
        folder = series.series.folder
        files = [
            file
            for file in self._files(folder, ())
            if (series.run, file.name) not in self._planned and self._is_complete(file)
        ]
        planned: list[PlannedCheckpoint] = []
        failures: list[CheckpointRecord] = []
        for file in files:
            self._planned.add((series.run, file.name))
            try:
                planned += self._plan_one(file, series)
            except LocalrankError as error:
                # Steps that cannot be found concern the series, not the one checkpoint.
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
        series_options = for_series(self.options, series.series.folder)
        context = HeaderContext(
            earlier=self._schemes.get(series.run, series.scheme),
            is_inferred=series.settings.model.is_inferred,
            is_hf=series.settings.model.is_hf,
            names=tuple(series.expected.shapes),
            modules=series.held[0],
            place=series.held[1],
        )
        headers = Headers(
            alone,
            self.options.trust_pickle,
            rule=series_options.step_rule,
            weights=series_options.options.weights or RAW,
            context=context,
        )
        headers.recorded = series.recorded
        steps = headers.steps(self.note)
        self._schemes[series.run] = headers.scheme
        step_range = self.options.part.steps
        planned = [
            replace(headers.plan(one, step, series.model, series.expected), mapped=False)
            for one, step in steps
            if step_range is None or step in step_range
        ]
        for checkpoint in planned:
            self._check_missing(checkpoint, series)
        return planned

    def _check_missing(self, checkpoint: PlannedCheckpoint, series: SeriesPlan) -> None:
        device = next((one.device for one in series.model.parameters()), torch.device("cpu"))
        points = place_points(series.points, device, series.settings.dtype)
        calls = [record.call for record in series.examination.records]
        Parts(series.model, calls, points[:1]).check(checkpoint.missing, checkpoint.place)

    def _files(self, folder: Path, named: Sequence[Path]) -> tuple[CheckpointFile, ...]:
        series = for_series(self.options, folder)
        pattern, rule = series.options.pattern or "", series.step_rule.names
        try:
            return find_checkpoints(folder, named, pattern, series.data_files, rule).files
        except UnreadableError:  # none yet
            return ()

    def _is_complete(self, file: CheckpointFile) -> bool:
        """Return whether a file has not changed since the last look, and its header fits its size.

        A file that stays incomplete is returned in the end, so that its error is reported.
        """
        try:
            current = footprint(file.path)
        except UnreadableError:  # an index whose shards are still to come
            return False
        before, since = self._footprints.get(file.path, (None, 0.0))
        if current != before:
            self._footprints[file.path] = (current, time.monotonic())
            return False
        return is_whole(file.path) or time.monotonic() - since > _PATIENCE


def _is_no_checkpoint(file: CheckpointFile) -> bool:
    """Return whether a file without a step in its name holds inputs or the like, not weights."""
    if file.name_step is not None or file.name_epoch is not None:
        return False
    try:
        content = read_checkpoint(file.path, header_only=True)
    except NoWeightsError:
        return True
    except UnreadableError:  # reported when it is planned
        return False
    return content.step is None and content.epoch is None and may_be_data(content)


def _refuse_remote(options: AnalyzeOptions) -> None:
    found = next(filter(is_remote, options.checkpoints), None)
    if found is not None:
        raise UsageError(
            f"--follow with {found}: localrank cannot watch a series on another machine.",
            "Run the command again when there are new checkpoints: finished ones are kept.",
        )


def _latest(series: SeriesPlan) -> int:
    """Return the last step of a series, counting checkpoints that cannot be analyzed."""
    return max((one.step for one in series.in_order if one.step is not None), default=-1)


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
