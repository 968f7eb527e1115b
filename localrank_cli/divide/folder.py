"""The folder beside an output in which its parts are made: `ranks.csv.shards/`.

It holds the plan file, the table of each shard, and `earlier.csv.journal`: what the output held
when the work was divided. So the merge of the folder is the whole result, whoever merges it.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localrank_cli.divide.merge import Merge, collect, find_journals, write_merged
from localrank_cli.errors import Note, SettingsError, UnreadableError
from localrank_cli.results.journal import Journal, journal_path, read_heads
from localrank_cli.results.lock import OutputLock
from localrank_cli.results.plan_file import PlanFile, read_plan_file
from localrank_cli.results.record import KIND
from localrank_cli.results.write import (
    make_folder,
    manifest_path,
    refuse_existing,
    replacing,
    write_json,
)
from localrank_cli.run.plan import Plan
from localrank_cli.run.resume import find_resume
from localrank_cli.run.units import freeze


class Progress:
    """Reads what was appended since the last look.

    Args:
        folder: With the tables of all shards.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reached: dict[Path, int] = {}

    def new(self) -> list[dict[str, Any]]:
        """Looks.

        Returns:
            The head of each checkpoint, or part of one, that was finished since.
        """
        found = []
        for path in sorted(self._folder.glob("shard-*.journal")):
            heads, self._reached[path] = read_heads(path, self._reached.get(path, 0))
            found += [head for head in heads if head["kind"] == KIND]
        return found


def kept_heads(folder: Path) -> set[tuple[str, str, str]]:
    """Tells what is finished.

    Args:
        folder: With the tables of all shards.

    Returns:
        Run, checkpoint and points of each unit that has numbers.
    """
    return {
        (head["run"], head["checkpoint"], str(head["points"]))
        for head in Progress(folder).new()
        if head["status"] == "ok"
    }


PLAN = "plan.json"
_EARLIER = "earlier.csv"
_OURS = (PLAN, f"{_EARLIER}*", "shard-*-of-*.csv*", "jobs.json")


