"""Signals in the middle of one long call of LAPACK, in which no Python handler runs."""

import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests.cli.program import QUICK, start_warm
from tests.helpers import NET_CODE, entries, net_weights
from tests.warm import Warm

SIGNALS = {
    signal.SIGINT: 130,
    signal.SIGTERM: 143,
    signal.SIGUSR1: 138,
    signal.SIGUSR2: 140,
}
HEAD = """
        if self.a.bias[0] > 9:
            from pathlib import Path
            """
# Far longer than the grace, on one core; in float32 an eighth of a GiB.
CALL = f"""{HEAD}large = torch.rand(6000, 6000)
            Path({{marker!r}}).touch()
            torch.linalg.eigvalsh(large) if {{eigen}} else torch.linalg.svdvals(large)
        return self.b"""


def command(folder: Path, *, eigen: bool = False, code: str = "") -> tuple[str, ...]:
    """A command that finishes its first checkpoint, and is in a long call at the second."""
    run = folder / "run"
    run.mkdir(parents=True)
    (folder / "out").mkdir()
    code = (code and HEAD + code) or CALL
    code = code.format(marker=str(folder / "marker"), eigen=eigen).lstrip("\n")
    (folder / "net.py").write_text(NET_CODE.replace("        return self.b", code))
    torch.save(net_weights(), run / "step_1.pt")
    torch.save(net_weights() | {"a.bias": torch.full((3,), 10.0)}, run / "step_2.pt")
    words = ("--model", f"{folder}/net.py:Net", "-o", str(folder / "out/ranks.csv"))
    return "analyze", str(run), *QUICK, *words


def begin(folder: Path, *, eigen: bool = False) -> Warm:
    return start_warm(*command(folder, eigen=eigen))


def in_the_call(folder: Path, process: "Warm | subprocess.Popen[str]") -> None:
    for _ in range(1200):
        if (folder / "marker").exists():
            time.sleep(0.5)
            return
        assert process.poll() is None
        time.sleep(0.05)
    pytest.fail("it never came to the call")


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        pytest.param(signal.SIGUSR2, marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, marks=pytest.mark.long),
        pytest.param(signal.SIGUSR1, marks=pytest.mark.long),
    ],
)
def test_the_status_and_the_table_of_what_is_finished(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = begin(tmp_path, eigen=number in {signal.SIGINT, signal.SIGUSR2})
    try:
        in_the_call(tmp_path, process)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    code, out = process.returncode, tmp_path / "out"
    assert code == SIGNALS[number], stderr
    assert stderr.splitlines()[-1] == f"localrank: stopped by {number.name}"
    assert "Traceback" not in stderr
    assert {"ranks.csv", "ranks.csv.journal", "ranks.csv.json"} <= set(entries(out))
    steps = {line.split(",")[2] for line in (out / "ranks.csv").read_text().splitlines()[1:]}
    assert steps == {"1"}


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_second_ctrl_c_ends_it_at_once(tmp_path: Path) -> None:
    process = begin(tmp_path)
    try:
        in_the_call(tmp_path, process)
        process.send_signal(signal.SIGINT)
        time.sleep(0.6)  # a signal within 0.3 s would be an echo of the first
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
        waited = time.monotonic() - started
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "localrank: stopped by SIGINT"
    assert waited < 4.0  # the grace that a first signal gives is 5 s
    assert (tmp_path / "out/ranks.csv.journal").read_bytes().count(b'"kind":"checkpoint"') == 1
