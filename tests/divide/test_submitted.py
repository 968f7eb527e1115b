"""The jobs that are submitted to Slurm, and submissions of which it accepts only one job."""

import contextlib
import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.cli.program import QUICK, invoke, start
from tests.cli.test_merge import assert_equal
from tests.divide.jobs import TASK, begin, expected, logs, submit
from tests.divide.slurm import Slurm
from tests.helpers import save_series

pytestmark = pytest.mark.slow


def test_slurm_gets_the_requested_options(slurm: Slurm, tmp_path: Path) -> None:
    series = save_series(tmp_path / "it's a run", range(5))
    out = tmp_path / "it's 100% `out`\n$HOME %j"
    out.mkdir()
    target = out / "ranks.csv"
    more = ("--max-parallel", "1", "--max-tasks", "2", "--gpus-per-task", "1", "--mem", "100MB")
    setup = ("--setup", f"echo set up >> '{tmp_path}/setup'", "--partition", "main")
    jobs = begin(slurm, str(series), *QUICK, "-o", str(target), *TASK, *more, *setup)
    job = slurm.ask("scontrol", "show", "job", jobs.array)
    for words in (
        "ArrayTaskThrottle=1", "TresPerTask=gres:gpu:1", "MinMemoryNode=100M", "Partition=main",
        "TimeLimit=00:30:00", "CPUs/Task=1", "Requeue=1",
    ):  # fmt: skip
        assert words in job, job
    after = slurm.ask("scontrol", "show", "job", jobs.merge)
    assert f"Dependency=afterany:{jobs.array}_*" in after
    assert "TresPerTask" not in after
    assert "TimeLimit=00:30:00" in after  # some clusters accept no job without one
    jobs.end()
    assert (tmp_path / "setup").read_text() == "set up\n" * 3  # each task and the merge
    if not torch.cuda.is_available():  # the GPU is one in name only
        log = logs(out, "*.log")
        assert "localrank: error: --device cuda: " in log, log
        assert not target.exists()


def test_an_array_is_no_longer_than_slurm_allows(slurm: Slurm, tmp_path: Path) -> None:
    series = save_series(tmp_path / "run", range(110))
    words = ("submit", str(series), *QUICK, "-o", str(tmp_path / "a.csv"), *TASK, "--dry-run")
    printed = invoke(*words, "--max-tasks", "500", env=slurm.environment)
    assert "#SBATCH --array=0-99\n" in printed.stdout  # MaxArraySize=100
    assert "# 110 checkpoints, 110 units left to do, in 100 tasks." in printed.stdout


def test_slurm_refuses(slurm: Slurm, tmp_path: Path) -> None:
    series = save_series(tmp_path / "run")
    words = (str(series), *QUICK, "-o", str(tmp_path / "a.csv"), "--partition", "moon")
    outcome = submit(slurm, *words, *TASK)
    assert outcome.code == 1
    message = (
        "--cluster slurm: nothing was submitted (sbatch: error: invalid partition specified: moon"
    )
    assert message in outcome.error
    assert "Check --partition" in outcome.error
    assert not (tmp_path / "a.csv.shards/jobs.json").exists()


@pytest.fixture
def half(slurm: Slurm, tmp_path: Path) -> Slurm:
    """A Slurm whose sbatch refuses merge jobs, as one does when too many jobs are in the queue."""
    real = shutil.which("sbatch", path=slurm.environment["PATH"])
    assert real is not None
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text(
        "#!/bin/sh\n"
        f"cat > {folder}/job.$$\n"
        f"if grep -q job-name=localrank-merge {folder}/job.$$; then\n"
        "  echo 'sbatch: error: Job violates accounting policy' >&2; exit 1\nfi\n"
        f'exec {real} "$@" {folder}/job.$$\n'
    )
    (folder / "sbatch").chmod(0o755)
    return replace(slurm, before_path=f"{folder}:")


def check_array(slurm: Slurm, tmp_path: Path, words: tuple[str, ...], array: str) -> None:
    """The array is written down, so that no other submission works beside it."""
    assert json.loads((tmp_path / "ranks.csv.shards/jobs.json").read_text()) == {"array": array}
    slurm.wait((tmp_path / "waiting").exists)
    second = submit(slurm, *words)
    assert second.code == 1
    assert f"Slurm jobs {array} are still queued or running" in second.error
    (tmp_path / "go").touch()
    slurm.wait(lambda: not slurm.jobs(array), 240)


