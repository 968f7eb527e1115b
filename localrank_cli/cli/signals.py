"""What INT, TERM, USR1 and USR2 do: the promised status, and nothing half-written left behind."""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_AGAIN = 0.25  # seconds
# Most batch systems kill 30 s or more after the first signal, and users wait less.
GRACE = 5.0


class Interrupted(BaseException):
    """A signal asked the program to stop.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.name = signal.Signals(number).name
        self.exit_code = 128 + number


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Within, a signal ends the process on the spot: for start-up, when there is nothing to undo.

    An exception would not do: some packages swallow it while they are imported, and go on half
    imported.

    Yields:
        Nothing.
    """
    with _handling(_SIGNALS, _leave):
        yield


class Ears:
    """Hears signals, and raises Interrupted while it is listening.

    Python's own handlers wait for the main thread, which may be in one call of LAPACK for minutes.
    So a second thread hears too (`signal.set_wakeup_fd`): where the main thread has not stopped
    within the grace, it says the last words and ends the process; a second signal ends it at once.

    Args:
        grace: In seconds.
    """

    def __init__(self, grace: float = GRACE) -> None:
        self._grace = grace
        self._heard: int | None = None
        self._listening = False
        self._last_words: list[Callable[[], object]] = []

    def at_the_end(self, last_words: Callable[[], object]) -> None:
        """Sets what the second thread does before it ends the process.

        Args:
            last_words: Must not wait for the main thread.
        """
        self._last_words.append(last_words)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within, a signal raises Interrupted.

        Where a user's code or a destructor swallows the exception it comes again and again.

        Yields:
            Nothing.

        Raises:
            Interrupted: If a signal was heard, whatever else happened since.
        """
        self._listening = True
        try:
            self._check()
            yield
        except Interrupted:
            raise
        except BaseException as error:
            self._listening = False
            if self._heard is not None:
                raise Interrupted(self._heard) from error
            raise
        else:
            self._check()
        finally:
            self._listening = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within `listening`: a signal waits until what is being kept is kept whole.

        Yields:
            Nothing.
        """
        before, self._listening = self._listening, False
        try:
            yield
        finally:
            self._listening = before
        if before:
            self._check()

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Takes a signal.

        Args:
            number: The signal; ALRM is the repetition of an earlier one.
            frame: Not needed.

        Raises:
            Interrupted: While listening.
        """
        del frame
        if self._heard is None:
            self._heard = number
        if self._listening:
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
            raise Interrupted(self._heard)

    def _check(self) -> None:
        if self._heard is not None:
            raise Interrupted(self._heard)

    def watch(self, read: int) -> None:
        """The second thread: waits for signals, then for the main thread to end.

        Args:
            read: Gives one byte for each signal; closed at the other end when all is done.
        """
        first: int | None = None
        deadline: float | None = None
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([read], [], [], left)
            if not ready:
                assert first is not None
                for last_words in self._last_words:
                    with suppress(Exception):  # what is on the disk is on the disk
                        last_words()
                _leave(first, None)
            numbers = os.read(read, 64)
            if not numbers:
                return
            for number in numbers:
                if number == signal.SIGALRM:
                    continue
                if first is not None:
                    _leave(first, None)
                first, deadline = number, time.monotonic() + self._grace


@contextmanager
def hearing(grace: float = GRACE) -> Iterator[Ears]:
    """Within, signals are heard; outside of `listening` they wait, so that files are left whole.

    Args:
        grace: How many seconds the main thread has to stop.

    Yields:
        What hears them.
    """
    ears = Ears(grace)
    with _watched(ears), _handling((*_SIGNALS, signal.SIGALRM), ears.on_signal):
        yield ears


@contextmanager
def _watched(ears: Ears) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    watcher = threading.Thread(target=ears.watch, args=(read,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(write)
        watcher.join()
        os.close(read)


@contextmanager
def _handling(numbers: Iterable[signal.Signals], handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # What a shell script put out of reach (`command &` ignores INT) stays so.
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _leave(number: int, frame: FrameType | None) -> None:
    del frame
    try:
        os.write(2, f"localrank: stopped by {signal.Signals(number).name}\n".encode())
    finally:
        os._exit(128 + number)


def open_missing_streams() -> None:
    """Puts something in the place of a closed stdin, stdout or stderr (`>&-`).

    Otherwise the first file that is opened takes the free number, and what a library prints ends
    in it. The stand-in for stdout refuses to be written to, as a closed one does: results must not
    vanish without a word.
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
    """Lets what is left for stdout go nowhere: the interpreter flushes it once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
