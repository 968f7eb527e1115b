"""Workers of a submission that are forked, instead of each starting an interpreter and torch.

They are forked before the program begins, and so know nothing of what it reads. Like the processes
that the program starts, they are its children, and lead a session of their own.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

_PART = 2**16  # bytes that are read at once


def number_of(words: Sequence[str]) -> int:
    """Return how many processes a command line starts on this machine."""
    if words[:1] == ("submit",) and "--cluster" not in words and "--workers" in words:
        return int(words[words.index("--workers") + 1])
    devices = words[words.index("--device") + 1].split(",") if "--device" in words else []
    return len(devices) if len(devices) > 1 else 0


def prepare(number: int, run: Callable[[Sequence[str]], None]) -> None:
    """Fork as many processes, and have the program give them its commands.

    Args:
        number: How many; what the program starts beyond that is a new interpreter.
        run: Runs the program with a command line, in one of the processes.
    """
    from localrank_cli.divide import workers  # here, where it is preloaded

    held: list[tuple[int, socket.socket]] = []
    for _ in range(number):
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            for end in (ours, *(one for _, one in held)):
                end.close()
            run(_command(theirs))
            sys.exit()
        theirs.close()
        held.append((pid, ours))

    def popen(command: Sequence[str], **options: Any) -> Any:
        return (
            _Worker(*held.pop(0), command, **options)
            if held
            else subprocess.Popen(command, **options)
        )

    names = SimpleNamespace(Popen=popen, DEVNULL=subprocess.DEVNULL, PIPE=subprocess.PIPE)
    vars(workers)["subprocess"] = names


def _command(link: socket.socket) -> Sequence[str]:
    """Wait for a command, or end with the process that would have given one."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    text, descriptors, _, _ = socket.recv_fds(link, _PART, 8)
    if not text:
        os._exit(0)
    while part := link.recv(_PART):
        text += part
    link.close()
    words, environment, numbers = json.loads(text)
    os.setsid()
    for descriptor, number in zip(descriptors, numbers, strict=True):
        if descriptor != number:
            os.dup2(descriptor, number)
            os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # that of the old TMPDIR
    return tuple(words[words.index("analyze") :])


class _Worker:
    """A process that was forked before; used as subprocess.Popen is."""

    def __init__(
        self,
        pid: int,
        link: socket.socket,
        command: Sequence[str],
        env: Mapping[str, str],
        pass_fds: Sequence[int],
        **_: Any,
    ) -> None:
        read, write = os.pipe()
        text = json.dumps([list(command), dict(env), [2, *pass_fds]]).encode()
        with link:
            socket.send_fds(link, [text], [write, *pass_fds])
        os.close(write)
        self.pid = pid
        self.stderr = open(read, "rb")  # noqa: PTH123, SIM115  # a descriptor, which its reader closes
        self.returncode: int | None = None

    def poll(self, options: int = os.WNOHANG) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self) -> int | None:
        return self.poll(0)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)
