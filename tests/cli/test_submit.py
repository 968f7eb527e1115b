"""Several workers on this machine: real processes, and the table of a single run."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from localrank_cli.options.table import AnalyzeOptions
from localrank_cli.results.write import write_json
from localrank_cli.run.plan import make_plan
from localrank_cli.run.units import make_plan_file
from tests.cli.program import (
    QUICK,
    Outcome,
    at_once,
    invoke,
    rows,
    run,
    run_cold,
    start,
    start_warm,
)
from tests.cli.test_merge import assert_equal
from tests.helpers import (
    NET_CODE,
    WAITS,
    entries,
    ignore,
    net_weights,
    save_epochs,
    weights,
)
from tests.warm import Warm

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def submit(series: Path, target: Path, *words: str, workers: int = 2) -> Outcome:
    return run(
        "submit", str(series), *QUICK, "-o", str(target), "--workers", str(workers), *words,
        env=ONE_THREAD,
    )  # fmt: skip


def wait_until(true: Callable[[], bool], process: "Warm | subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


# Two workers that are new interpreters are also those of tests/test_searchpath.py.
@pytest.mark.parametrize("start", [run, pytest.param(run_cold, marks=pytest.mark.long)])
def test_two_workers_give_the_table_of_one_process(
    series: Path, tmp_path: Path, start: Callable[..., Outcome]
) -> None:
    target = tmp_path / "out/ranks.csv"
    target.parent.mkdir()
    words = ("submit", str(series), *QUICK, "-o", str(target), "--workers", "2")
    outcome = start(*words, env=ONE_THREAD)
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout == ""
    assert outcome.stderr.splitlines() == [
        "localrank: note: no --model: read as a plain MLP 4-3-2 with relu between its layers",
        f"localrank: note: wrote {target} and ranks.csv.json",
    ]
    assert_equal(target.read_text(), at_once(series))
    assert entries(target.parent) == ["ranks.csv", "ranks.csv.journal", "ranks.csv.json"]
    manifest = json.loads((target.parent / "ranks.csv.json").read_text())
    assert manifest["complete"] is True
    # A single run resumes from it.
    again = invoke("analyze", str(series), *QUICK, "-o", str(target))
    assert "resuming: 3 of 3" in again.stderr


def test_fewer_checkpoints_than_workers(series: Path, tmp_path: Path) -> None:
    outcome = submit(series, tmp_path / "a.csv", "--last", "1", workers=2)
    assert outcome.code == 0, outcome.stderr
    assert_equal((tmp_path / "a.csv").read_text(), at_once(series, "--last", "1"))


def test_several_devices_of_analyze_to_a_pipe(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run("analyze", str(series), *QUICK, "--device", "cpu,cpu", "-q", env=ONE_THREAD)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert_equal(outcome.stdout, at_once(series))
    assert entries(tmp_path) == ["run"]


def test_a_series_that_grew_and_other_settings(series: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.csv"
    assert submit(series, target, workers=1).code == 0
    save_file(weights(seed=7), series / "step_7.safetensors")
    outcome = submit(series, target, workers=1)
    assert "resuming: 3 of 4" in outcome.stderr
    assert_equal(target.read_text(), at_once(series))
    outcome = submit(series, target, "--atol", "0.5", workers=1)
    assert outcome.code == 1
    assert "was started with different settings for 'run': tolerances was" in outcome.error
    outcome = submit(series, target, "--atol", "0.5", "--overwrite", workers=1)
    assert outcome.code == 0, outcome.stderr
    assert_equal(target.read_text(), at_once(series, "--atol", "0.5"))


def test_an_error_is_reported_once(series: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        NET_CODE.replace(
            "        return self.b",
            "        assert self.a.bias[0] < 9\n" * 1 + "        return self.b",
        )
    )
    for step in range(4):
        bias = {"a.bias": torch.full((3,), 10.0)} if step else {}
        torch.save(net_weights(step) | bias, tmp_path / f"step_{step}.pt")
    words = ("submit", str(tmp_path), "--pattern", "*.pt", *QUICK, "--workers", "2")
    model = ("--model", f"{tmp_path}/net.py:Net")
    outcome = run(*words, *model, "-o", str(tmp_path / "a.csv"), env=ONE_THREAD)
    assert outcome.code == 1
    assert outcome.stderr.count("localrank: error: ") == 1
    assert "AssertionError" in outcome.stderr
    skipped = run(
        *words, *model, "-o", str(tmp_path / "a.csv"), "--on-error", "skip", env=ONE_THREAD
    )
    assert skipped.code == 3, skipped.stderr
    found = [row["status"] for row in rows((tmp_path / "a.csv").read_text())]
    assert found.count("ok") == 2
    assert len(found) == 5


def test_values_that_are_not_finite(series: Path, tmp_path: Path) -> None:
    broken = weights(seed=7)
    broken["0.weight"][0, 0] = float("nan")
    save_file(broken, series / "step_7.safetensors")
    outcome = submit(series, tmp_path / "a.csv")
    assert outcome.code == 3
    assert outcome.stderr.count("non-finite values in") == 1
    assert_equal((tmp_path / "a.csv").read_text(), at_once(series))


def wait_until_ended(pid: int) -> None:
    """Waits for a process that is not ours: it is gone, or a zombie that nobody has collected."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail(f"process {pid} is still running")


