"""Signals (INT, TERM, HUP, XCPU, USR1, USR2) and the standard streams of the process."""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from localrank_cli.errors import status_of_signal

_SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,  # the terminal is closed
    signal.SIGXCPU,  # a limit on processor time (`ulimit -t`)
    signal.SIGUSR1,
    signal.SIGUSR2,
)
GRACE = 5.0  # seconds; batch systems kill 30 s or more after the first signal, users wait less
# Signals this soon after the first are its echoes: a batch system signals a process and its group,
# and the kernel tells a worker of its parent's end once for each thread that the parent had.
_ECHO = 0.3  # seconds; nobody presses Ctrl-C twice as fast
_REPEAT = 0.25  # seconds between two exceptions, if the first is swallowed


_exit = os._exit  # `exits_refused` replaces it


class CodeExit(SystemExit):
    """The user's code called `os._exit`, which would have looked like success."""


class Interrupted(BaseException):
    """A signal asked the program to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.name = signal.Signals(number).name
        self.exit_code = status_of_signal(number)


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Exit at once on a signal: for start-up, when there is nothing to undo.

    An exception would not do: some packages swallow it while they are imported, and continue half
    imported.
    """
    with _handlers(_SIGNALS, _end_process):
        yield


class SignalHandler:
    """Receive signals, and raise Interrupted where the work is interruptible.

    Python's own handlers wait for the main thread, which may be in one call of LAPACK for minutes.
    So a second thread receives signals too (`signal.set_wakeup_fd`): if the main thread has not
    stopped within the grace period (seconds), it makes the exit calls and ends the process; a
    second signal ends it at once. Where not even that thread can run, `last_resort` ends it.
    """

    def __init__(self, grace: float = GRACE) -> None:
        self.grace = grace
        self._received: int | None = None
        self._is_interruptible = False
        self._exit_calls: list[Callable[[], object]] = []

    def on_exit(self, call: Callable[[], object]) -> None:
        """Add an exit call of the second thread, which must not wait for the main thread."""
        self._exit_calls.append(call)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Raise Interrupted on a signal, again and again if user code or a destructor swallows it.

        Raises:
            Interrupted: If a signal was received, whatever else happened since.
        """
        self._is_interruptible = True
        try:
            self._check()
            yield
        except Interrupted:
            raise
        except BaseException as error:  # user code may turn the signal into any error
            self._is_interruptible = False
            if self._received is not None:
                raise Interrupted(self._received) from error
            raise
        else:
            self._check()
        finally:
            self.end()

    def end(self) -> None:
        """Raise nothing from now on: an alarm may have cut the end of `interruptible` short."""
        self._is_interruptible = False
        signal.setitimer(signal.ITIMER_REAL, 0)

    @contextmanager
    def uninterruptible(self) -> Iterator[None]:
        """Hold signals back, within `interruptible`, until a write is complete."""
        before, self._is_interruptible = self._is_interruptible, False
        try:
            yield
        finally:
            self._is_interruptible = before
        if before:
            self._check()

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal; ALRM repeats an earlier one.

        Raises:
            Interrupted: Where the work is interruptible.
        """
        del frame
        if self._received is None:
            self._received = number
        if self._is_interruptible:
            signal.setitimer(signal.ITIMER_REAL, _REPEAT)
            raise Interrupted(self._received)

    def _check(self) -> None:
        if self._received is not None:
            raise Interrupted(self._received)

    def watch(self, read: int) -> None:
        """Run the second thread: wait for signals, then for the main thread to end.

        `read` is the descriptor of a socket with a byte for each signal that has a handler in
        Python, whoever set it, closed when all is done. Others than ours are passed over: torch has
        one for each end of a child, from the first DataLoader with workers on.
        """
        first: int | None = None
        began = 0.0
        deadline: float | None = None
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([read], [], [], left)
            if not ready:
                assert first is not None
                for call in self._exit_calls:
                    with suppress(Exception):  # the process ends anyway, with the signal's status
                        call()
                _end_process(first, None)
            numbers = os.read(read, 64)
            if not numbers:
                return
            for number in numbers:
                if number not in _SIGNALS:
                    continue
                if first is None:
                    first, began = number, time.monotonic()
                    deadline = began + self.grace
                elif time.monotonic() > began + _ECHO:
                    _end_process(first, None)


