"""Submit to the tests' Slurm as a user does, and wait for the jobs."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.cli.program import Outcome, invoke, run_cold
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
    return run_cold("submit", *words, env=slurm.environment)


def logs(folder: Path, name: str) -> str:
    """Return what tasks wrote."""
    found = sorted((folder / "ranks.csv.shards/logs").glob(name))
    return "".join(path.read_text() for path in found)


def expected(*words: str) -> str:
    """Return the table of a single run."""
    return invoke("analyze", *words).stdout