@pytest.fixture
def waiting(tmp_path: Path) -> tuple[Path, tuple[str, ...]]:
    """A series at whose last checkpoint the model waits, and the command."""
    folder = tmp_path / "series"
    folder.mkdir()
    code = WAITS.format(folder=str(tmp_path)).lstrip("\n")
    (folder / "net.py").write_text(NET_CODE.replace("        return self.b", code))
    for step in range(4):
        bias = {"a.bias": torch.full((3,), 10.0)} if step == 3 else {}
        torch.save(net_weights(step) | bias, folder / f"step_{step}.pt")
    model = ("--model", f"{folder}/net.py:Net")
    target = str(tmp_path / "ranks.csv")
    return folder, ("submit", str(folder), *QUICK, *model, "-o", target, "--workers", "2")


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGUSR1, marks=pytest.mark.long),
        pytest.param(signal.SIGINT, marks=pytest.mark.long),
        pytest.param(signal.SIGUSR2, marks=pytest.mark.long),
    ],
)
def test_a_signal_stops_the_workers_and_the_same_command_resumes(
    waiting: tuple[Path, tuple[str, ...]], number: signal.Signals, tmp_path: Path
) -> None:
    folder, words = waiting
    shards = tmp_path / "ranks.csv.shards"
    with start_warm(*words, env=ONE_THREAD) as process:
        first = shards / "shard-00000-of-00002.csv.json"  # this worker is done
        wait_until(lambda: (tmp_path / "waiting").exists() and first.exists(), process)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert stderr.splitlines()[-2:] == [
        "localrank: note: 3 finished units are kept in ranks.csv.shards/, 1 are left: rerun"
        " the same command to resume",
        f"localrank: stopped by {number.name}",
    ]
    assert not (tmp_path / "ranks.csv").exists()
    assert not list(shards.glob("*.lock"))  # no process holds it any more
    (tmp_path / "go").touch()
    if number == signal.SIGTERM:  # with a longer list the rest is divided again
        torch.save(net_weights(9), folder / "step_9.pt")
    again = run(*words, env=ONE_THREAD)
    assert again.code == 0, again.stderr
    assert "resuming: 3 of" in again.stderr
    assert not shards.exists()
    expected = invoke("analyze", *words[1:-4]).stdout
    assert_equal((tmp_path / "ranks.csv").read_text(), expected)


@pytest.mark.parametrize("by", ["the kernel", "a pipe"])
def test_workers_end_with_a_submission_that_is_killed(
    waiting: tuple[Path, tuple[str, ...]], tmp_path: Path, by: str
) -> None:
    _, words = waiting
    shards = tmp_path / "ranks.csv.shards"
    if by == "a pipe":  # as on a system without prctl, or where a wrapper starts the interpreter
        (tmp_path / "sitecustomize.py").write_text("import os\nos.getppid = lambda: 1\n")
        env = ONE_THREAD | {"PYTHONPATH": str(tmp_path)}
        started: Warm | subprocess.Popen[str] = start(*words, env=env, stderr=subprocess.DEVNULL)
    else:
        started = start_warm(*words, env=ONE_THREAD)
    with started as process:
        first = shards / "shard-00000-of-00002.csv.json"  # this worker is done
        wait_until(lambda: (tmp_path / "waiting").exists() and first.exists(), process)
        lock = shards / "shard-00001-of-00002.csv.lock"
        worker = json.loads(lock.read_text())["pid"]
        process.kill()
        process.wait()
    wait_until_ended(worker)
    assert not list(shards.glob("*.lock"))
    # The worker that was in the middle of its part wrote what it had.
    assert (shards / "shard-00001-of-00002.csv.json").exists()
    (tmp_path / "go").touch()
    again = run(*words, env=ONE_THREAD)
    assert again.code == 0, again.stderr
    assert "resuming: 3 of 4 units" in again.stderr
    assert_equal((tmp_path / "ranks.csv").read_text(), invoke("analyze", *words[1:-4]).stdout)


