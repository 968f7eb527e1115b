"""Divide a plan between independent processes, and hold all parts to one plan file.

A unit of work is a checkpoint, loaded once for all layers and points, or a range of its points if
there are fewer checkpoints than shards. Each unit belongs to exactly one shard, and its values are
those of a run that is not divided.
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
from localrank_cli.jacobian.blocks import BLOCK_POINTS
from localrank_cli.options.decisive import find_difference
from localrank_cli.options.parse import Shard
from localrank_cli.results.plan_file import RESUBMIT, ListedCheckpoint, ListedSeries, PlanFile
from localrank_cli.results.record import CheckpointRecord
from localrank_cli.run.headers import PlannedCheckpoint
from localrank_cli.run.plan import (
    Plan,
    SeriesPlan,
    footprint_or_none,
    series_settings,
    with_measures_of,
)

_Planned = PlannedCheckpoint | CheckpointRecord


@dataclass(frozen=True)
class Division:
    """A shard of a plan, and what it has in common with the other shards."""

    shard: Shard
    units_sha256: str  # of the list of all units
    n_units: int
    units: tuple[tuple[str, str, tuple[int, int] | None], ...]  # run, checkpoint, points

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them, for a journal."""
        return {
            "index": self.shard.index,
            "count": self.shard.count,
            "units_sha256": self.units_sha256,
            "n_units": self.n_units,
            "own": [[run, name, points and list(points)] for run, name, points in self.units],
        }


def take_shard(plan: Plan, shard: Shard) -> tuple[Plan, Division]:
    """Return the part of a plan that a shard computes, and the division that it belongs to."""
    units = [
        (series.run, planned)
        for series in plan.series
        for whole in series.in_order
        for planned in _units(series, whole, plan.n_checkpoints, shard.count)
    ]
    listed = [(run, name_of(planned), planned.step, _points(planned)) for run, planned in units]
    share = units[shard.index :: shard.count]  # spreads costs that change along a series
    division = Division(
        shard=shard,
        units_sha256=hashlib.sha256(json.dumps(listed).encode()).hexdigest(),
        n_units=len(units),
        units=tuple((run, name_of(planned), _points(planned)) for run, planned in share),
    )
    series = [
        replace(
            one,
            checkpoints=tuple(
                planned
                for run, planned in share
                if run == one.run and isinstance(planned, PlannedCheckpoint)
            ),
            failures=tuple(
                planned
                for run, planned in share
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
    # Sums over points run over blocks, which no two processes share.
    size = BLOCK_POINTS if series.settings.pooled else 1
    blocks = -(-n_points // size)
    parts = min(blocks, -(-shards // n_checkpoints))
    if parts == 1:
        return [whole]
    edges = [min(n_points, size * round(i * blocks / parts)) for i in range(parts + 1)]
    return [replace(whole, points=(low, high)) for low, high in pairwise(edges)]


def name_of(planned: _Planned) -> str:
    """Return the name of a checkpoint of a plan, relative to its series."""
    return planned.file.name if isinstance(planned, PlannedCheckpoint) else planned.checkpoint


def _points(planned: _Planned) -> tuple[int, int] | None:
    return planned.points if isinstance(planned, PlannedCheckpoint) else None


def make_plan_file(
    plan: Plan, left: Plan, shards: int, words: Sequence[str], output: Path
) -> PlanFile:
    """Return the plan file, which all parts of a run read.

    `left` is the part of the plan that is not finished, and `words` the command line of analyze
    without the options that differ between parts.
    """
    return PlanFile(
        series=tuple(
            ListedSeries(
                run=one.run,
                folder=one.series.place,
                settings=json.loads(json.dumps(series_settings(one))),
                checkpoints=tuple(_listed(one, {name_of(each) for each in rest.in_order})),
            )
            for one, rest in zip(plan.series, left.series, strict=True)
        ),
        shards=shards,
        n_units=take_shard(left, Shard(0, shards))[1].n_units if left.n_checkpoints else 0,
        words=tuple(words),
        output=str(output),
        folder=str(Path.cwd()),
        interpreter=sys.executable,
    )


def _listed(series: SeriesPlan, left: set[str]) -> Iterator[ListedCheckpoint]:
    files = {file.name: file for file in series.series.files}
    for one in series.in_order:
        name = name_of(one)
        found = footprint_or_none(files[name])
        size, mtime_ns = (None, None) if found is None else (found.size, found.mtime_ns)
        pin = "" if found is None else found.pin
        yield ListedCheckpoint(name, one.step, size, mtime_ns, name not in left, pin)


def apply_plan_file(plan: Plan, plan_file: PlanFile) -> Plan:
    """Return the part of a plan that was not finished when its plan file was made.

    Raises:
        SettingsError: If a setting or a step differs from that in the file.
    """
    every = [with_measures_of(one, plan_file.of_run(one.run).settings) for one in plan.series]
    for series in every:
        listed = plan_file.of_run(series.run)
        found = find_difference(listed.settings, series_settings(series))
        if found is not None:
            raise SettingsError(
                f"{series.run}: {found.name} changed since the plan was made.",
                f"{found.advice}{RESUBMIT}",
            )
        steps = {one.name: one.step for one in listed.checkpoints}
        for checkpoint in series.checkpoints:
            if steps[checkpoint.file.name] != checkpoint.step:
                raise SettingsError(
                    f"{checkpoint.place}: was step {steps[checkpoint.file.name]} when the plan was"
                    " made.",
                    RESUBMIT,
                )
    done = plan_file.done
    left = [
        replace(
            one,
            checkpoints=tuple(c for c in one.checkpoints if (one.run, c.file.name) not in done),
        )
        for one in every
    ]
    return replace(plan, series=tuple(left))
