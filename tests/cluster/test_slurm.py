"""A real Slurm of one node, where there is one."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.cli.program import QUICK, Outcome, invoke, run
from tests.cli.test_merge import assert_equal
from tests.cluster.slurm import Slurm, running
from tests.helpers import NET_CODE, net_weights, save_series

# Waits at the last checkpoint until a file is there.
WAITS = """
        if self.a.bias[0] > 9:
            import pathlib, time
            pathlib.Path({folder!r}, "waiting").touch()
            while not pathlib.Path({folder!r}, "go").exists():
                time.sleep(0.05)
        return self.b"""
TASK = ("--cluster", "slurm", "--cpus-per-task", "1", "--time", "30")


# They share one Slurm and wait for it most of the time.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with running() as found:
        yield found


@pytest.fixture
def waiting(tmp_path: Path) -> tuple[str, ...]:
    """The arguments that both analyze and submit take; the model waits at the last of three."""
    folder = tmp_path / "series"
    folder.mkdir()
    code = WAITS.format(folder=str(tmp_path)).lstrip("\n")
    (folder / "net.py").write_text(NET_CODE.replace("        return self.b", code))
    for step in range(3):
        bias = {"a.bias": torch.full((3,), 10.0)} if step == 2 else {}
        torch.save(net_weights(step) | bias, folder / f"step_{step}.pt")
    return (str(folder), *QUICK, "--model", f"{folder}/net.py:Net")


def script(slurm: Slurm, tmp_path: Path, *words: str) -> tuple[str, str]:
    """Runs what --dry-run prints; gives the ids of the array and of the merge."""
    printed = run("submit", *words, *TASK, "--dry-run", env=slurm.environment)
    assert printed.code == 0, printed.stderr
    (tmp_path / "submit.sh").write_text(printed.stdout)
    said = slurm.ask("sh", str(tmp_path / "submit.sh")).split()
    return said[2].rstrip(","), said[5].rstrip(";")


def logs(tmp_path: Path, name: str) -> str:
    found = sorted((tmp_path / "ranks.csv.shards/logs").glob(name))
    return "".join(path.read_text() for path in found)


def expected(*words: str) -> str:
    return invoke("analyze", *words).stdout


def test_an_array_of_eight_shards_is_a_single_run(slurm: Slurm, tmp_path: Path) -> None:
    series = save_series(tmp_path / "run", range(8))
    (series / "step_8.safetensors").write_bytes(b"torn")
    words = (str(series), *QUICK, "--on-error", "skip")
    target = tmp_path / "ranks.csv"
    array, merge = script(slurm, tmp_path, *words, "-o", str(target), "--max-tasks", "8")
    tasks = slurm.jobs(array)
    assert len(tasks) == 8
    assert slurm.jobs(merge) == {merge: "PENDING"}  # it runs after the array
    slurm.wait(lambda: not slurm.jobs(array, merge))
    assert_equal(target.read_text(), expected(*words))
    said = logs(tmp_path, "localrank-merge-*.log")
    assert said.count("step_8.safetensors") == 1, said  # a failure is told once
    assert not list((tmp_path / "ranks.csv.shards").glob("shard-*"))


def test_a_task_whose_time_ends_goes_on_in_another_turn(
    slurm: Slurm, tmp_path: Path, waiting: tuple[str, ...]
) -> None:
    target = tmp_path / "ranks.csv"
    words = (*waiting, "-o", str(target), "--max-tasks", "2")
    array, merge = script(slurm, tmp_path, *words)
    slurm.wait((tmp_path / "waiting").exists)
    slurm.ask("scancel", "--signal=USR1", f"{array}_0")  # as Slurm does before the end
    slurm.wait(lambda: "stopped by SIGUSR1" in logs(tmp_path, "localrank-*_0.log"))
    (tmp_path / "go").touch()
    slurm.wait(lambda: not slurm.jobs(array, merge))
    assert "going on: 1 of 2 checkpoints" in logs(tmp_path, "localrank-*_0.log")
    assert_equal(target.read_text(), expected(*waiting))


def submit(slurm: Slurm, *words: str) -> Outcome:
    pytest.importorskip("submitit", reason="submitit is not installed")
    return run("submit", *words, *TASK, env=slurm.environment)


def ids(outcome: Outcome) -> tuple[str, str]:
    words = outcome.stderr.partition("squeue -j ")[2].partition(", logs")[0]
    array, _, merge = words.partition(",")
    return array, merge


def test_submitit_puts_a_preempted_task_into_the_queue_again(
    slurm: Slurm, tmp_path: Path, waiting: tuple[str, ...]
) -> None:
    target = tmp_path / "ranks.csv"
    words = (*waiting, "-o", str(target), "--max-tasks", "2")
    outcome = submit(slurm, *words)
    assert outcome.code == 0, outcome.stderr
    array, merge = ids(outcome)
    slurm.wait((tmp_path / "waiting").exists)
    second = submit(slurm, *words)
    assert second.code == 1
    assert "are at work on it" in second.error
    slurm.ask("scancel", "--signal=USR2", f"{array}_0")
    slurm.wait(lambda: "Requeued job" in logs(tmp_path, "*.out") + logs(tmp_path, "*.err"))
    (tmp_path / "go").touch()
    slurm.wait(lambda: not slurm.jobs(array, merge))
    assert "going on: 1 of 2 checkpoints" in logs(tmp_path, "*.err")
    assert_equal(target.read_text(), expected(*waiting))


def test_after_scancel_the_same_command_goes_on(
    slurm: Slurm, tmp_path: Path, waiting: tuple[str, ...]
) -> None:
    target = tmp_path / "ranks.csv"
    words = (*waiting, "-o", str(target), "--max-tasks", "2")
    array, merge = ids(submit(slurm, *words))
    second = tmp_path / "ranks.csv.shards/shard-00001-of-00002.csv.json"
    slurm.wait(lambda: (tmp_path / "waiting").exists() and second.exists())
    slurm.ask("scancel", array)
    slurm.wait(lambda: not slurm.jobs(array, merge))
    assert not target.exists()
    (tmp_path / "go").touch()
    again = submit(slurm, *words, "--wait")
    assert again.code == 0, again.stderr
    assert "going on: 2 of 3 units" in again.stderr
    assert_equal(target.read_text(), expected(*waiting))


def test_slurm_refuses(slurm: Slurm, tmp_path: Path) -> None:
    series = save_series(tmp_path / "run")
    outcome = submit(
        slurm, str(series), *QUICK, "-o", str(tmp_path / "a.csv"), "--partition", "moon"
    )
    assert outcome.code == 1
    last = outcome.stderr.splitlines()[-1]  # after what sbatch itself says
    assert last.startswith("localrank: error: --cluster slurm: sbatch refused (")


def test_without_slurm(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed")
    series = save_series(tmp_path / "run")
    outcome = run(
        "submit", str(series), *QUICK, "-o", str(tmp_path / "a.csv"), *TASK,
        env={"PATH": str(tmp_path)},
    )  # fmt: skip
    assert outcome.code == 1
    assert "there is no sbatch on this machine" in outcome.error


def test_the_script_is_one_that_a_shell_reads(tmp_path: Path) -> None:
    series = save_series(tmp_path / "it's a run")
    words = ("submit", str(series), *QUICK, "-o", str(tmp_path / "a.csv"), *TASK, "--dry-run")
    more = ("--setup", "module load 'x y'", "--gpus-per-task", "1", "--max-parallel", "2")
    printed = invoke(*words, *more).stdout
    subprocess.run(["sh", "-n"], input=printed, text=True, check=True)
    for line in (
        "#SBATCH --array=0-2%2",
        "#SBATCH --requeue",
        "#SBATCH --signal=USR1@120",
        "#SBATCH --gpus-per-task=1",
        "#SBATCH --time=30",
        "module load 'x y'",
    ):
        assert f"\n{line}\n" in printed
    assert "array=$(sbatch --parsable <<" in printed
    assert '--dependency="afterany:${array%%;*}"' in printed
    assert not (tmp_path / "a.csv.shards").exists()  # nothing was written
