"""How a submission divides the work: by the number of tasks, or by the time that one shall take."""

import math
import re
from pathlib import Path

import pytest
import torch

from tests.cli.program import QUICK, Outcome, invoke
from tests.helpers import NET_CODE, net_weights

N_CHECKPOINTS = 12


@pytest.fixture
def words(tmp_path: Path) -> tuple[str, ...]:
    """A submission whose checkpoints take some tenths of a second."""
    slow = "        import time; time.sleep(0.02)\n        return self.b"
    (tmp_path / "net.py").write_text(NET_CODE.replace("        return self.b", slow))
    series = tmp_path / "run"
    series.mkdir()
    for step in range(N_CHECKPOINTS):
        torch.save(net_weights(step), series / f"step_{step}.pt")
    output = ("-o", str(tmp_path / "a.csv"), "--cluster", "slurm", "--dry-run")
    return ("submit", str(series), *QUICK, "--model", f"{tmp_path}/net.py:Net", *output)


def tasks(outcome: Outcome) -> int:
    assert outcome.code == 0, outcome.stderr
    found = re.search(r"^#SBATCH --array=0-(\d+)$", outcome.stdout, re.MULTILINE)
    assert found, outcome.stdout
    return int(found[1]) + 1


def test_without_a_time_each_checkpoint_is_a_task(words: tuple[str, ...]) -> None:
    assert tasks(invoke(*words)) == N_CHECKPOINTS
    assert tasks(invoke(*words, "--max-tasks", "5")) == 5


@pytest.mark.parametrize("minutes", [1e-4, pytest.param(0.02, marks=pytest.mark.long), 0.05, 60])
def test_minutes_per_task(words: tuple[str, ...], minutes: float) -> None:
    outcome = invoke(*words, "--minutes-per-task", str(minutes))
    match = re.search(
        r"note: a checkpoint takes about (\S+) s here: (\d+) tasks of about (\S+) minutes",
        outcome.stderr,
    )
    assert match, outcome.stderr
    seconds, number, each = float(match[1]), int(match[2]), float(match[3])
    assert number == tasks(outcome)
    assert seconds > 0.02  # the model sleeps at every forward pass
    # The estimate is rounded: as many whole checkpoints as fit.
    counts = {
        math.ceil(N_CHECKPOINTS / max(1, math.floor(minutes * 60 / (seconds * by))))
        for by in (0.99, 1.01)
    }
    assert min(counts) <= number <= max(counts)
    assert each == pytest.approx(seconds * N_CHECKPOINTS / number / 60, rel=0.02)


def test_the_most_tasks_hold_for_minutes_too(words: tuple[str, ...]) -> None:
    assert tasks(invoke(*words, "--minutes-per-task", "1e-4", "--max-tasks", "3")) == 3


def test_nothing_is_written(words: tuple[str, ...], tmp_path: Path) -> None:
    invoke(*words, "--minutes-per-task", "1")
    assert not list(tmp_path.glob("a.csv*"))


@pytest.fixture
def begun(words: tuple[str, ...]) -> tuple[str, ...]:
    """The last nine are finished."""
    analyze = [word for word in words[1:] if word not in {"--cluster", "slurm", "--dry-run"}]
    assert invoke("analyze", *analyze, "--last", "9").code == 0
    return words


def test_what_is_finished_takes_no_task(begun: tuple[str, ...]) -> None:
    outcome = invoke(*begun)
    assert f"9 of {N_CHECKPOINTS} checkpoints are already finished" in outcome.stderr
    assert tasks(outcome) == 3
    assert "3 units left to do, in 3 tasks" in outcome.stdout
    assert tasks(invoke(*begun, "--overwrite")) == N_CHECKPOINTS


def test_nothing_that_is_left_can_be_read(begun: tuple[str, ...], tmp_path: Path) -> None:
    for step in range(3):
        (tmp_path / f"run/step_{step}.pt").write_bytes(b"torn")
    assert tasks(invoke(*begun, "--minutes-per-task", "5", "--on-error", "skip")) == 1
