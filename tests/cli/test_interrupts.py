"""Real processes that are stopped in the middle of a run."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch

from tests.cli.program import QUICK, start, start_warm
from tests.helpers import NET_CODE, entries, net_weights
from tests.warm import Warm

SIGNALS = {
    signal.SIGINT: 130,
    signal.SIGTERM: 143,
    signal.SIGHUP: 129,
    signal.SIGXCPU: 152,
    signal.SIGUSR1: 138,
    signal.SIGUSR2: 140,
}

# At the second checkpoint the model says where it is, and waits.
WAITS = """
        if self.a.bias[0] > 9:
            import pathlib, time
            pathlib.Path({marker!r}).touch()
            for _ in range(1000):
                {wait}
        return self.b"""
PLAIN = "time.sleep(0.1)"
SWALLOWS = "try: time.sleep(0.3)\n                except: pass\n                time.sleep(0.3)"


@dataclass
class Stopped:
    code: int
    stdout: str
    stderr: str
    left: list[str]  # in the output's folder


def _prepare(folder: Path, wait: str) -> tuple[str, ...]:
    folder.mkdir()
    (folder / "out").mkdir()
    code = WAITS.format(marker=str(folder / "marker"), wait=wait)
    (folder / "net.py").write_text(NET_CODE.replace("        return self.b", code.lstrip("\n")))
    torch.save(net_weights(), folder / "step_1.pt")
    torch.save(net_weights() | {"a.bias": torch.full((3,), 10.0)}, folder / "step_2.pt")
    return ("analyze", str(folder), *QUICK, "--model", f"{folder}/net.py:Net")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> dict[signal.Signals, Stopped]:
    """A process for each signal, all at once: USR1 with a pipe, USR2 with a model that swallows."""
    root = tmp_path_factory.mktemp("interrupts")
    processes: dict[signal.Signals, Warm] = {}
    for number in SIGNALS:
        words = _prepare(root / number.name, SWALLOWS if number == signal.SIGUSR2 else PLAIN)
        target = str(root / number.name / "out/ranks.csv")
        output = () if number == signal.SIGUSR1 else ("-o", target)
        processes[number] = start_warm(*words, *output)
    for number, process in processes.items():
        _wait_for(root / number.name / "marker", process)
        process.send_signal(number)
    found = {}
    for number, process in processes.items():
        with process:
            stop = threading.Timer(60, process.kill)  # it is -9 then, and no other test waits
            stop.start()
            stdout, stderr = process.communicate()
            stop.cancel()
        left = entries(root / number.name / "out")
        found[number] = Stopped(process.wait(), stdout, stderr, left)
    return found


def _wait_for(marker: Path, process: "subprocess.Popen[str] | Warm") -> None:
    for _ in range(1200):
        if marker.exists() or process.poll() is not None:
            return
        time.sleep(0.05)
    process.kill()


@pytest.mark.parametrize("number", SIGNALS)
def test_status_and_one_line(
    stopped: dict[signal.Signals, Stopped], number: signal.Signals
) -> None:
    end = stopped[number]
    assert end.code == SIGNALS[number]
    assert end.stderr.splitlines()[-1] == f"localrank: stopped by {number.name}"
    assert "Traceback" not in end.stderr
    assert "error" not in end.stderr


def test_an_echo_of_a_signal_is_no_second_one(tmp_path: Path) -> None:
    """A batch system signals a process and its group; a killed parent, once for each thread."""
    words = _prepare(tmp_path / "run", PLAIN)
    with start_warm(*words, "-o", str(tmp_path / "run/out/ranks.csv")) as process:
        _wait_for(tmp_path / "run/marker", process)
        process.send_signal(signal.SIGHUP)  # the lower number: Python handles it first
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate()
    assert process.wait() == 129
    assert stderr.splitlines()[-1] == "localrank: stopped by SIGHUP"
    assert entries(tmp_path / "run/out") == ["ranks.csv", "ranks.csv.journal", "ranks.csv.json"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_what_is_finished_is_left_and_whole(
    stopped: dict[signal.Signals, Stopped], number: signal.Signals
) -> None:
    left = stopped[number].left
    assert left == ["ranks.csv", "ranks.csv.journal", "ranks.csv.json"]
    assert stopped[number].stdout == ""
    assert "1 finished checkpoint is kept, 1 is left" in stopped[number].stderr


def test_finished_checkpoints_are_in_the_pipe(stopped: dict[signal.Signals, Stopped]) -> None:
    lines = stopped[signal.SIGUSR1].stdout.splitlines()
    assert [line.split(",")[2] for line in lines] == ["step", "1", "1"]


@pytest.fixture
def starting(series: Path, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    with start("analyze", str(series), *QUICK, "-o", str(tmp_path / "ranks.csv")) as process:
        yield process
        process.kill()


def test_while_it_starts(starting: "subprocess.Popen[str]", tmp_path: Path) -> None:
    """Importing torch takes seconds, in which no exception may be swallowed by an import."""
    _wait_until_torch_is_mapped(starting.pid)
    starting.send_signal(signal.SIGINT)
    stdout, stderr = starting.communicate(timeout=60)
    assert starting.returncode == 130
    assert (stdout, stderr) == ("", "localrank: stopped by SIGINT\n")
    assert entries(tmp_path) == ["run"]


@pytest.mark.parametrize(
    ("module", "code", "line"),
    [
        # The command line's own packages take a fifth of a second to import.
        ("typer", 130, "localrank: stopped by SIGINT\n"),
        # Nothing is there yet that could print a line; Python would print a traceback. A shell
        # turns this status into 130.
        ("threading", -signal.SIGINT, ""),
    ],
)
def test_in_its_first_imports(tmp_path: Path, module: str, code: int, line: str) -> None:
    marker = tmp_path / "marker"
    (tmp_path / f"{module}.py").write_text(
        f"import pathlib, time\npathlib.Path({str(marker)!r}).touch()\ntime.sleep(60)\n"
    )
    with start("--help", env=os.environ | {"PYTHONPATH": str(tmp_path)}) as process:
        _wait_for(marker, process)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (code, "", line)


def test_the_console_script_starts_as_the_module_does() -> None:
    (script,) = entry_points(group="console_scripts", name="localrank")
    assert script.value == "localrank_cli.__main__:main"


def _wait_until_torch_is_mapped(pid: int) -> None:
    maps = Path(f"/proc/{pid}/maps")
    if not maps.exists():
        pytest.skip("needs Linux's /proc")
    for _ in range(6000):
        if "libtorch" in maps.read_text():
            return
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("torch was never imported")
