"""Writes what shards hold together as one table."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from localrank_cli.measures.points import PointMeasures, PointRanks
from localrank_cli.pipeline.finished import write_finished
from localrank_cli.pipeline.going_on import SETTINGS
from localrank_cli.pipeline.merge import Merge, Place, load
from localrank_cli.table.journal import Journal
from localrank_cli.table.journal_lines import read_line
from localrank_cli.table.record import CheckpointRecord, LayerRecord


def _parts(merge: Merge) -> Iterator[list[Place]]:
    """Where the parts of each checkpoint stand, by run and step."""
    by_name: dict[tuple[str, str], list[tuple[tuple[int, ...], Place]]] = {}
    for (run, checkpoint, points), place in merge.units.items():
        by_name.setdefault((run, checkpoint), []).append((points, place))
    for name in merge.runs_and_names:
        places = sorted(by_name[name], key=lambda pair: pair[0])
        whole = [place for points, place in places if not points]
        yield whole or [place for _, place in places]


def _add(parts: Sequence[Place], journal: Journal) -> str:
    """Puts a checkpoint together; tells its flaw, if any."""
    head = parts[0].entry.head
    if len(parts) == 1 and head["points"] is None:
        # Most are whole, and their line is what it would be if it were read and written again.
        journal.copy(head, read_line(parts[0].journal, parts[0].entry))
        return "" if head["finite"] else load(parts[0]).flaw
    record = _joined([load(place) for place in parts])
    journal.append(*record.to_json(), sync=False)
    return record.flaw


def write_merged(
    merge: Merge, target: Path, command: Sequence[str], *, overwrite: bool
) -> list[str]:
    """Writes the table with its journal and manifest, as a single run would.

    Args:
        merge: From `collect`.
        target: The table.
        command: The command line.
        overwrite: Whether to discard what is there.

    Returns:
        What is wrong with checkpoints that failed or gave values that are not finite.
    """
    flaws: list[str] = []

    def fill(journal: Journal) -> None:
        for run in sorted(merge.settings):
            journal.append({"kind": SETTINGS, "run": run}, merge.settings[run], sync=False)
        flaws.extend(flaw for parts in _parts(merge) if (flaw := _add(parts, journal)))

    about = {
        "complete": not merge.missing,
        "merged": sorted({str(place.journal) for place in merge.units.values()}),
    }
    write_finished(target, fill, command, about, overwrite=overwrite)
    return flaws


def _joined(records: Sequence[CheckpointRecord]) -> CheckpointRecord:
    failed = next((record for record in records if record.is_failed), None)
    first = failed or records[0]
    if failed or len(records) == 1:
        return replace(first, points=None)
    layers = [
        LayerRecord(parts[0].facts, _concatenated([part.points for part in parts]), parts[0].cells)
        for parts in zip(*(record.layers for record in records), strict=True)
    ]
    seconds = sum(record.facts["seconds"] for record in records)
    facts = first.facts | {"seconds": round(seconds, 4)}
    return replace(first, layers=tuple(layers), facts=facts, points=None)


def _concatenated(parts: Sequence[PointMeasures]) -> PointMeasures:
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
    )
