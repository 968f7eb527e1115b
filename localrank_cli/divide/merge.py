"""Merge the tables of shards into that of a single run, or report what prevents it."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from localrank_cli.errors import SettingsError, UnreadableError
from localrank_cli.intervals.evidence import Evidence
from localrank_cli.measures.points import PointMeasures, PointRanks
from localrank_cli.options.decisive import PRECISION, combine, find_difference
from localrank_cli.results.journal import Entry, Journal, journal_path, read_checkpoint, table_of
from localrank_cli.results.output import Output
from localrank_cli.results.pooled import read_sums, with_sums
from localrank_cli.results.record import KIND, SETTINGS, SHARD, CheckpointRecord

_Unit = tuple[str, str, tuple[int, ...]]  # run, checkpoint, points
# Measures other than counts agree to this relative difference on any machine.
_SAME = 1e-6
# Missing shards are listed one by one up to this count; no cluster runs more tasks in one array.
_MOST_MISSING = 1_000_000


@dataclass(frozen=True)
class Place:
    """The place of a record."""

    journal: Path
    entry: Entry
    settings: Mapping[str, Any]  # of its run


@dataclass
class Merge:
    """The content of all tables."""

    settings: dict[str, dict[str, Any]] = field(default_factory=dict)  # run -> settings
    units: dict[_Unit, Place] = field(default_factory=dict)
    # hash of the list of units -> (how many shards, which are here)
    divisions: dict[str, tuple[int, set[int]]] = field(default_factory=dict)
    n_units: int = 0  # of a division
    missing: list[str] = field(default_factory=list)

    @property
    def runs_and_names(self) -> list[tuple[str, str]]:
        """Checkpoints by run, step and name."""
        steps = {unit[:2]: place.entry.head["step"] for unit, place in self.units.items()}
        return sorted(
            steps,
            key=lambda name: (name[0], math.inf if steps[name] is None else steps[name], name[1]),
        )


def find_journals(paths: Sequence[Path]) -> list[Path]:
    """Find the journals of tables, and of all tables in folders.

    Raises:
        UnreadableError: If a path holds none.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(path.glob("*.journal"))
            if not inside:
                raise UnreadableError(
                    f"{path}: holds no table written by localrank with its journal.",
                    "Name the folder that the shards write into.",
                )
            found += inside
            continue
        real = Path(os.path.realpath(path)) if path.is_symlink() else path
        journal = path if path.suffix == ".journal" else journal_path(real)
        if not path.exists() and not journal.exists():
            raise UnreadableError(
                f"{path}: there is no such file or folder.",
                "Name the folder that the shards write into, or their tables.",
            )
        if not journal.is_file():
            raise UnreadableError(
                f"{path}: there is no journal {journal.name} next to it.",
                "localrank merge needs the per-point values in it.",
            )
        found.append(journal)
    return list(dict.fromkeys(path.absolute() for path in found))


def collect(journals: Sequence[Path]) -> Merge:
    """Read what the journals hold and what is missing, and check that they belong together.

    Raises:
        SettingsError: If two tables have other settings, or other numbers for one checkpoint.
    """
    merge = Merge()
    begun: list[tuple[Path, str, set[_Unit]]] = []
    sources: dict[str, dict[Path, object]] = {}
    for path in journals:
        with Journal(path, read_only=True) as journal:
            journal.check_settings()
            for entry in journal.entries(SETTINGS):
                _take_settings(merge, journal.body(entry), path, sources)
            for entry in journal.entries(KIND):
                _take_unit(merge, Place(path, entry, merge.settings[entry.head["run"]]))
            for entry in journal.entries(SHARD):
                shard, own = _take_division(merge, journal.body(entry))
                # Most shards lack nothing, so 5,000 shards of 10,000 units take little memory.
                if left := own - merge.units.keys():
                    begun.append((path, shard, left))
    for run, precisions in sources.items():
        _check_precision(run, precisions, merge.settings[run])
    _check_divisions(merge, begun)
    _check_points(merge)
    return merge