@dataclass(frozen=True)
class ShardFolder:
    """The parts of one output.

    Args:
        target: The output, absolute.
    """

    target: Path

    @property
    def path(self) -> Path:
        """The folder."""
        return self.target.with_name(self.target.name + ".shards")

    @property
    def plan(self) -> Path:
        """The plan file in it."""
        return self.path / PLAN

    @property
    def logs(self) -> Path:
        """Where the tasks of a cluster write what they say."""
        return self.path / "logs"

    @property
    def jobs(self) -> Path:
        """The ids of the jobs that work here."""
        return self.path / "jobs.json"

    @property
    def earlier(self) -> Path:
        """What the output held when the work was divided."""
        return journal_path(self.path / _EARLIER)

    def left(self, plan: Plan, note: Note) -> Plan:
        """What of a plan the output does not hold yet.

        Args:
            plan: All that was asked for.
            note: Takes each note for the user.

        Returns:
            The plan without finished checkpoints.
        """
        journal = journal_path(self.target)
        if not journal.exists():
            return plan
        with OutputLock(self.target), Journal(journal) as opened:
            return find_resume(plan, opened, note).plan

    def freeze(self, plan: Plan, shards: int, words: Sequence[str], note: Note) -> PlanFile:
        """Divides what is left to do, and writes nothing.

        Args:
            plan: All that was asked for.
            shards: In how many parts.
            words: The command line of analyze, but for what each part has of its own.
            note: Takes each note for the user.

        Returns:
            The plan file's content.
        """
        return freeze(plan, self.left(plan, note), shards, words, self.target)

    def prepare(
        self, plan: Plan, shards: int, words: Sequence[str], note: Note, *, overwrite: bool
    ) -> PlanFile:
        """Divides what is left to do, or goes on with an earlier division of the same.

        Args:
            plan: All that was asked for.
            shards: In how many parts.
            words: The command line of analyze, but for what each part has of its own.
            note: Takes each note for the user.
            overwrite: Whether to discard what is there.

        Returns:
            The plan file's content; nothing is left to do where it lists no checkpoint.
        """
        if overwrite:
            self._discard()
        elif not journal_path(self.target).exists():
            refuse_existing(self.target)
        frozen = self.freeze(plan, shards, words, note)
        if self.plan.exists():
            earlier = _earlier(self.plan, note)
            if earlier is not None and earlier.is_same_work(frozen):
                done = len(kept_heads(self.path))
                if done:
                    note(f"going on: {done} of {frozen.n_units} units are finished already")
                return earlier
            # The series has grown, or the work is divided otherwise: what is finished is taken
            # over, and the rest divided anew.
            self.fold(words)
            frozen = self.freeze(plan, shards, words, note)
        self.clear()
        make_folder(self.path)
        journal = journal_path(self.target)
        if journal.exists():
            with journal.open("rb") as source, replacing(self.earlier, binary=True) as copy:
                shutil.copyfileobj(source, copy)
        write_json(self.plan, frozen.to_json())
        return frozen

    def fold(self, command: Sequence[str]) -> None:
        """Takes finished checkpoints of all parts over into the output.

        Args:
            command: The command line, for the manifest.
        """
        with ExitStack() as stack:
            for journal in self.path.glob("shard-*.journal"):
                # Refuses where a part is still at work.
                stack.enter_context(OutputLock(journal.with_suffix("")))
            if not any(self.path.glob("*.journal")):
                return
            merge = collect(find_journals([self.path]))
            _drop_unfinished(merge)
            if merge.units:
                write_merged(merge, self.target, command, overwrite=True)

    def finish(self, frozen: PlanFile, command: Sequence[str]) -> bool:
        """Merges all parts, and removes the folder.

        Args:
            frozen: The plan file's content.
            command: The command line, for the manifest.

        Returns:
            Whether no checkpoint failed or gave values that are not finite.

        Raises:
            SettingsError: If a part is missing.
        """
        merge = collect(find_journals([self.path]))
        missing = merge.missing or missing_checkpoints(merge, frozen)
        if missing:
            raise SettingsError(
                f"{self.path}: {len(missing)} units are missing, the first is {missing[0]}.",
                "The same command goes on from there.",
            )
        flaws = write_merged(merge, self.target, command, overwrite=True)
        self.clear()
        return not flaws

    def _discard(self) -> None:
        with OutputLock(self.target):
            for path in (self.target, journal_path(self.target), manifest_path(self.target)):
                path.unlink(missing_ok=True)
        self.clear()

    def clear(self) -> None:
        """Removes all parts, and the folder where nothing else (logs) is in it."""
        for pattern in _OURS:
            for path in self.path.glob(pattern):
                path.unlink(missing_ok=True)
        with suppress(OSError):
            os.rmdir(self.path)  # noqa: PTH106  # what is not empty stays


def _earlier(path: Path, note: Note) -> PlanFile | None:
    """Read an earlier plan; one that cannot be read is made anew."""
    try:
        return read_plan_file(path)
    except UnreadableError as error:
        note(f"{error.what} The work is divided anew, and what is finished is kept")
        return None


def missing_checkpoints(merge: Merge, frozen: PlanFile) -> list[str]:
    """Finds what a plan lists and no table holds.

    Args:
        merge: From `collect`.
        frozen: The plan.

    Returns:
        A line for each.
    """
    there = {unit[:2] for unit in merge.units}
    return [
        f"{series.run}: {one.name}"
        for series in frozen.series
        for one in series.checkpoints
        if (series.run, one.name) not in there
    ]


def _drop_unfinished(merge: Merge) -> None:
    """Of a checkpoint divided by points all parts must be there."""
    parts: dict[tuple[str, str], list[tuple[int, ...]]] = {}
    for run, name, points in merge.units:
        if points:
            parts.setdefault((run, name), []).append(points)
    for (run, name), found in parts.items():
        reached = 0
        for low, high in sorted(found):
            reached = high if low == reached else reached
        if reached != len(merge.settings[run]["point_indices"]):
            for points in found:
                del merge.units[run, name, points]