ALONE = (
    r"localrank: error: array job (\d+) was accepted and is waiting or running, but the merge job"
    r" was not submitted%s\. When the array has ended, merge by hand: (.*);"
    r" or stop it: scancel \1\n"
)


def test_the_merge_alone_is_refused(half: Slurm, tmp_path: Path, waiting: tuple[str, ...]) -> None:
    target = tmp_path / "ranks.csv"
    words = (*waiting, "-o", str(target), *TASK, "--max-tasks", "2")
    outcome = submit(half, *words)
    assert outcome.code == 1
    reason = r" \(sbatch: error: Job violates accounting policy\)"
    match = re.search(ALONE % reason, outcome.stderr)
    assert match, outcome.stderr
    check_array(half, tmp_path, words, match[1])
    subprocess.run(shlex.split(match[2]), env=half.environment, check=True, capture_output=True)
    assert_equal(target.read_text(), expected(*waiting))
    assert not (tmp_path / "ranks.csv.shards/jobs.json").exists()


@pytest.mark.long
def test_the_merge_of_a_saved_script_is_refused(
    half: Slurm, tmp_path: Path, waiting: tuple[str, ...]
) -> None:
    target = tmp_path / "ranks.csv"
    words = (*waiting, "-o", str(target), *TASK, "--max-tasks", "2")
    script = submit(half, *words, "--dry-run").stdout

    def by_hand() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["sh"], input=script, env=half.environment, capture_output=True, text=True, check=False
        )

    done = by_hand()
    assert done.returncode == 1
    match = re.fullmatch(r"sbatch: error: .*\n" + ALONE % "", done.stderr)
    assert match, done.stderr
    again = by_hand()  # the script itself refuses too
    assert again.returncode == 1
    assert f"Slurm jobs {match[1]} are still queued or running" in again.stderr
    assert f"stop them with scancel {match[1]}." in again.stderr
    check_array(half, tmp_path, words, match[1])
    subprocess.run(shlex.split(match[2]), env=half.environment, check=True, capture_output=True)
    assert_equal(target.read_text(), expected(*waiting))


def test_every_task_has_the_cores_that_it_asked_for(
    slurm: Slurm, tmp_path: Path, waiting: tuple[str, ...]
) -> None:
    """A step of srun gets one core by default, whatever the job has."""
    words = (*waiting, "-o", str(tmp_path / "ranks.csv"), *TASK[:2], "--cpus-per-task", "2")
    jobs = begin(slurm, *words, "--max-tasks", "1")
    try:
        slurm.wait((tmp_path / "waiting").exists)
        steps = slurm.ask("scontrol", "show", "step", jobs.array)
    finally:
        slurm.ask("scancel", jobs.array, jobs.merge)
        jobs.end()
    (own,) = [text for text in steps.split("StepId=") if text.startswith(f"{jobs.array}_0.0 ")]
    assert "CPUs=2 " in own, own


def test_who_stops_waiting_does_not_stop_the_jobs(
    slurm: Slurm, tmp_path: Path, waiting: tuple[str, ...]
) -> None:
    """At a terminal, where there is a progress bar."""
    target = tmp_path / "ranks.csv"
    words = ("submit", *waiting, "-o", str(target), *TASK, "--max-tasks", "2", "--wait")
    main, terminal = pty.openpty()
    seen: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # how Linux ends a terminal without writers
            while part := os.read(main, 65536):
                seen.append(part)

    reader = threading.Thread(target=read)
    environment = slurm.environment | {"TERM": "xterm"}
    with start(*words, env=environment, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        reader.start()
        # Three of four are done, and the bar says so.
        slurm.wait(lambda: b"3/4" in b"".join(seen), 240)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    reader.join()
    os.close(main)
    screen = b"".join(seen).decode()
    found = re.search(r"note: array job (\d+) and merge job (\d+) keep running; stop them", screen)
    assert found, screen
    assert screen.rstrip().endswith("localrank: stopped by SIGINT")
    (tmp_path / "go").touch()
    slurm.wait(lambda: not slurm.jobs(*found.groups()), 240)
    assert_equal(target.read_text(), expected(*waiting))