def _take_settings(
    merge: Merge, settings: dict[str, Any], path: Path, sources: dict[str, dict[Path, object]]
) -> None:
    """Add the settings of a run from a journal; `sources` collects their precision."""
    run = settings["run"]
    there = merge.settings.setdefault(run, settings)
    of_run = sources.setdefault(run, {})
    of_run[path] = settings.get(PRECISION)
    found = find_difference(there, settings)
    if found is not None:
        origin = next(iter(of_run))
        raise SettingsError(
            f"{path} and {origin} were made with different settings for {run!r}: {found.between}.",
            f"{found.advice}Merge only tables of one analysis.",
        )
    merge.settings[run] = combine(there, settings)


def _check_precision(
    run: str, precisions: Mapping[Path, object], settings: Mapping[str, Any]
) -> None:
    """Refuse to mix rows in float32 from an earlier version with later rows in float64."""
    if len(set(precisions.values())) == 1:
        return
    later = next(path for path, precision in precisions.items() if precision is not None)
    for path in (path for path, precision in precisions.items() if precision is None):
        with Journal(path, read_only=True) as journal:
            for entry in journal.entries(KIND):
                if entry.head["run"] == run and load(Place(path, entry, settings)).is_in_float32:
                    raise SettingsError(
                        f"{path}: {entry.head['checkpoint']} of {run!r} was partly computed in"
                        f" float32, by an earlier version than {later}.",
                        "Compute the earlier table again with --overwrite, or merge tables of one"
                        " version only.",
                    )


def _take_unit(merge: Merge, place: Place) -> None:
    head = place.entry.head
    unit = _unit(head["run"], head["checkpoint"], head["points"])
    there = merge.units.get(unit)
    if there is None or there.entry.head["status"] != "ok":
        merge.units[unit] = place
    elif head["status"] == "ok" and not _same(load(there), load(place)):
        raise SettingsError(
            f"{place.journal} and {there.journal} hold different numbers for {head['checkpoint']}"
            f" (step {head['step']}) of {head['run']!r}.",
            "Its weights changed between the two; compute it again.",
        )


def _take_division(merge: Merge, division: dict[str, Any]) -> tuple[str, set[_Unit]]:
    key, index, count = division["units_sha256"], division["index"], division["count"]
    merge.divisions.setdefault(key, (count, set()))[1].add(index)
    merge.n_units = division["n_units"]
    return f"{index}/{count}", {_unit(*one) for one in division["own"]}


def _check_divisions(merge: Merge, begun: Sequence[tuple[Path, str, set[_Unit]]]) -> None:
    for path, shard, units in begun:
        merge.missing += [
            f"{_words(unit)}: started by shard {shard} ({path.name}), not finished"
            for unit in sorted(units - merge.units.keys())
        ]
    if len(merge.divisions) > 1:
        counts = ", ".join(
            f"{sorted(here)[:5]} of {count}" for count, here in merge.divisions.values()
        )
        raise SettingsError(
            f"the shards divided different lists of checkpoints ({counts}): some saw a series that"
            " had grown.",
            "Run the shards again, or merge only those with the same list.",
        )
    for count, here in merge.divisions.values():
        if min(count, merge.n_units) - len(here) > _MOST_MISSING:
            raise SettingsError(
                f"merge: {len(here)} of {count} shards were found.",
                "Name the folder that the shards write into.",
            )
        merge.missing += [
            f"shard {index}/{count}: --shard {index}/{count}"
            for index in range(min(count, merge.n_units))  # the others have nothing to do
            if index not in here
        ]


def _check_points(merge: Merge) -> None:
    """Check that every checkpoint has all points, and that parts do not overlap."""
    parts: dict[tuple[str, str], list[tuple[int, ...]]] = {}
    for run, checkpoint, points in merge.units:
        parts.setdefault((run, checkpoint), []).append(points)
    for (run, checkpoint), found in parts.items():
        if () in found:
            continue
        n_points, reached = len(merge.settings[run]["point_indices"]), 0
        if max(high for _, high in found) > n_points:
            raise SettingsError(
                f"{checkpoint} of {run!r}: there are values of a point {max(found)[1]}, but the"
                f" series has {n_points} points.",
                "Compute it again with --overwrite.",
            )
        for low, high in sorted(found):
            if low < reached:
                raise SettingsError(
                    f"points {low} to {reached - 1} of {checkpoint} of {run!r} are in two shards"
                    " of different divisions.",
                    "Merge the shards of one division only.",
                )
            if low > reached and not merge.divisions:
                merge.missing.append(_words((run, checkpoint, (reached, low))))
            reached = high
        if reached < n_points and not merge.divisions:
            merge.missing.append(_words((run, checkpoint, (reached, n_points))))


