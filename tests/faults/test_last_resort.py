"""One call of C that holds Python's lock, in which not even a second thread runs."""

import fcntl
import os
import pty
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from localrank_cli.cli.signals import signal_handler
from tests.cli.program import start, start_warm
from tests.faults.test_long_call import command, in_the_call
from tests.warm import Warm

# 2^60 steps, in one call of a builtin.
ENDLESS = """nested = ()
            for _ in range(60):
                nested = nested, nested
            Path({marker!r}).touch()
            hash(nested)
        return self.b"""


def child_of(pid: int) -> int | None:
    """The process that watches another."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
            parent = (entry.parent / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if any(word.endswith(b"last_resort.py") for word in words) and int(parent) == pid:
            return int(entry.parent.name)
    return None


def soon(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def is_gone(pid: int) -> bool:
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except OSError:
        return True


def begin_endless(folder: Path) -> Warm:
    return start_warm(*command(folder, code=ENDLESS))


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(200),
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc"),
]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_is_killed_after_the_grace(tmp_path: Path, number: signal.Signals) -> None:
    process = begin_endless(tmp_path)
    try:
        in_the_call(tmp_path, process)
        watcher = child_of(process.pid)
        assert watcher is not None
        started = time.monotonic()
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL  # 137 in a shell
    assert time.monotonic() - started > 4.5  # the grace is 5 s
    last = f"localrank: killed, since {number.name} did not stop it within 5 s"
    assert stderr.splitlines()[-1] == last
    assert (tmp_path / "out/ranks.csv.journal").read_bytes().count(b'"kind":"checkpoint"') == 1
    assert soon(lambda: is_gone(watcher))


def test_the_terminal_is_as_it_was(tmp_path: Path) -> None:
    """Ctrl-C at a terminal where the progress bar hid the cursor, and the model's code the echo."""
    ours, theirs = pty.openpty()
    process = start(
        *command(tmp_path, code=ENDLESS),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm"},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    screen = bytearray()

    def read() -> None:
        with suppress(OSError):
            while part := os.read(ours, 4096):
                screen.extend(part)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        in_the_call(tmp_path, process)
        before = termios.tcgetattr(theirs)
        changed = [*before]
        changed[3] &= ~termios.ECHO
        termios.tcsetattr(theirs, termios.TCSANOW, changed)
        os.write(ours, b"\x03")
        assert process.wait(timeout=60) == -signal.SIGKILL
        assert termios.tcgetattr(theirs)[3] == before[3]
    finally:
        process.kill()
        process.wait()
        os.close(theirs)
        reader.join(timeout=20)
        os.close(ours)
    text = screen.decode()
    assert text.count("\x1b[?25l") >= 1
    shown = text.rindex("\x1b[?25h")
    assert shown > text.rindex("\x1b[?25l")
    killed = "localrank: killed, since SIGINT did not stop it within 5 s"
    assert text[shown:].removeprefix("\x1b[?25h").splitlines() == [killed]


def test_nothing_is_left_behind_by_kill_9(tmp_path: Path) -> None:
    process = begin_endless(tmp_path)
    in_the_call(tmp_path, process)
    watcher = child_of(process.pid)
    assert watcher is not None
    held = [str(link.readlink()) for link in Path(f"/proc/{watcher}/fd").iterdir()]
    assert sum(not one.startswith(("/dev/", "anon_inode:")) for one in held) == 1  # the socket
    os.kill(watcher, signal.SIGINT)  # as a terminal would, to the whole group
    os.kill(watcher, signal.SIGTERM)
    time.sleep(0.2)
    assert not is_gone(watcher)
    process.kill()
    process.communicate(timeout=20)  # its streams are closed
    assert soon(lambda: is_gone(watcher))


def test_it_works_where_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with signal_handler() as handler, handler.interruptible():
        assert child_of(os.getpid()) is None


def test_it_ends_with_the_work() -> None:
    with signal_handler():
        watcher = child_of(os.getpid())
        assert watcher is not None
    assert is_gone(watcher)
