"""Divides a plan between processes: no unit twice, none left out, no process knows of another.

A unit is a checkpoint, loaded once for all layers and points. Where there are fewer checkpoints
than shards, a unit is a range of a checkpoint's points; the values at its points are those of a run
that is not divided.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from localrank_cli.errors import SettingsError
from localrank_cli.options.decisive import find_difference
from localrank_cli.options.parse import Shard
from localrank_cli.results.plan_file import ListedCheckpoint, ListedSeries, PlanFile
from localrank_cli.results.record import CheckpointRecord
from localrank_cli.run.headers import PlannedCheckpoint
from localrank_cli.run.plan import Plan, SeriesPlan, marks, series_settings

_Planned = PlannedCheckpoint | CheckpointRecord


@dataclass(frozen=True)
class Division:
    """What all shards of one division have in common, and what is this one's."""

    shard: Shard
    units_sha256: str  # of the list of all units
    n_units: int
    own: tuple[tuple[str, str, tuple[int, int] | None], ...]  # run, checkpoint, points

    def to_json(self) -> dict[str, Any]:
        """Makes it fit for a journal.

        Returns:
            Anything that JSON can hold.
        """
        return {
            "index": self.shard.index,
            "count": self.shard.count,
            "units_sha256": self.units_sha256,
            "n_units": self.n_units,
            "own": [[run, name, points and list(points)] for run, name, points in self.own],
        }


def take_shard(plan: Plan, shard: Shard) -> tuple[Plan, Division]:
    """Picks a shard's units of a plan.

    Args:
        plan: All that was asked for.
        shard: Which part.

    Returns:
        The plan of that part, and what it is a part of.
    """
    units = [
        (series.run, planned)
        for series in plan.series
        for whole in series.in_order
        for planned in _units(series, whole, plan.n_checkpoints, shard.count)
    ]
    listed = [(run, name_of(planned), planned.step, _points(planned)) for run, planned in units]
    own = units[shard.index :: shard.count]  # costs that change along a series are spread
    division = Division(
        shard,
        hashlib.sha256(json.dumps(listed).encode()).hexdigest(),
        len(units),
        tuple((run, name_of(planned), _points(planned)) for run, planned in own),
    )
    series = [
        replace(
            one,
            checkpoints=tuple(
                planned
                for run, planned in own
                if run == one.run and isinstance(planned, PlannedCheckpoint)
            ),
            failures=tuple(
                planned
                for run, planned in own
                if run == one.run and isinstance(planned, CheckpointRecord)
            ),
        )
        for one in plan.series
    ]
    return replace(plan, series=tuple(series)), division


def _units(series: SeriesPlan, whole: _Planned, n_checkpoints: int, shards: int) -> list[_Planned]:
    if not isinstance(whole, PlannedCheckpoint):
        return [whole]
    n_points = len(series.points.indices)
    parts = min(n_points, -(-shards // n_checkpoints))
    if parts == 1:
        return [whole]
    edges = [round(index * n_points / parts) for index in range(parts + 1)]
    return [replace(whole, points=(low, high)) for low, high in pairwise(edges)]


def name_of(planned: _Planned) -> str:
    """The name of a checkpoint that is to be analysed, or cannot be.

    Args:
        planned: Of a plan.

    Returns:
        Relative to its series.
    """
    return planned.file.name if isinstance(planned, PlannedCheckpoint) else planned.checkpoint


def _points(planned: _Planned) -> tuple[int, int] | None:
    return planned.points if isinstance(planned, PlannedCheckpoint) else None


def freeze(plan: Plan, left: Plan, shards: int, words: Sequence[str], output: Path) -> PlanFile:
    """Writes down what all parts of a run must see.

    Args:
        plan: All that was asked for.
        left: What of it is to be computed.
        shards: In how many parts.
        words: The command line of analyze, but for what each part has of its own.
        output: Where the result goes.

    Returns:
        The plan for a file.
    """
    series = tuple(
        ListedSeries(
            one.run,
            str(one.series.folder),
            json.loads(json.dumps(series_settings(one))),
            tuple(_listed(one, {name_of(each) for each in rest.in_order})),
        )
        for one, rest in zip(plan.series, left.series, strict=True)
    )
    n_units = take_shard(left, Shard(0, shards))[1].n_units if left.n_checkpoints else 0
    return PlanFile(
        series, shards, n_units, tuple(words), str(output), str(Path.cwd()), sys.executable
    )


def _listed(series: SeriesPlan, left: set[str]) -> Iterator[ListedCheckpoint]:
    paths = {file.name: file.path for file in series.series.files}
    for one in series.in_order:
        name = name_of(one)
        yield ListedCheckpoint(name, one.step, *marks(paths[name]), is_done=name not in left)


def hold_to(plan: Plan, frozen: PlanFile) -> Plan:
    """Checks that a part of a run plans what all others do.

    Args:
        plan: Made of the checkpoints that the plan file lists.
        frozen: The plan file.

    Returns:
        What of it was left to do when the work was divided.

    Raises:
        SettingsError: If a setting or a step differs.
    """
    for series in plan.series:
        listed = frozen.of_run(series.run)
        found = find_difference(listed.settings, series_settings(series))
        if found is not None:
            raise SettingsError(
                f"{series.run}: {found.name} is not what it was when the plan was made.",
                f"{found.advice}Submit again; what is finished is kept.",
            )
        steps = {one.name: one.step for one in listed.checkpoints}
        for checkpoint in series.checkpoints:
            if steps[checkpoint.file.name] != checkpoint.step:
                raise SettingsError(
                    f"{checkpoint.place}: was step {steps[checkpoint.file.name]} when the plan was"
                    " made.",
                    "Submit again; what is finished is kept.",
                )
    left = [
        replace(
            one,
            checkpoints=tuple(
                each for each in one.checkpoints if (one.run, each.file.name) not in frozen.done
            ),
        )
        for one in plan.series
    ]
    return replace(plan, series=tuple(left))
