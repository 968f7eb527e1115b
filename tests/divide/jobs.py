"""Submit to the tests' Slurm as a user does, and wait for the jobs."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.cli.program import Outcome, invoke
from tests.cli.test_merge import assert_equal
from tests.divide.slurm import Slurm

TASK = ("--cluster", "slurm", "--cpus-per-task", "1", "--time", "30")


@dataclass(frozen=True)
class Jobs:
    """The jobs of one submission."""

    slurm: Slurm
    array: str
    merge: str

    def end(self) -> None:
        """Wait until both have ended."""
        self.slurm.wait(lambda: not self.slurm.jobs(self.array, self.merge), 240)


def begin(slurm: Slurm, *words: str) -> Jobs:
    """Submit, and return at once."""
    outcome = submit(slurm, *words)
    assert outcome.code == 0, outcome.stderr
    pattern = r"array job (\d+) of \d+ tasks for \d+ units, merge job (\d+); watch them with squeue"
    found = re.search(pattern, outcome.stderr)
    assert found, outcome.stderr
    return Jobs(slurm, *found.groups())


def begin_by_hand(slurm: Slurm, folder: Path, *words: str) -> Jobs:
    """Save what --dry-run prints, and run it."""
    printed = submit(slurm, *words, "--dry-run")
    assert printed.code == 0, printed.stderr
    (folder / "saved.sh").write_text(printed.stdout)
    output = slurm.ask("sh", str(folder / "saved.sh"))
    pattern = r"array job (\d+)\nmerge job (\d+)\nwatch them with: squeue -j \1,\2\n"
    found = re.fullmatch(pattern, output)
    assert found, output
    return Jobs(slurm, *found.groups())


def submit(slurm: Slurm, *words: str) -> Outcome:
    """Run `localrank submit`."""
    return invoke("submit", *words, env=slurm.environment)


def logs(folder: Path, name: str) -> str:
    """Return what tasks wrote."""
    found = sorted((folder / "ranks.csv.shards/logs").glob(name))
    return "".join(path.read_text() for path in found)


def expected(*words: str) -> str:
    """Return the table of a single run."""
    return invoke("analyze", *words).stdout


def begin_one_task(slurm: Slurm, folder: Path, waiting: tuple[str, ...], *more: str) -> Jobs:
    """Submit, and wait until the task has finished three checkpoints and waits at the fourth."""
    words = (*waiting, "-o", str(folder / "ranks.csv"), *TASK, "--max-tasks", "1", *more)
    jobs = begin(slurm, *words)
    slurm.wait((folder / "waiting").exists)
    return jobs


def check_second_turn(jobs: Jobs, folder: Path, waiting: tuple[str, ...]) -> None:
    """Once the task was stopped it resumes, and computes nothing again that was finished."""
    jobs.slurm.wait(lambda: not jobs.slurm.is_running(jobs.array))
    (folder / "go").touch()
    jobs.end()
    check_resumed(folder, waiting)


def check_resumed(folder: Path, waiting: tuple[str, ...]) -> None:
    """The table is whole, and three of its checkpoints are of the first turn."""
    log = logs(folder, "localrank-*_0.log")
    assert "resuming: 3 of 4 checkpoints" in log, log
    assert_equal((folder / "ranks.csv").read_text(), expected(*waiting))
