"""The folder beside an output in which its parts are computed: `ranks.csv.shards/`.

It holds the plan file, the table of each shard, and `earlier.csv.journal`: the content of the
output when the work was divided. So the merge of the folder is the whole result, whoever runs it.
"""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from localrank_cli.divide.merge import Merge, collect, find_journals, write_merge
from localrank_cli.errors import Note, OutputError, SettingsError, UnreadableError
from localrank_cli.results.journal import Journal, journal_path, read_heads
from localrank_cli.results.lock import OutputLock
from localrank_cli.results.output import check_links
from localrank_cli.results.plan_file import PlanFile, read_plan_file
from localrank_cli.results.record import KIND
from localrank_cli.results.write import (
    make_folder,
    manifest_path,
    real_target,
    refuse_existing,
    remove_temporary_in,
    replacing,
    write_json,
)
from localrank_cli.run.compute import History
from localrank_cli.run.plan import Plan
from localrank_cli.run.resume import Resume, find_resume
from localrank_cli.run.units import make_plan_file

PLAN = "plan.json"
_EARLIER = "earlier.csv"
_OURS = (PLAN, f"{_EARLIER}*", "shard-*-of-*.csv*", "jobs.json*", "submit.sh")


class Progress:
    """Read the lines appended to the journals of a folder since the last call."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reached: dict[Path, int] = {}

    def new(self) -> list[dict[str, Any]]:
        """Return the head of each checkpoint, or part of one, that was finished since."""
        found = []
        for path in filter(Path.is_file, sorted(self._folder.glob("shard-*.journal"))):
            heads, self._reached[path] = read_heads(path, self._reached.get(path, 0))
            found += [head for head in heads if head["kind"] == KIND]
        return found


def kept_heads(folder: Path) -> set[tuple[str, str, str]]:
    """Return run, checkpoint and points of each finished unit that has numbers."""
    return {
        (head["run"], head["checkpoint"], str(head["points"]))
        for head in Progress(folder).new()
        if head["status"] == "ok"
    }


@dataclass(frozen=True)
class ShardFolder:
    """The parts of one output, an absolute path."""

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
        """The folder for the logs of a cluster's tasks."""
        return self.path / "logs"

    @property
    def jobs(self) -> Path:
        """The ids of the jobs that work here."""
        return self.path / "jobs.json"

    @property
    def script(self) -> Path:
        """The script that submitted those jobs."""
        return self.path / "submit.sh"

    @property
    def journal(self) -> Path:
        """The journal of the output."""
        return journal_path(self.target)

    @property
    def earlier(self) -> Path:
        """The journal with the content of the output when the work was divided."""
        return journal_path(self.path / _EARLIER)

    def left(self, plan: Plan, note: Note) -> Plan:
        """Return the part of a plan that the output does not hold yet."""
        return self._resume(plan, note).plan

    def _resume(self, plan: Plan, note: Note) -> Resume:
        if not self.journal.exists():
            return Resume(plan, plan, History(), 0)
        with OutputLock(self.target), Journal(self.journal) as opened:
            return find_resume(plan, opened, note)

    def divide(self, plan: Plan, shards: int, words: Sequence[str], note: Note) -> PlanFile:
        """Divide the remaining work, or return an earlier division of it; write nothing.

        `words` is the command line of analyze, but for what each part has of its own.
        """
        if not self.journal.exists():
            refuse_existing(self.target)
        resume = self._resume(plan, note)
        plan_file = make_plan_file(resume.whole, resume.plan, shards, words, self.target)
        earlier = _earlier(self.plan)
        return earlier if earlier is not None and earlier.is_same_work(plan_file) else plan_file

    def preview(
        self, plan: Plan, shards: int, words: Sequence[str], note: Note, *, overwrite: bool
    ) -> PlanFile:
        """Return what `prepare` would return, and write nothing.

        Raises:
            SettingsError: If `prepare` would have to write first.
        """
        if overwrite:
            return make_plan_file(plan, plan, shards, words, self.target)
        plan_file = self.divide(plan, shards, words, note)
        begun = any(self.path.glob("*.journal"))
        if begun and _earlier(self.plan) != plan_file:
            raise SettingsError(
                f"{self.path}: the parts in it come from a different division, and must be merged"
                f" into {self.target.name} first, but a dry run writes nothing.",
                "Submit without --dry-run, or discard them with --overwrite.",
            )
        return plan_file

    def prepare(
        self, plan: Plan, shards: int, words: Sequence[str], note: Note, *, overwrite: bool
    ) -> PlanFile:
        """Write the plan file, or continue an earlier division of the same work.

        Returns:
            The content of the plan file; if it lists no units, nothing is left to do.
        """
        if overwrite:
            self._discard()
        plan_file = self.divide(plan, shards, words, note)
        if self.plan.exists():
            if _earlier(self.plan, note) == plan_file:
                if done := len(kept_heads(self.path)):
                    note(f"resuming: {done} of {plan_file.n_units} units are already finished")
                return plan_file
            # The series has grown, or the division has changed: finished units are moved into the
            # output, and the rest is divided again.
            self.fold(words)
            plan_file = self.divide(plan, shards, words, note)
        self.clear()
        make_folder(self.path)
        if self.journal.exists():
            with self.journal.open("rb") as source, replacing(self.earlier, binary=True) as copy:
                shutil.copyfileobj(source, copy)
        write_json(self.plan, plan_file.to_json())
        return plan_file

    def fold(self, command: Sequence[str]) -> None:
        """Merge finished checkpoints of all parts into the output; the manifest names `command`."""
        with ExitStack() as stack:
            for journal in self.path.glob("shard-*.journal"):
                # Raises if a worker still writes this part.
                stack.enter_context(OutputLock(journal.with_suffix("")))
            if not any(self.path.glob("*.journal")):
                return
            merge = collect(find_journals([self.path]))
            _drop_unfinished(merge)
            if merge.units:
                write_merge(merge, self.target, command, overwrite=True)

    def finish(self, plan_file: PlanFile, command: Sequence[str]) -> bool:
        """Merge all parts, and remove the folder; return whether all results are there and finite.

        Raises:
            SettingsError: If a part is missing.
        """
        merge = collect(find_journals([self.path]))
        missing = merge.missing or missing_checkpoints(merge, plan_file)
        if missing:
            raise SettingsError(
                f"{self.path}: {len(missing)} units are missing, the first is {missing[0]}.",
                "Rerun the same command to resume.",
            )
        flaws = write_merge(merge, self.target, command, overwrite=True)
        self.clear()
        return not flaws

    def _discard(self) -> None:
        with OutputLock(self.target):
            check_links(self.target)
            for path in (self.target, self.journal, manifest_path(self.target)):
                real_target(path).unlink(missing_ok=True)
        self.clear()

    def remove_temporary(self) -> None:
        """Remove what killed processes left of files in the folder."""
        remove_temporary_in(self.path, _is_ours)

    def clear(self) -> None:
        """Remove all parts, and the folder itself unless something else (logs) is in it."""
        for pattern in _OURS:
            for path in self.path.glob(pattern):
                if path.is_dir() and not path.is_symlink():
                    raise OutputError(f"{path}: is not a file.", "Remove it.")
                path.unlink(missing_ok=True)
        self.remove_temporary()
        with suppress(OSError):  # it is not empty, and stays
            self.path.rmdir()


def _is_ours(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in _OURS)


def _earlier(path: Path, note: Note = lambda _: None) -> PlanFile | None:
    """Read an earlier plan file; None if there is none, or it cannot be read."""
    try:
        return read_plan_file(path) if path.exists() else None
    except UnreadableError as error:
        note(f"{error.what} The rest is divided again, and finished parts are kept")
        return None


def missing_checkpoints(merge: Merge, plan_file: PlanFile) -> list[str]:
    """Return a line for each checkpoint that a plan lists and no table holds."""
    there = {unit[:2] for unit in merge.units}
    return [
        f"{series.run}: {one.name}"
        for series in plan_file.series
        for one in series.checkpoints
        if (series.run, one.name) not in there
    ]


def _drop_unfinished(merge: Merge) -> None:
    """Drop the parts of each checkpoint of which some parts are missing."""
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
