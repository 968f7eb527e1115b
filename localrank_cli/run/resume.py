"""Resume an earlier run of the same command, and refuse to mix two analyses."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any

from localrank_cli.checkpoints.reading import footprint_of
from localrank_cli.errors import Note, SettingsError
from localrank_cli.options.decisive import PRECISION, find_difference
from localrank_cli.results.journal import GONE, Entry, Journal
from localrank_cli.results.record import KIND, SETTINGS, SHARD, CheckpointRecord
from localrank_cli.run.compute import History, hash_of
from localrank_cli.run.headers import PlannedCheckpoint, load_state
from localrank_cli.run.plan import Plan, SeriesPlan, series_settings, with_measures_of
from localrank_cli.run.units import Division
from localrank_cli.spectrum.layer import EXACT_FLOAT32

_ADVICE = "Give another name with -o, or start over with --overwrite."

_Key = tuple[str, str, tuple[int, ...] | None]
_IsKept = Callable[[str, PlannedCheckpoint], bool]


@dataclass(frozen=True)
class Resume:
    """The work that is left."""

    whole: Plan  # with the measures that the earlier results hold
    plan: Plan  # without the finished checkpoints
    history: History
    n_done: int  # finished checkpoints of this plan


def find_resume(plan: Plan, journal: Journal, note: Note, is_kept: _IsKept | None = None) -> Resume:
    """Return what is left of a plan after what the journal of the same output holds.

    `is_kept` returns whether further files (singular values, say) of a run's checkpoint are there.

    Raises:
        SettingsError: If the journal is of another analysis, or a finished checkpoint has changed.
    """
    journal.check_settings()
    plan = _as_begun(plan, journal, note)
    entries = {_key(entry): entry for entry in journal.entries(KIND)}
    check_settings(plan, entries.values(), journal)
    left, n_done = [], 0
    for series in plan.series:
        checkpoints = []
        for checkpoint in series.checkpoints:
            found = entries.get((series.run, checkpoint.file.name, checkpoint.points))
            kept = is_kept is None or is_kept(series.run, checkpoint)
            if found is not None and _is_done(checkpoint, found, plan, journal) and kept:
                n_done += 1
            else:
                checkpoints.append(checkpoint)
        left.append(replace(series, checkpoints=tuple(checkpoints)))
    _note_vanished(plan, journal, note)
    if n_done:
        note(f"resuming: {n_done} of {plan.n_checkpoints} checkpoints are already finished")
    return Resume(plan, replace(plan, series=tuple(left)), _history(entries.values()), n_done)


def _as_begun(plan: Plan, journal: Journal, note: Note) -> Plan:
    saved = {entry.head["run"]: entry for entry in journal.entries(SETTINGS)}
    found = []
    for series in plan.series:
        begun = series
        if series.run in saved:
            begun = with_measures_of(series, journal.body(saved[series.run]))
        if newer := [name for name in series.settings.measured if name in begun.settings.newer]:
            note(
                f"{series.run}: was started before localrank had {', '.join(newer)}, which stays"
                " empty; --overwrite computes everything again"
            )
        found.append(begun)
    return replace(plan, series=tuple(found))


def check_settings(plan: Plan, entries: Collection[Entry], journal: Journal) -> None:
    """Check that a plan has the settings with which a journal was begun.

    Raises:
        SettingsError: If it has others.
    """
    saved = {entry.head["run"]: entry for entry in journal.entries(SETTINGS)}
    for series in plan.series:
        if series.run in saved:
            settings = journal.body(saved[series.run])
            _compare(series, settings, journal)
            _check_precision(series, settings, entries, journal)
            finished = {
                entry.head["checkpoint"]: (entry.head["step"], entry.head["facts"]["epoch"])
                for entry in entries
                if entry.head["run"] == series.run and "epoch" in entry.head["facts"]
            }
            series.scheme.check_finished(finished, journal.path)


def _history(entries: Iterable[Entry]) -> History:
    history = History()
    for entry in sorted(entries, key=lambda entry: entry.head["step"] or 0):
        digest = entry.head["facts"].get("sha256_of_tensors")
        if digest is not None:
            this = f"{entry.head['checkpoint']} (step {entry.head['step']})"
            history.weights.setdefault((entry.head["run"], digest), this)
    return history


def check_shard(division: Division | None, journal: Journal) -> None:
    """Check that a journal belongs to the same part of the same work; None is all of it.

    Raises:
        SettingsError: If it does not.
    """
    entries = journal.entries(SHARD)
    saved = journal.body(entries[0]) if entries else None
    now = division.to_json() if division is not None else None
    if journal.is_new or saved == now:
        return
    names = [f"shard {one['index']}/{one['count']}" if one else "no shard" for one in (saved, now)]
    if saved and now and names[0] == names[1]:
        names = [f"{names[0]} of {one['n_units']} units" for one in (saved, now)]
    raise SettingsError(
        f"{journal.path}: was started as {names[0]} and is now {names[1]}; a series that grows is"
        " divided again.",
        _ADVICE,
    )


def record_settings(plan: Plan, journal: Journal, division: Division | None) -> None:
    """Append the settings of each series that the journal does not hold yet."""
    if division is not None and not journal.entries(SHARD):
        journal.append({"kind": SHARD}, division.to_json())
    there = {entry.head["run"] for entry in journal.entries(SETTINGS)}
    for series in plan.series:
        if series.run not in there:
            journal.append({"kind": SETTINGS, "run": series.run}, series_settings(series))


def _compare(series: SeriesPlan, saved: Mapping[str, Any], journal: Journal) -> None:
    compare_settings(series.run, saved, series_settings(series), journal)


def compare_settings(
    run: str, saved: Mapping[str, Any], now: Mapping[str, Any], journal: Journal
) -> None:
    """Check that settings are those that a journal holds of a run.

    Raises:
        SettingsError: If one that decides numbers differs.
    """
    found = find_difference(saved, now)
    if found is not None:
        raise SettingsError(
            f"{journal.path}: was started with different settings for {run!r}: {found.sentence}.",
            f"{found.advice}{_ADVICE}",
        )


def _check_precision(
    series: SeriesPlan, saved: Mapping[str, Any], entries: Iterable[Entry], journal: Journal
) -> None:
    """Refuse rows from before float64 answered requests for float32: theirs are rounded more.

    Those of checkpoints that no longer exist are kept, so that they count too.
    """
    if series.examination.survey.has_low_precision:
        return  # it would be rounded as much today
    if saved.get(PRECISION) == series_settings(series)[PRECISION]:
        return
    for entry in entries:
        if entry.head["run"] != series.run or entry.head["status"] != "ok":
            continue
        if CheckpointRecord.from_json(entry.head, journal.body(entry)).is_in_float32:
            raise SettingsError(
                f"{journal.path}: {entry.head['checkpoint']} was partly computed in float32"
                f" ({EXACT_FLOAT32}) by an earlier version; this version computes it in float64.",
                _ADVICE,
            )


def _is_done(checkpoint: PlannedCheckpoint, entry: Entry, plan: Plan, journal: Journal) -> bool:
    head = entry.head
    if head["status"] != "ok":
        return False
    if head["step"] != checkpoint.step:
        raise SettingsError(
            f"{journal.path}: {checkpoint.file.name} was step {head['step']} and is now step"
            f" {checkpoint.step}.",
            _ADVICE,
        )
    stat = footprint_of(checkpoint.file)
    facts = head["facts"]
    if "sha256_of_tensors" not in facts:
        raise SettingsError(
            f"{journal.path}: does not say which weights {checkpoint.file.name} had: it was counted"
            " from singular values that an older version kept.",
            _ADVICE,
        )
    if (facts["bytes"], facts["mtime_ns"], facts.get("pin", "")) == astuple(stat):
        return True
    if hash_of(load_state(checkpoint, plan.trust_pickle)) == facts["sha256_of_tensors"]:
        # The file was only touched or copied: noted, so that it is not hashed at every start.
        facts = facts | {"bytes": stat.size, "mtime_ns": stat.mtime_ns}
        facts |= {"pin": stat.pin} if stat.pin else {}
        journal.append(head | {"facts": facts}, journal.body(entry))
        return True
    raise SettingsError(
        f"{checkpoint.place}: its weights changed since it was analyzed for {journal.path}.",
        _ADVICE,
    )


def _note_vanished(plan: Plan, journal: Journal, note: Note) -> None:
    planned = {series.run: series.names for series in plan.series}
    for entry in journal.entries(KIND):
        run, checkpoint = entry.head["run"], entry.head["checkpoint"]
        if checkpoint in planned.get(run, {checkpoint}):
            continue
        if entry.head["status"] == "ok":
            note(f"{run}: {checkpoint} no longer exists; its rows are kept")
        else:
            note(f"{run}: {checkpoint}, which failed, no longer exists; its row is dropped")
            journal.append(entry.head | {"status": GONE}, {})


def _key(entry: Entry) -> _Key:
    points = entry.head["points"]
    return entry.head["run"], entry.head["checkpoint"], tuple(points) if points else None
