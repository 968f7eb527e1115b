"""A process that ends localrank where no signal can: run on its own, as a script.

Within one call of C that holds Python's lock, such as the hash of a tuple that repeats its parts
2^45 times, neither a handler nor a second thread of the same process runs. Then the bytes that
arriving signals write into a socket (`signal.set_wakeup_fd`) stay unread. This process shares the
reading end and never takes anything from it: it only checks whether a signal that asks the program
to stop has been waiting there for too long. Other signals may wait, such as the end of a child.

It imports nothing that takes time, holds no file of the other process but that socket, and ends
with it. It is started with all signals blocked, since those of a terminal reach it too.
"""

import os
import select
import signal
import socket
import sys
import termios
import time
from collections.abc import Collection
from contextlib import suppress

_LOOK = 0.25  # seconds between two looks; looks are counted, since the machine may sleep
_ALIVE = 1.0  # seconds between two looks for the other process: a child may hold the socket open
_MOST = 2**16  # bytes in a look


def _waiting(link: socket.socket, parent: int, looks: int, numbers: Collection[int]) -> int | None:
    """Return which of some signals has waited for so many looks, None once all has ended."""
    poll = select.poll()
    poll.register(link, select.POLLIN)
    waited = 0
    while os.getppid() == parent:
        if not poll.poll((_LOOK if waited else _ALIVE) * 1000):
            waited = 0
            continue
        try:
            arrived = link.recv(_MOST, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:  # read meanwhile
            waited = 0
            continue
        if not arrived:
            return None  # closed
        number = next((one for one in arrived if one in numbers), None)
        if number is not None and waited >= looks:
            return number
        waited = 0 if number is None else waited + 1
        time.sleep(_LOOK)
    return None


def _say(parent: int, text: str) -> None:
    """Write a line to the other process's stderr, where the system shows the way."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY
    with suppress(OSError):
        stderr = os.open(f"/proc/{parent}/fd/2", flags)
        # A progress bar hides the cursor, and leaves its line unfinished.
        start = "\r\x1b[2K\x1b[?25h" if os.isatty(stderr) else ""
        os.write(stderr, f"{start}{text}\n".encode())


def main() -> None:
    """Wait; the words are the socket, the other process, the seconds that it has, the signals."""
    link = socket.socket(fileno=int(sys.argv[1]))
    parent, grace = int(sys.argv[2]), float(sys.argv[3])
    numbers = frozenset(map(int, sys.argv[4].split(",")))
    terminal, before = -1, None
    with suppress(OSError, termios.error):
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        before = termios.tcgetattr(terminal)
    number = _waiting(link, parent, round(grace / _LOOK), numbers)
    if number is None:
        return
    name = signal.Signals(number).name
    with suppress(OSError, termios.error):
        if before is not None:
            termios.tcsetattr(terminal, termios.TCSANOW, before)
    _say(parent, f"localrank: killed, since {name} did not stop it within {grace:g} s")
    os.kill(parent, signal.SIGKILL)


if __name__ == "__main__":
    main()
