"""Hands work to the tests' Slurm as a user does: by submitit, or by the script of --dry-run."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.program import Outcome, invoke, run
from tests.divide.slurm import Slurm

TASK = ("--cluster", "slurm", "--cpus-per-task", "1", "--time", "30")


@dataclass(frozen=True)
class Jobs:
    """What was submitted."""

    slurm: Slurm
    array: str
    merge: str

    def end(self) -> None:
        """Waits until both have ended."""
        self.slurm.wait(lambda: not self.slurm.jobs(self.array, self.merge), 240)


Submission = Callable[..., Jobs]


def by_script(slurm: Slurm, folder: Path, *words: str) -> Jobs:
    """Runs what --dry-run prints."""
    printed = run("submit", *words, "--dry-run", env=slurm.environment)
    assert printed.code == 0, printed.stderr
    (folder / "submit.sh").write_text(printed.stdout)
    said = slurm.ask("sh", str(folder / "submit.sh"))
    return _jobs(slurm, said, r"array job (\d+), merge job (\d+); watch them with: squeue -j \1,\2")


def by_submitit(slurm: Slurm, folder: Path, *words: str) -> Jobs:
    """Submits."""
    outcome = submit(slurm, *words)
    assert outcome.code == 0, outcome.stderr
    pattern = r"array job (\d+) of \d+ tasks for \d+ units, merge job (\d+); watch them with squeue"
    return _jobs(slurm, outcome.stderr, pattern)


def _jobs(slurm: Slurm, said: str, pattern: str) -> Jobs:
    found = re.search(pattern, said)
    assert found, said
    return Jobs(slurm, *found.groups())


def submit(slurm: Slurm, *words: str) -> Outcome:
    """Runs `localrank submit`."""
    pytest.importorskip("submitit", reason="submitit is not installed")
    return run("submit", *words, env=slurm.environment)


def logs(folder: Path, name: str) -> str:
    """What tasks said."""
    found = sorted((folder / "ranks.csv.shards/logs").glob(name))
    return "".join(path.read_text() for path in found)


def expected(*words: str) -> str:
    """The table of a single run."""
    return invoke("analyze", *words).stdout
