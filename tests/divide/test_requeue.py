"""Interrupted work resumes in another turn: requeued, killed or cancelled."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.cli.program import invoke
from tests.cli.test_merge import assert_equal
from tests.divide.jobs import (
    TASK,
    begin,
    begin_one_task,
    check_second_turn,
    expected,
    logs,
    submit,
)
from tests.divide.slurm import Slurm

# test_submission.py holds what the script does at each end of a task; test_turns.py, a real Slurm.
pytestmark = [pytest.mark.slow, pytest.mark.long]


def test_a_task_that_slurm_kills_and_starts_again(
    slurm: Slurm, tmp_path: Path, waiting: tuple[str, ...]
) -> None:
    """As after the crash of a node."""
    jobs = begin_one_task(slurm, tmp_path, waiting)
    slurm.ask("scontrol", "requeue", jobs.array)
    check_second_turn(jobs, tmp_path, waiting)


def test_a_turn_without_progress_is_the_last(
    slurm: Slurm, tmp_path: Path, waiting: tuple[str, ...]
) -> None:
    """A checkpoint that takes longer than the time limit would be begun again forever."""
    target = tmp_path / "ranks.csv"
    first = invoke("analyze", *waiting, "-o", str(target), "--steps", "0:2")
    assert first.code == 0, first.stderr
    jobs = begin_one_task(slurm, tmp_path, waiting)
    slurm.ask("scancel", "--signal=USR1", f"{jobs.array}_0")
    jobs.end()
    log = logs(tmp_path, "localrank-*_0.log")
    assert log.count("stopped by SIGUSR1") == 1
    assert "no checkpoint was finished within the time limit. Submit again with more --time" in log
    assert "1 units are missing" in logs(tmp_path, "localrank-merge-*.log")
    (tmp_path / "go").touch()
    words = (*waiting, "-o", str(target), *TASK, "--max-tasks", "1")
    again = submit(slurm, *words, "--time", "60", "--wait")
    assert again.code == 0, again.stderr
    assert_equal(target.read_text(), expected(*waiting))


def test_a_requeue_touches_its_own_task_only(
    slurm: Slurm, tmp_path: Path, waiting: tuple[str, ...]
) -> None:
    """The last task of an array has the number of the array, which means all tasks."""
    target = tmp_path / "ranks.csv"
    words = (*waiting, "-o", str(target), *TASK, "--max-tasks", "2")
    jobs = begin(slurm, *words)
    slurm.wait((tmp_path / "waiting").exists)
    slurm.wait(lambda: "wrote" in logs(tmp_path, "localrank-*_0.log"))
    second = submit(slurm, *words)
    assert second.code == 1
    assert f"Slurm jobs {jobs.array}, {jobs.merge} are still queued or running" in second.error
    assert f"scancel {jobs.array} {jobs.merge}" in second.error
    slurm.ask("scancel", "--signal=USR1", f"{jobs.array}_1")
    slurm.wait(lambda: "stopped by SIGUSR1" in logs(tmp_path, "localrank-*_1.log"))
    (tmp_path / "go").touch()
    jobs.end()
    assert "resuming: 1 of 2 checkpoints" in logs(tmp_path, "localrank-*_1.log")
    assert "resuming" not in logs(tmp_path, "localrank-*_0.log")
    assert_equal(target.read_text(), expected(*waiting))


def test_after_scancel_the_same_command_resumes(
    slurm: Slurm, tmp_path: Path, waiting: tuple[str, ...]
) -> None:
    target = tmp_path / "ranks.csv"
    words = (*waiting, "-o", str(target), *TASK, "--max-tasks", "2")
    jobs = begin(slurm, *words)
    first = tmp_path / "ranks.csv.shards/shard-00000-of-00002.csv.json"
    slurm.wait(lambda: (tmp_path / "waiting").exists() and first.exists())
    slurm.ask("scancel", jobs.array)
    jobs.end()  # what was cancelled does not come back
    assert not target.exists()
    (tmp_path / "go").touch()
    again = submit(slurm, *words, "--wait")
    assert again.code == 0, again.stderr
    assert "resuming: 3 of 4 units" in again.stderr
    assert_equal(target.read_text(), expected(*waiting))


def test_a_task_that_is_killed(slurm: Slurm, tmp_path: Path, waiting: tuple[str, ...]) -> None:
    """When memory runs out, the task fails, the merge names what is missing, nothing is lost."""
    target = tmp_path / "ranks.csv"
    words = (*waiting, "-o", str(target), *TASK, "--max-tasks", "2")
    jobs = begin(slurm, *words)
    slurm.wait((tmp_path / "waiting").exists)
    lock = tmp_path / "ranks.csv.shards/shard-00001-of-00002.csv.lock"
    os.kill(json.loads(lock.read_text())["pid"], signal.SIGKILL)
    jobs.end()
    assert "Killed" in logs(tmp_path, "localrank-*_1.log")
    log = logs(tmp_path, "localrank-merge-*.log")
    assert "missing: series: step_3.pt: started by shard 1/2" in log
    assert "1 units are missing" in log
    (tmp_path / "go").touch()
    again = submit(slurm, *words, "--wait")
    assert again.code == 0, again.stderr
    assert "resuming: 3 of 4 units" in again.stderr
    assert_equal(target.read_text(), expected(*waiting))