def load(place: Place) -> CheckpointRecord:
    """Read a record."""
    _, body = read_checkpoint(place.journal, place.entry, place.settings)
    return CheckpointRecord.from_json(place.entry.head, body)


def _same(first: CheckpointRecord, second: CheckpointRecord) -> bool:
    digests = [one.facts.get("sha256_of_tensors") for one in (first, second)]
    if None not in digests and digests[0] != digests[1]:
        return False
    if len(first.layers) != len(second.layers):
        return False
    for one, other in zip(first.layers, second.layers, strict=True):
        counts = [[ranks.counts for ranks in layer.points.ranks] for layer in (one, other)]
        if one.points.finite != other.points.finite or counts[0] != counts[1]:
            return False
        if not _alike(one.points.evidence, other.points.evidence):
            return False
        for name, values in one.points.soft.items():
            pairs = zip(values, other.points.soft[name], strict=True)
            if not all(math.isclose(a, b, rel_tol=_SAME) for a, b in pairs):
                return False
    return True


def _alike(first: Evidence | None, other: Evidence | None) -> bool:
    """Return whether two analyses have the same evidence, up to the rounding of a machine."""
    if first is None or other is None:
        return first is other
    pairs = list(zip(first.points, other.points, strict=True))
    shares = [
        (a, b)
        for one, two in pairs
        for level, same in zip(one.levels, two.levels, strict=True)
        for a, b in ((level.low, same.low), (level.high, same.high))
    ]
    return (first.probes, first.delta) == (other.probes, other.delta) and all(
        math.isclose(a, b, rel_tol=_SAME, abs_tol=_SAME) for a, b in shares
    )


def _unit(run: str, checkpoint: str, points: Sequence[int] | None) -> _Unit:
    return run, checkpoint, tuple(points or ())


def _words(unit: _Unit) -> str:
    run, checkpoint, points = unit
    part = f", points {points[0]} to {points[1] - 1}" if points else ""
    return f"{run}: {checkpoint}{part}"


def _parts(merge: Merge) -> Iterator[list[Place]]:
    """Yield the places of the parts of each checkpoint, by run and step."""
    by_name: dict[tuple[str, str], list[tuple[tuple[int, ...], Place]]] = {}
    for (run, checkpoint, points), place in merge.units.items():
        by_name.setdefault((run, checkpoint), []).append((points, place))
    for name in merge.runs_and_names:
        places = sorted(by_name[name], key=lambda pair: pair[0])
        whole = [place for points, place in places if not points]
        yield whole or [place for _, place in places]


def _check_whole(part: Place, record: CheckpointRecord) -> None:
    """Check that a checkpoint, which a partial merge may have written, has all points."""
    wanted = len(part.settings["point_indices"])
    for layer in record.layers:
        if len(layer.points.finite) != wanted:
            raise SettingsError(
                f"{part.journal}: {record.checkpoint} of {record.run!r} has values at"
                f" {len(layer.points.finite)} points, but the series has {wanted}.",
                "Merge all parts of it, or analyze the series again with --overwrite.",
            )


def _add(parts: Sequence[Place], output: Output, *, is_complete: bool) -> str:
    """Add a checkpoint in one piece, and return its flaw, if any."""
    head = parts[0].entry.head
    if len(parts) == 1 and head["points"] is None:
        # Most are whole; their line is copied, with the same bytes as after reading and writing it.
        (part,) = parts
        line, body = read_checkpoint(part.journal, part.entry, part.settings)
        record = CheckpointRecord.from_json(head, body)
        if is_complete:
            _check_whole(part, record)
        output.journal.copy(head, line)
        return record.flaw
    loaded = [(place.journal, load(place)) for place in parts]
    record = _join(loaded)
    if parts[0].settings.get("pooled") and not record.is_failed:
        record = with_sums(record, [read_sums(table_of(path), part) for path, part in loaded])
    output.add(record, sync=False)
    return record.flaw


