import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from localrank_cli.cli.signals import Interrupted, signal_handler

SIGNALS = pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        (signal.SIGUSR1, 138),
        (signal.SIGUSR2, 140),
    ],
)


def _interruptibly(work: Callable[[], object]) -> None:
    # The process of the tests is not to be ended where the machine is busy for long.
    with signal_handler(100.0) as handler, handler.interruptible():
        work()


def _send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(10)


@SIGNALS
def test_a_signal_is_an_exception(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught:
        _interruptibly(lambda: _send(number))
    assert caught.value.exit_code == code
    assert caught.value.name == number.name
    assert signal.getsignal(number) is before


def test_a_signal_waits_until_the_work_is_interruptible() -> None:
    done: list[str] = []
    with signal_handler() as handler:
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("files are opened")
        with pytest.raises(Interrupted), handler.interruptible():
            done.append("never")
        done.append("files are removed")
    assert done == ["files are opened", "files are removed"]


def test_a_signal_after_the_work_interrupts_nothing() -> None:
    with signal_handler() as handler:
        with handler.interruptible():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        done = True
    assert done


def test_a_swallowed_signal_is_raised_again() -> None:
    swallowed = 0

    def model() -> None:
        nonlocal swallowed
        for _ in range(2):
            try:
                _send(signal.SIGTERM) if not swallowed else time.sleep(10)
            except BaseException:  # what users write
                swallowed += 1
        time.sleep(10)

    with pytest.raises(Interrupted):
        _interruptibly(model)
    assert swallowed == 2


def test_an_error_caused_by_a_signal_is_reported_as_the_signal() -> None:
    def half_imported() -> None:
        try:
            _send(signal.SIGTERM)
        except BaseException:  # as packages do when they are imported
            raise ValueError("no such attribute") from None

    with pytest.raises(Interrupted):
        _interruptibly(half_imported)


def test_work_that_finishes_anyway_is_interrupted() -> None:
    def swallow() -> None:
        with suppress(BaseException):
            _send(signal.SIGTERM)

    with pytest.raises(Interrupted):
        _interruptibly(swallow)


def test_no_alarm_is_left_behind() -> None:
    with pytest.raises(Interrupted):
        _interruptibly(lambda: _send(signal.SIGTERM))
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with signal_handler() as handler, handler.interruptible():
            os.kill(os.getpid(), signal.SIGUSR1)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_errors_pass() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        _interruptibly(lambda: int("mine"))


def test_a_signal_waits_while_something_is_written() -> None:
    done: list[str] = []

    def work() -> None:
        with handler.uninterruptible():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            done.append("kept")
        done.append("never")

    with signal_handler() as handler, pytest.raises(Interrupted), handler.interruptible():
        work()
    assert done == ["kept"]


@pytest.mark.parametrize("twice", [False, True])
def test_a_main_thread_that_is_stuck_is_ended_by_the_other(twice: bool) -> None:
    """One call that does not come back to Python for long: here a sleep with the GIL held off."""
    code = (
        "import ctypes, sys\n"
        "from localrank_cli.cli import signals\n"
        "grace = 100.0 if sys.argv[1] == 'True' else 0.3\n"
        "with signals.signal_handler(grace) as handler, handler.interruptible():\n"
        "    handler.on_exit(lambda: print('exit call', flush=True))\n"
        "    print('ready', flush=True)\n"
        "    libc = ctypes.CDLL(None)\n"
        # Blocked signals do not cut the sleep short, and reach the other thread only.
        "    mask = (ctypes.c_ulong * 16)(*[0xFFFFFFFFFFFFFFFF] * 16)\n"
        "    libc.pthread_sigmask(0, mask, 0)\n"
        "    libc.sleep(50)\n"
    )
    words = [sys.executable, "-c", code, str(twice)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    if twice:
        time.sleep(0.6)  # a signal within 0.3 s would be an echo of the first
        process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 143
    assert stderr == "localrank: stopped by SIGTERM\n"
    assert stdout == ("" if twice else "exit call\n")


# As torch does for the workers of a DataLoader.
_CHILD_ENDS = """
import ctypes, signal, subprocess, sys, time
from localrank_cli.cli import signals

signal.signal(signal.SIGCHLD, lambda *_: None)
with signals.signal_handler(0.5) as handler, handler.interruptible():
    for seconds in ("0.1", "0.6", "1"):
        subprocess.Popen(["sleep", seconds])
    if sys.argv[1] == "locked":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # the other thread gets it
        ctypes.PyDLL(None).sleep(3)  # holds Python's lock
    else:
        time.sleep(2)
    print("finished")
"""


@pytest.mark.parametrize("lock", ["free", "locked"])
def test_signals_that_ask_for_nothing_end_nothing(lock: str) -> None:
    words = [sys.executable, "-c", _CHILD_ENDS, lock]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "finished\n", "")
