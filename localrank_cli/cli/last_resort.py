"""A process that ends localrank where no signal can: run on its own, as a script.

Within one call of C that holds Python's lock, such as the hash of a tuple that repeats its parts
2^45 times, neither a handler nor a second thread of the same process runs. Then the bytes that
arriving signals write into a pipe (`signal.set_wakeup_fd`) stay unread. This process shares the
reading end and never reads: it only checks whether something has been waiting there for too long.

It imports nothing that takes time, holds no file of the other process but that pipe, and ends with
it. It is started with all signals blocked, since those of a terminal reach it too.
"""

import os
import select
import signal
import sys
import termios
from contextlib import suppress

_LOOK = 0.25  # seconds between two looks; looks are counted, since the machine may sleep
_ALIVE = 1.0  # seconds between two looks for the other process, of which a child may hold the pipe


def _has_lain(pipe: "select.poll", parent: int, looks: int) -> bool:
    """Return True once something has lain in the pipe for so many looks, False if all has ended."""
    waited = 0
    while os.getppid() == parent:
        events = [event for _, event in pipe.poll((_LOOK if waited else _ALIVE) * 1000)]
        if not events:
            waited = 0
        elif not events[0] & select.POLLIN:
            return False  # closed and empty
        elif waited >= looks:
            return True
        else:
            waited += 1
            select.select([], [], [], _LOOK)
    return False


def _say(parent: int, text: str) -> None:
    """Write a line to the other process's stderr, where the system shows the way."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY
    with suppress(OSError):
        stderr = os.open(f"/proc/{parent}/fd/2", flags)
        # A progress bar hides the cursor, and leaves its line unfinished.
        start = "\r\x1b[2K\x1b[?25h" if os.isatty(stderr) else ""
        os.write(stderr, f"{start}{text}\n".encode())


def main() -> None:
    """Wait; the words are the pipe, the other process, and the seconds that it has."""
    descriptor, parent, grace = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    pipe = select.poll()
    pipe.register(descriptor, select.POLLIN)
    terminal, before = -1, None
    with suppress(OSError, termios.error):
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        before = termios.tcgetattr(terminal)
    if not _has_lain(pipe, parent, round(grace / _LOOK)):
        return
    name = signal.Signals(os.read(descriptor, 1)[0]).name
    with suppress(OSError, termios.error):
        if before is not None:
            termios.tcsetattr(terminal, termios.TCSANOW, before)
    _say(parent, f"localrank: killed, since {name} did not stop it within {grace:g} s")
    os.kill(parent, signal.SIGKILL)


if __name__ == "__main__":
    main()
