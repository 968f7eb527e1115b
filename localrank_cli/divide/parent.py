"""End workers with the process that started them, however it ends.

After `kill -9`, no handler can stop them. So the kernel sends each worker a signal (Linux), or the
worker watches a pipe whose other end closes with the parent.
"""

import ctypes
import os
import select
import signal
import sys
import threading
from contextlib import suppress

_VARIABLE = "LOCALRANK_PARENT"
_PR_SET_PDEATHSIG = 1
_SIGNAL = signal.SIGTERM  # finished checkpoints are kept, and their table is written


class Tie:
    """The parent's end of the pipe, closed by the kernel if not by us."""

    def __init__(self) -> None:
        self.theirs, self._ours = os.pipe()

    @property
    def environment(self) -> dict[str, str]:
        """What a worker, which inherits `theirs`, must be told."""
        return {_VARIABLE: f"{os.getpid()}:{self.theirs}"}


def tie_to_parent() -> None:
    """End this process when the one that started it ends, if that one asked for it."""
    word = os.environ.pop(_VARIABLE, None)  # not for processes that the user's code starts
    if word is None:
        return
    try:
        parent, descriptor = map(int, word.split(":"))
        os.set_inheritable(descriptor, False)
    except (ValueError, OSError):  # set by something else
        return
    # Behind a wrapper script the kernel would watch the script.
    if os.getppid() != parent or not _ask_kernel():
        threading.Thread(target=_watch, args=(descriptor,), daemon=True).start()
    elif select.select([descriptor], [], [], 0)[0]:  # it ended before the kernel was asked
        os.kill(os.getpid(), _SIGNAL)


def _ask_kernel() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    with suppress(OSError, AttributeError):
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        return bool(prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(_SIGNAL), 0, 0, 0) == 0)
    return False


def _watch(descriptor: int) -> None:
    with suppress(OSError):
        os.read(descriptor, 1)  # nothing is written: it returns when the other end closes
    os.kill(os.getpid(), _SIGNAL)
