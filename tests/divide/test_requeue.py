"""What is stopped goes on in another turn: told so by Slurm, preempted, killed or cancelled."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.cli.program import QUICK
from tests.cli.test_merge import assert_equal
from tests.divide.conftest import waiting_series
from tests.divide.jobs import (
    TASK,
    Jobs,
    Submission,
    by_script,
    by_submitit,
    expected,
    logs,
    submit,
)
from tests.divide.slurm import Slurm

pytestmark = pytest.mark.slow

WAYS = {"script": by_script, "submitit": by_submitit}
# Takes all that the node has, of a partition that may take it from others.
URGENT = "#!/bin/sh\n#SBATCH --partition=urgent --cpus-per-task=2 --output=/dev/null\ntrue\n"


@pytest.fixture
def both(slurm: Slurm, tmp_path: Path) -> dict[str, Path]:
    """A folder for each way, in which tasks wait; side by side, to wait for Slurm once."""
    pytest.importorskip("submitit", reason="submitit is not installed")
    return {name: tmp_path / name for name in WAYS}


def begin(slurm: Slurm, both: dict[str, Path], *more: str) -> dict[str, Jobs]:
    """Submits both and waits until their last task does."""
    found = {}
    for name, folder in both.items():
        words = (*waiting_series(folder), "-o", str(folder / "ranks.csv"), *TASK)
        found[name] = WAYS[name](slurm, folder, *words, "--max-tasks", "1", *more)
    for folder in both.values():
        slurm.wait((folder / "waiting").exists)
    return found


def go_on(slurm: Slurm, both: dict[str, Path], jobs: dict[str, Jobs]) -> None:
    """Lets tasks go on once all were stopped."""
    slurm.wait(lambda: all(not slurm.is_running(one.array) for one in jobs.values()))
    for folder in both.values():
        (folder / "go").touch()
    for one in jobs.values():
        one.end()


def check(both: dict[str, Path]) -> None:
    """All is there, and what was finished was not computed again."""
    for name, folder in both.items():
        said = logs(folder, "localrank-*_0.log") + logs(folder, "*.err")
        assert "going on: 3 of 4 checkpoints" in said, (name, said)
        model = ("--model", f"{folder}/series/net.py:Net")
        single = expected(str(folder / "series"), *QUICK, *model)
        assert_equal((folder / "ranks.csv").read_text(), single)


def test_preempted_tasks(slurm: Slurm, both: dict[str, Path], tmp_path: Path) -> None:
    """They get SIGTERM and some grace; Slurm takes those that end within it for failures."""
    jobs = begin(slurm, both)
    (tmp_path / "urgent.sh").write_text(URGENT)
    slurm.ask("sbatch", str(tmp_path / "urgent.sh"))
    go_on(slurm, both, jobs)
    check(both)


def test_tasks_whose_time_ends(slurm: Slurm, both: dict[str, Path]) -> None:
    """Slurm itself tells them: of one minute after a quarter of one, or when it looks next."""
    jobs = begin(slurm, both, "--time", "1")
    go_on(slurm, both, jobs)
    check(both)
    assert "this job is timed-out" in logs(both["submitit"], "*.out")


def test_tasks_that_slurm_kills_and_starts_again(slurm: Slurm, both: dict[str, Path]) -> None:
    """As after the crash of a node."""
    jobs = begin(slurm, both)
    for one in jobs.values():
        slurm.ask("scontrol", "requeue", one.array)
    go_on(slurm, both, jobs)
    check(both)


def test_a_requeue_touches_its_own_task_only(
    slurm: Slurm, tmp_path: Path, waiting: tuple[str, ...]
) -> None:
    """The last task of an array has the number of the array, which means all tasks."""
    target = tmp_path / "ranks.csv"
    jobs = by_script(slurm, tmp_path, *waiting, "-o", str(target), *TASK, "--max-tasks", "2")
    slurm.wait((tmp_path / "waiting").exists)
    slurm.wait(lambda: "wrote" in logs(tmp_path, "localrank-*_0.log"))
    slurm.ask("scancel", "--signal=USR1", f"{jobs.array}_1")
    slurm.wait(lambda: "stopped by SIGUSR1" in logs(tmp_path, "localrank-*_1.log"))
    (tmp_path / "go").touch()
    jobs.end()
    assert "going on: 1 of 2 checkpoints" in logs(tmp_path, "localrank-*_1.log")
    assert "going on" not in logs(tmp_path, "localrank-*_0.log")
    assert_equal(target.read_text(), expected(*waiting))


def test_submitit_puts_a_task_that_is_told_into_the_queue_again(
    slurm: Slurm, tmp_path: Path, waiting: tuple[str, ...]
) -> None:
    target = tmp_path / "ranks.csv"
    words = (*waiting, "-o", str(target), *TASK, "--max-tasks", "2")
    jobs = by_submitit(slurm, tmp_path, *words)
    slurm.wait((tmp_path / "waiting").exists)
    second = submit(slurm, *words)
    assert second.code == 1
    assert "are at work on it" in second.error
    slurm.ask("scancel", "--signal=USR2", f"{jobs.array}_1")
    slurm.wait(lambda: "Requeued job" in logs(tmp_path, "*.out") + logs(tmp_path, "*.err"))
    (tmp_path / "go").touch()
    jobs.end()
    assert "going on: 1 of 2 checkpoints" in logs(tmp_path, "*.err")
    assert_equal(target.read_text(), expected(*waiting))


@pytest.mark.parametrize("way", WAYS)
def test_after_scancel_the_same_command_goes_on(
    slurm: Slurm, tmp_path: Path, waiting: tuple[str, ...], way: str
) -> None:
    target = tmp_path / "ranks.csv"
    words = (*waiting, "-o", str(target), *TASK, "--max-tasks", "2")
    begin_way: Submission = WAYS[way]
    jobs = begin_way(slurm, tmp_path, *words)
    first = tmp_path / "ranks.csv.shards/shard-00000-of-00002.csv.json"
    slurm.wait(lambda: (tmp_path / "waiting").exists() and first.exists())
    slurm.ask("scancel", jobs.array)
    jobs.end()  # what was cancelled does not come back
    assert not target.exists()
    (tmp_path / "go").touch()
    again = submit(slurm, *words, "--wait")
    assert again.code == 0, again.stderr
    assert "going on: 3 of 4 units" in again.stderr
    assert_equal(target.read_text(), expected(*waiting))


def test_a_task_that_is_killed(slurm: Slurm, tmp_path: Path, waiting: tuple[str, ...]) -> None:
    """As when memory runs out: it failed, the merge says what is missing, nothing is lost."""
    target = tmp_path / "ranks.csv"
    words = (*waiting, "-o", str(target), *TASK, "--max-tasks", "2")
    jobs = by_submitit(slurm, tmp_path, *words)
    slurm.wait((tmp_path / "waiting").exists)
    lock = tmp_path / "ranks.csv.shards/shard-00001-of-00002.csv.lock"
    os.kill(json.loads(lock.read_text())["pid"], signal.SIGKILL)
    jobs.end()
    said = logs(tmp_path, "*.err")
    assert "localrank ended with status -9" in said
    assert "missing: series: step_3.pt: begun by shard 1/2" in said
    assert "1 units are missing" in said
    (tmp_path / "go").touch()
    again = submit(slurm, *words, "--wait")
    assert again.code == 0, again.stderr
    assert "going on: 3 of 4 units" in again.stderr
    assert_equal(target.read_text(), expected(*waiting))