def test_a_worker_that_is_killed(waiting: tuple[Path, tuple[str, ...]], tmp_path: Path) -> None:
    _, words = waiting
    with start_warm(*words, env=ONE_THREAD) as process:
        wait_until((tmp_path / "waiting").exists, process)
        lock = tmp_path / "ranks.csv.shards/shard-00001-of-00002.csv.lock"
        os.kill(json.loads(lock.read_text())["pid"], signal.SIGKILL)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "localrank: error: worker 1 of 2 ended by signal 9." in stderr
    (tmp_path / "go").touch()
    assert run(*words, env=ONE_THREAD).code == 0


def test_one_submission_at_a_time(waiting: tuple[Path, tuple[str, ...]], tmp_path: Path) -> None:
    _, words = waiting
    with start_warm(*words, env=ONE_THREAD) as process:
        wait_until((tmp_path / "waiting").exists, process)
        second = run(*words, env=ONE_THREAD)
        (tmp_path / "go").touch()
        process.communicate(timeout=60)
    assert second.code == 1
    assert "is writing it" in second.error
    assert process.returncode == 0


def test_the_plan_is_kept_to(series: Path, tmp_path: Path) -> None:
    """A part that starts late sees the same list, and refuses what changed."""
    options = AnalyzeOptions((series,), data="normal:4", points=5, device="cpu")
    whole = make_plan(options, ignore)
    plan_file = make_plan_file(whole, whole, 2, (), tmp_path / "a.csv")
    write_json(tmp_path / "plan.json", plan_file.to_json())
    expected = at_once(series)
    save_file(weights(seed=7), series / "step_7.safetensors")
    plan = ("--plan", str(tmp_path / "plan.json"))
    for index in range(2):
        part = ("-o", str(tmp_path / "s"), "--shard", f"{index}/2")
        assert invoke("analyze", str(series), *QUICK, *plan, *part).code == 0
    assert invoke("merge", str(tmp_path / "s"), "-o", str(tmp_path / "a.csv")).code == 0
    assert_equal((tmp_path / "a.csv").read_text(), expected)
    refused = invoke("analyze", str(series), "--data", "normal:4", "--device", "cpu", *plan)
    assert "points changed since the plan was made" in refused.error
    save_file(weights(seed=99), series / "step_5.safetensors")
    assert "changed since the plan was made" in invoke("analyze", str(series), *QUICK, *plan).error
    (series / "step_5.safetensors").unlink()
    gone = invoke("analyze", str(series), *QUICK, *plan)
    assert "step_5.safetensors no longer exists, and the plan lists it" in gone.error
    (tmp_path / "plan.json").write_text("{}")
    assert "is not a plan file" in invoke("analyze", str(series), *QUICK, *plan).error


@pytest.mark.parametrize("words", [(), ("--overwrite",)])
def test_a_folder_in_place_of_the_plan_file(
    series: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    place = tmp_path / "a.csv.shards/plan.json"
    place.mkdir(parents=True)
    outcome = submit(series, tmp_path / "a.csv", *words, workers=1)
    assert outcome.code == 1, outcome.stderr
    assert outcome.error == f"{place}: is not a file. Remove it."
    place.rmdir()
    assert submit(series, tmp_path / "a.csv", *words, workers=1).code == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "submit: no file to write"),
        (("-o", "-"), 2, "submit: no file to write"),
        (("-o", "a.xlsx"), 2, "is not a table format"),
        (("-o", "a.csv", "--workers", "0"), 2, "at least 1"),
        (("-o", "a.csv", "--cluster", "moon"), 2, "Choose local"),
        (("-o", "a.csv", "--wait"), 2, "local workers are always waited for"),
        (("-o", "a.csv", "--cluster", "slurm", "--time", "x"), 2, "--time x: expected a time"),
        (("-o", "a.csv", "--minutes-per-task", "0"), 2, "expected more than 0"),
        (("-o", "a.csv", "--shard", "0/2"), 2, "divided among several workers"),
        (("-o", "a.csv", "--device", "cpu,moon"), 2, "Choose auto"),
        (("-o", "a.csv", "--memory", "20MiB", "--workers", "2"), 2, "10 MiB for each"),
    ],
)
def test_bad_submissions(
    series: Path,
    tmp_path: Path,
    words: tuple[str, ...],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = invoke("submit", str(series), *QUICK, *words)
    assert outcome.code == code
    assert message in outcome.error
    assert entries(tmp_path) == ["run"]


def test_workers_count_steps_as_the_whole_series_does(tmp_path: Path) -> None:
    """Those that they see increase: without the others they would be taken as they are."""
    run = save_epochs(tmp_path / "run", [(0, 40), (1, 20), (2, 60)])
    target = tmp_path / "ranks.csv"
    outcome = submit(run, target, "--steps", "1:2")
    assert outcome.code == 0, outcome.stderr
    assert target.read_text() == at_once(run, "--steps", "1:2")
