"""Processes that have imported torch already: a server forks one for each command.

A test that needs a process of its own, but not the start of one, runs several times as fast so.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import cache
from multiprocessing.context import ForkServerContext
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, Self

_PRELOADED = ("torch", "pandas", "safetensors.torch", "matplotlib.pyplot", "localrank_cli.cli.main")
_LAST = "tests.frozen"


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_PRELOADED, _LAST])
    return context


def run_warm(
    words: tuple[str, ...], folder: Path, environment: Mapping[str, str], out: Path, err: Path
) -> int:
    """Run the program in a forked process, and return its exit status.

    Args:
        words: The command line after `localrank`.
        folder: The working directory.
        environment: All of it.
        out: What to open as standard output: a file, or a terminal.
        err: What to open as standard error.
    """
    arguments = (words, str(folder), dict(environment), str(out), str(err))
    process = _context().Process(target=_program, args=arguments)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


class Warm:
    """A forked process with both outputs in pipes; used as subprocess.Popen is."""

    def __init__(
        self, words: tuple[str, ...], folder: Path, environment: Mapping[str, str]
    ) -> None:
        out, err = (_Written(*os.pipe()) for _ in range(2))
        arguments = (words, str(folder), dict(environment), out, err)
        self._process = _context().Process(target=_program, args=arguments)
        self._process.start()
        assert self._process.pid is not None
        self.args, self.pid = words, self._process.pid
        self.stdout, self.stderr = (one.reader() for one in (out, err))

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        texts = ["", ""]

        def read(index: int, stream: Any) -> None:
            texts[index] = stream.read()

        streams = enumerate((self.stdout, self.stderr))
        readers = [threading.Thread(target=read, args=each, daemon=True) for each in streams]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return texts[0], texts[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self.stdout.close()
        self.stderr.close()


class _Written:
    """A pipe, whose end for writing the forked process gets."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write

    def reader(self) -> Any:
        """Close the other end, which the process has by now, and open this one."""
        os.close(self._write)
        return open(self._read, encoding="utf-8")  # noqa: PTH123  # a descriptor

    def __reduce__(self) -> Any:
        return _descriptor, (DupFd(self._write),)


def _descriptor(passed: Any) -> int:
    return int(passed.detach())


def _program(
    words: tuple[str, ...],
    folder: str,
    environment: dict[str, str],
    out: str | int,
    err: str | int,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup make test` has it ignored
    for descriptor, one in enumerate((os.devnull, out, err)):
        opened = os.open(one, os.O_RDWR | os.O_NOCTTY) if isinstance(one, str) else one
        os.dup2(opened, descriptor)
        os.close(opened)
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    sys.stdin = open(0, encoding=encoding, closefd=False)  # noqa: SIM115  # open as long as the process
    sys.stdout = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115  # open as long as the process
    sys.stderr = open(2, "w", encoding=encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115  # open as long as the process
    sys.argv = ["localrank", *words]
    from localrank_cli.__main__ import main  # noqa: PLC0415  # here, where it is preloaded

    main()