def write_merge(
    merge: Merge, target: Path, command: Sequence[str], *, overwrite: bool
) -> list[str]:
    """Write the table with its journal and manifest, as a single run would.

    Returns:
        What is wrong with checkpoints that failed or gave values that are not finite.
    """
    about = {"merged": sorted({str(place.journal) for place in merge.units.values()})}
    with Output(target, command, overwrite=overwrite) as output:
        for run in sorted(merge.settings):
            output.add_settings(merge.settings[run])
        is_complete = not merge.missing
        added = [_add(parts, output, is_complete=is_complete) for parts in _parts(merge)]
        output.finish(about, is_complete=is_complete)
    return [flaw for flaw in added if flaw]


def _join(parts: Sequence[tuple[Path, CheckpointRecord]]) -> CheckpointRecord:
    records = [record for _, record in parts]
    failed = next((record for record in records if record.is_failed), None)
    first = failed or records[0]
    if failed or len(records) == 1:
        return replace(first, points=None)
    for path, record in parts[1:]:
        if (name := _difference(first, record)) is not None:
            raise SettingsError(
                f"{parts[0][0]} and {path} hold parts of {first.checkpoint} (step {first.step}) of"
                f" {first.run!r} that differ in their {name}.",
                "Compute both again with --overwrite, with one version of localrank.",
            )
    layers = [
        replace(ones[0], points=_concatenate([one.points for one in ones]))
        for ones in zip(*(record.layers for record in records), strict=True)
    ]
    seconds = sum(record.facts.get("seconds") or 0 for record in records)
    facts = first.facts | {"seconds": round(seconds, 4)}
    return replace(first, layers=tuple(layers), facts=facts, points=None)


def _difference(first: CheckpointRecord, other: CheckpointRecord) -> str | None:
    """Return the name of the first value in which two parts of a checkpoint differ, or None."""
    digests = {one.facts.get("sha256_of_tensors") for one in (first, other)}
    if len(digests - {None}) > 1:
        return "weights"
    if [one.facts.layer for one in first.layers] != [one.facts.layer for one in other.layers]:
        return "layers"
    for one, two in zip(first.layers, other.layers, strict=True):
        if one.facts != two.facts:
            name = next(
                key for key, value in vars(one.facts).items() if vars(two.facts)[key] != value
            )
            return f"{name} of layer {one.facts.layer!r}"
        tolerances = [[ranks.tolerance for ranks in layer.points.ranks] for layer in (one, two)]
        if tolerances[0] != tolerances[1]:
            return f"tolerances of layer {one.facts.layer!r}"
    return None


def _concatenate(parts: Sequence[PointMeasures]) -> PointMeasures:
    first = parts[0]
    return PointMeasures(
        n_in=first.n_in,
        n_out=first.n_out,
        finite=tuple(flag for part in parts for flag in part.finite),
        ranks=tuple(
            PointRanks(
                ranks[0].tolerance,
                ranks[0].rtol,
                counts=tuple(count for one in ranks for count in one.counts),
                near=tuple(flag for one in ranks for flag in one.near),
                undecided=tuple(flag for one in ranks for flag in one.undecided),
            )
            for ranks in zip(*(part.ranks for part in parts), strict=True)
        ),
        soft={name: tuple(v for part in parts for v in part.soft[name]) for name in first.soft},
        n_positions=first.n_positions,
        evidence=_joined([part.evidence for part in parts]),
    )


def _joined(parts: Sequence[Evidence | None]) -> Evidence | None:
    """Return the evidence at all points, from which the interval is formed as in a single run."""
    first = parts[0]
    if first is None:
        return None
    points = [point for part in parts if part is not None for point in part.points]
    return replace(first, points=tuple(points))
