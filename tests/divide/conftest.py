"""One Slurm for all tests of clusters, and a series at whose last checkpoint a task waits."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.cli.program import QUICK
from tests.divide.jobs import Jobs, begin_one_task, logs
from tests.divide.slurm import Slurm, running
from tests.helpers import NET_CODE, WAITS, net_weights


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    with running() as found:
        yield found


def waiting_series(folder: Path) -> tuple[str, ...]:
    """The arguments that analyze and submit take; of two tasks the second waits at its second."""
    series = folder / "series"
    series.mkdir(parents=True)
    code = WAITS.format(folder=str(folder)).lstrip("\n")
    (series / "net.py").write_text(NET_CODE.replace("        return self.b", code))
    for step in range(4):
        bias = {"a.bias": torch.full((3,), 10.0)} if step == 3 else {}
        torch.save(net_weights(step) | bias, series / f"step_{step}.pt")
    return (str(series), *QUICK, "--model", f"{series}/net.py:Net")


@pytest.fixture
def waiting(tmp_path: Path) -> tuple[str, ...]:
    return waiting_series(tmp_path)


@pytest.fixture(scope="session")
def near_limit(
    slurm: Slurm, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Jobs, Path, tuple[str, ...]]:
    """Begin a task with a minute of time; other tests run until Slurm stops it near the end."""
    folder = tmp_path_factory.mktemp("near_limit")
    words = waiting_series(folder)
    jobs = begin_one_task(slurm, folder, words, "--time", "1")

    def release() -> None:
        slurm.wait(lambda: "stopped by SIGUSR1" in logs(folder, "localrank-*_0.log"))
        (folder / "go").touch()  # for its second turn

    threading.Thread(target=release, daemon=True).start()
    return jobs, folder, words
