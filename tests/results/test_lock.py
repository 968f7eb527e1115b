import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from localrank_cli.errors import OutputError
from localrank_cli.results.lock import OutputLock, lock_path
from tests.helpers import entries

HOLD = (
    "import sys, time; from pathlib import Path\n"
    "from localrank_cli.results.lock import OutputLock\n"
    "with OutputLock(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
)


def holder(target: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(target)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_learns_who_holds_the_lock_and_a_dead_process_holds_none(tmp_path: Path) -> None:
    target = tmp_path / "ranks.csv"
    process = holder(target)
    try:
        with pytest.raises(OutputError, match=rf"ranks\.csv: process {process.pid} on "):
            OutputLock(target)
    finally:
        process.kill()
        process.communicate()
    with OutputLock(target):
        assert json.loads(lock_path(target).read_text())["pid"] == os.getpid()
    assert entries(tmp_path) == []


def no_flock(*_: object) -> None:
    raise OSError(95, "Operation not supported")


def test_without_flock_the_file_itself_is_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("localrank_cli.results.lock.fcntl.flock", no_flock)
    monkeypatch.setattr("localrank_cli.results.lock._BEAT", 0.05)
    target = tmp_path / "ranks.csv"
    with OutputLock(target):
        (name,) = entries(tmp_path)
        os.utime(tmp_path / name, (1, 1))
        time.sleep(0.5)
        assert (tmp_path / name).stat().st_mtime > 1  # the heart beats
        with pytest.raises(OutputError, match=f"process {os.getpid()} on "):
            OutputLock(target)
        assert entries(tmp_path) == [name]
    assert entries(tmp_path) == []


def test_without_flock_a_dead_lock_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("localrank_cli.results.lock.fcntl.flock", no_flock)
    left = tmp_path / "ranks.csv.locked"
    left.write_text('{"pid": 1, "host": "gone"}')
    with pytest.raises(OutputError, match="process 1 on gone"):
        OutputLock(tmp_path / "ranks.csv")
    monkeypatch.setattr("localrank_cli.results.lock._BEAT", 0.05)
    os.utime(left, (1, 1))
    with OutputLock(tmp_path / "ranks.csv"):
        pass
    assert entries(tmp_path) == []


def test_without_flock_a_host_whose_clock_is_ahead_steals_no_live_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("localrank_cli.results.lock.fcntl.flock", no_flock)
    target, now = tmp_path / "ranks.csv", time.time
    with OutputLock(target):
        monkeypatch.setattr("time.time", lambda: now() + 90)
        with pytest.raises(OutputError, match=f"process {os.getpid()} on "):
            OutputLock(target)
        assert entries(tmp_path) == ["ranks.csv.locked"]


def test_without_flock_a_lock_dated_by_a_host_whose_clock_is_behind_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lustre dates a file by the clock of the host that writes it."""
    monkeypatch.setattr("localrank_cli.results.lock.fcntl.flock", no_flock)
    monkeypatch.setattr("localrank_cli.results.lock._BEAT", 0.2)
    beat = iter(range(1000))
    with OutputLock(tmp_path / "ranks.csv") as lock:
        monkeypatch.setattr(lock, "_say_who", lambda: os.utime(lock._descriptor, (next(beat),) * 2))
        lock._say_who()
        with pytest.raises(OutputError, match=f"process {os.getpid()} on "):
            OutputLock(tmp_path / "ranks.csv")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"no/ranks\.csv: cannot be written \(No such file"):
        OutputLock(tmp_path / "no/ranks.csv")
