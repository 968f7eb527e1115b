"""Divides a plan between processes: no unit twice, none left out, no process knows of another.

A unit is a checkpoint, loaded once for all layers and points. Where there are fewer checkpoints
than shards, a unit is a range of a checkpoint's points; the values at its points are those of a run
that is not divided.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from localrank_cli.pipeline.headers import PlannedCheckpoint
from localrank_cli.pipeline.plan import Plan, SeriesPlan
from localrank_cli.pipeline.shard import Shard
from localrank_cli.table.record import CheckpointRecord

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