@contextmanager
def signal_handler(grace: float = GRACE) -> Iterator[SignalHandler]:
    """Receive signals; outside of `interruptible` they wait, so that files are left complete."""
    handler = SignalHandler(grace)
    with _second_thread(handler), _handlers((*_SIGNALS, signal.SIGALRM), handler.on_signal):
        try:
            yield handler
        finally:
            handler.end()


@contextmanager
def _second_thread(handler: SignalHandler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    import socket  # slow, and not needed while the program starts

    # Not a pipe: the last resort has to see what is in it without taking it away.
    ours, others = socket.socketpair()
    read, write = ours.detach(), others.detach()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    watcher = threading.Thread(target=handler.watch, args=(read,), daemon=True)
    watcher.start()
    try:
        with _last_resort(read, handler.grace):
            yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(write)
        watcher.join()
        os.close(read)


@contextmanager
def _last_resort(read: int, grace: float) -> Iterator[None]:
    """Have another process watch the arriving signals; do without where none can be started."""
    import subprocess  # slow, and not needed while the program starts

    script = Path(__file__).with_name("last_resort.py")
    numbers = ",".join(str(int(number)) for number in _SIGNALS)
    words = [sys.executable, "-I", "-S", str(script), str(read), str(os.getpid()), str(grace)]
    # Blocked until the other process has its own blocks: a Ctrl-C would end it while it starts.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        process = subprocess.Popen(
            [*words, numbers],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(read,),
            cwd="/",
        )
    except (OSError, ValueError):  # too many processes, or no interpreter
        process = None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    owner = os.getpid()
    try:
        yield
    finally:
        if process is not None and os.getpid() == owner:  # not in a child that the model forked
            process.kill()
            process.wait()


@contextmanager
def _handlers(numbers: Iterable[signal.Signals], handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A signal that the caller ignores (`command &` in a shell script ignores INT) stays ignored.
    handled = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in handled}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _end_process(number: int, frame: FrameType | None) -> None:
    del frame
    try:
        os.write(2, f"localrank: stopped by {signal.Signals(number).name}\n".encode())
    finally:
        _exit(status_of_signal(number))


@contextmanager
def exits_refused() -> Iterator[None]:
    """Let `os._exit` raise CodeExit, so that code which ends the process does not end the run.

    In a process that the code has forked it does what it always does. In another thread, where an
    exception would end the thread alone, the process ends with status 1.
    """
    home = os.getpid()

    def refuse(status: int) -> NoReturn:
        """Raise `CodeExit` in place of `os._exit`, except where a process that forked ends."""
        if os.getpid() != home:
            _exit(status)
        if threading.current_thread() is not threading.main_thread():
            text = f"localrank: error: the model's or the data's code called os._exit({status}).\n"
            os.write(2, text.encode())
            _exit(1)
        raise CodeExit(f"os._exit({status})")

    modules: list[Any] = [os, sys.modules[os.name]]  # os has its name from posix
    for module in modules:
        module._exit = refuse
    try:
        yield
    finally:
        for module in modules:
            module._exit = _exit


def open_missing_streams() -> None:
    """Replace a closed stdin, stdout or stderr (`>&-`).

    Otherwise the first file to be opened gets the free descriptor, and receives what a library
    prints. The replacement of stdout refuses writes like a closed one: results must not vanish
    silently.
    """
    for name, descriptor, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is not None or _is_open(descriptor):
            continue
        opened = os.open(os.devnull, os.O_WRONLY if descriptor == 2 else os.O_RDONLY)
        if opened != descriptor:
            os.dup2(opened, descriptor)
            os.close(opened)
        setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", errors="backslashreplace"))


def discard_stdout() -> None:
    """Discard what is left in stdout's buffer, which the interpreter flushes once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
