"""What an unprivileged user may not read or write; root, as in a container, may do anything."""

import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from localrank_cli.cli.main import app
from tests.checkpoints.layouts import LAYOUTS
from tests.cli.program import QUICK, Outcome, invoke
from tests.helpers import entries, save_series, weights

NOBODY = 65534


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture(scope="module", autouse=True)
def _imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A whole run, so that the child has nothing left to import."""
    series = save_series(tmp_path_factory.mktemp("run"), (1,))
    np.save(series / "x.npy", np.ones((70, 4)))
    assert invoke("analyze", str(series), "--data", str(series / "x.npy")).code == 0


def invoke_unprivileged(folder: Path, *words: str) -> Outcome:
    """Run the program in a child process that has given up root's rights.

    A fork, and not a new process: nobody may not be able to read this Python installation. The
    child computes nothing; it meets the error first.
    """
    report = folder.parent / f"{folder.name}.report"
    child = os.fork()
    if child == 0:
        status = 70
        try:
            descriptor = os.open(report, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout = sys.stderr = open(descriptor, "w")  # noqa: PTH123, SIM115  # ends with the child
            app(["analyze", *words], prog_name="localrank")
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 70
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    text = report.read_text()
    report.unlink()
    return Outcome(os.waitstatus_to_exitcode(ended), "", text)


def test_no_permission_to_write(open_folder: Path) -> None:
    series = save_series(open_folder / "run", (1,))
    (open_folder / "out").mkdir()
    (open_folder / "out").chmod(0o555)
    target = open_folder / "out/ranks.csv"
    outcome = invoke_unprivileged(open_folder, str(series), *QUICK, "-o", str(target))
    assert outcome.code == 1
    assert outcome.error == (
        f"{target}: cannot be written (Permission denied)."
        " Choose another place with -o, or free space there."
    )
    assert entries(open_folder / "out") == []


@pytest.mark.parametrize(
    ("closed", "message"),
    [
        ("run", "run/localrank.toml: cannot be read (Permission denied)"),
        ("run/step_1.safetensors", "step_1.safetensors: cannot be read (Permission denied)"),
        ("run/step_2.pt", "step_2.pt: cannot be read (Permission denied)"),
        ("run/localrank.toml", "localrank.toml: cannot be read (Permission denied)"),
        ("run/x.npy", "x.npy: cannot be read (Permission denied)"),
    ],
)
def test_no_permission_to_read(open_folder: Path, closed: str, message: str) -> None:
    series = save_series(open_folder / "run", (1,))
    torch.save(weights(), series / "step_2.pt")
    np.save(series / "x.npy", np.ones((70, 4)))
    (series / "localrank.toml").write_text("data = 'x.npy'\n")
    for path in series.iterdir():
        path.chmod(0o644)
    (open_folder / closed).chmod(0)
    outcome = invoke_unprivileged(open_folder, str(series))
    (open_folder / closed).chmod(0o700)
    assert outcome.code == 1, outcome.stderr
    assert message in outcome.error
    assert "ermission" in outcome.error


def test_a_folder_inside_that_may_not_be_entered(open_folder: Path) -> None:
    """It may be a checkpoint or not."""
    series = open_folder / "run"
    (series / "checkpoint-5").mkdir(parents=True)
    (series / "checkpoint-5").chmod(0)
    outcome = invoke_unprivileged(open_folder, str(series), *QUICK)
    (series / "checkpoint-5").chmod(0o700)
    assert outcome.code == 1
    assert "checkpoint-5" in outcome.error


def test_a_checkpoints_folder_that_may_not_be_entered_is_not_left_out(open_folder: Path) -> None:
    series = open_folder / "run"
    series.mkdir()
    for step in (5, 10):
        LAYOUTS["Hugging Face Trainer"].write(series, step)
    (series / "checkpoint-5").chmod(0)
    outcome = invoke_unprivileged(open_folder, str(series), *QUICK)
    (series / "checkpoint-5").chmod(0o700)
    assert outcome.code == 1
    assert "checkpoint-5: cannot be read (Permission denied)" in outcome.error


def test_a_path_behind_a_closed_folder(open_folder: Path) -> None:
    series = save_series(open_folder / "closed/run", (1,))
    (open_folder / "closed").chmod(0)
    outcome = invoke_unprivileged(open_folder, str(series), *QUICK)
    (open_folder / "closed").chmod(0o700)
    assert outcome.code == 1
    assert "cannot be read (Permission denied)" in outcome.error


UNREADABLE = {
    "shard": ("sharded safetensors", "step_5-00002-of-00002.safetensors"),
    "index": ("sharded safetensors", "step_5.safetensors.index.json"),
    "facts": ("Hugging Face Trainer", "checkpoint-5/trainer_state.json"),
    "folder": ("Hugging Face Trainer", "checkpoint-5"),
    "metadata": ("torch.distributed.checkpoint", "step_5/.metadata"),
    "pieces": ("torch.distributed.checkpoint", "step_5/__0_0.distcp"),
    "ref": ("Hub cache", "refs/step5"),
    "snapshots": ("Hub cache", "snapshots"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_parts_of_a_checkpoint(open_folder: Path, case: str) -> None:
    layout, part = UNREADABLE[case]
    series = open_folder / "run"
    series.mkdir()
    LAYOUTS[layout].write(series, 5)
    for path in (series, *series.rglob("*")):
        path.chmod(0o755)
    (series / part).chmod(0)
    outcome = invoke_unprivileged(series, str(series), *QUICK)
    (series / part).chmod(0o755)
    assert outcome.code == 1, outcome.stderr
    assert str(series) in outcome.stderr
    assert "localrank: error: " in outcome.stderr
    assert "Traceback" not in outcome.stderr
