"""A real Slurm of one node, where there is one: arrays, merges and their results."""

import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.program import QUICK, invoke, run
from tests.cli.test_merge import assert_equal, shard
from tests.divide.jobs import TASK, begin, begin_by_hand, expected, logs, submit
from tests.divide.slurm import Slurm
from tests.helpers import net_weights, save_series, weights

# They share one Slurm and wait for it most of the time.
pytestmark = pytest.mark.slow


@pytest.mark.long
def test_an_array_of_eight_shards_is_a_single_run(slurm: Slurm, tmp_path: Path) -> None:
    series = save_series(tmp_path / "run", range(8))
    (series / "step_8.safetensors").write_bytes(b"torn")
    words = (str(series), *QUICK, "--on-error", "skip")
    target = tmp_path / "ranks.csv"
    jobs = begin_by_hand(slurm, tmp_path, *words, "-o", str(target), *TASK, "--max-tasks", "8")
    assert len(slurm.jobs(jobs.array)) == 8
    assert slurm.jobs(jobs.merge) == {jobs.merge: "PENDING"}  # it runs after the array
    jobs.end()
    assert_equal(target.read_text(), expected(*words))
    log = logs(tmp_path, "localrank-merge-*.log")
    assert log.count("step_8.safetensors") == 1, log  # a failure is reported once
    assert not list((tmp_path / "ranks.csv.shards").glob("shard-*"))


@pytest.mark.usefixtures("near_limit")  # it has begun when test_turns.py asks for its end
def test_one_process_two_workers_eight_shards_and_an_array_give_one_table(
    slurm: Slurm, tmp_path: Path
) -> None:
    series = save_series(tmp_path / "run", range(7))
    broken = weights(seed=7)
    broken["0.weight"][0, 0] = float("nan")
    save_file(broken, series / "step_7.safetensors")
    (series / "step_8.safetensors").write_bytes(b"torn")
    words = (str(series), *QUICK, "--on-error", "skip")
    targets = {name: tmp_path / f"{name}.csv" for name in ("one", "two", "eight", "slurm")}
    one = invoke("analyze", *words, "-o", str(targets["one"]))
    two = run("submit", *words, "-o", str(targets["two"]), "--workers", "2", env=slurm.environment)
    for index in range(8):
        shard(series, tmp_path / "parts", index, 8, "--on-error", "skip")
    eight = invoke("merge", str(tmp_path / "parts"), "-o", str(targets["eight"]))
    array = submit(slurm, *words, "-o", str(targets["slurm"]), *TASK, "--max-tasks", "3", "--wait")
    # A failed checkpoint and values that are not finite: the same status everywhere.
    assert [outcome.code for outcome in (one, two, eight, array)] == [3] * 4, array.stderr
    single = targets["one"].read_text()
    for name, target in targets.items():
        assert target.read_text() == single, name


@pytest.mark.long
def test_a_series_that_grows_while_tasks_wait(
    slurm: Slurm, tmp_path: Path, waiting: tuple[str, ...]
) -> None:
    target = tmp_path / "ranks.csv"
    words = (*waiting, "-o", str(target), *TASK, "--max-tasks", "2")
    jobs = begin(slurm, *words, "--max-parallel", "1")
    torch.save(net_weights(9), tmp_path / "series/step_9.pt")  # before the second task begins
    (tmp_path / "go").touch()
    jobs.end()
    assert_equal(target.read_text(), expected(*waiting, "--steps", "0:8"))
    again = submit(slurm, *words, "--wait")
    assert again.code == 0, again.stderr
    assert "of 1 tasks for 1 units" in again.stderr  # nothing is computed twice
    assert_equal(target.read_text(), expected(*waiting))
    done = submit(slurm, *words, "--wait")
    assert done.code == 0
    assert "array job" not in done.stderr


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
    folder = tmp_path / "a.csv.shards/logs"
    assert f"array=$(sbatch --parsable --output={folder}/%x-%A_%a.log <<" in printed
    assert '--dependency="afterany:$array"' in printed
    assert not (tmp_path / "a.csv.shards").exists()  # nothing was written
