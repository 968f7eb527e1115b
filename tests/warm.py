"""Processes that have imported torch already: a server forks one for each command.

A test that needs a process of its own, but not the start of one, runs several times as fast so.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from multiprocessing.context import ForkServerContext
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, Self

from tests.spares import number_of, prepare

_PRELOADED = ("torch", "pandas", "safetensors.torch", "matplotlib.pyplot", "localrank_cli.cli.main")
_LAST = "tests.frozen"
_LIBRARIES = ("transformers.modeling_utils", "transformers.trainer", "lightning")
_more: list[str] = []


def preload_libraries() -> None:
    """Have the server import what takes seconds each time, unless it has started already."""
    _more.extend(_LIBRARIES)  # it passes over what is not installed


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_PRELOADED, *_more, _LAST])
    return context


def run_warm(
    words: tuple[str, ...],
    folder: Path,
    environment: Mapping[str, str],
    out: Path,
    err: Path,
    before: Callable[[], None] | None = None,
    is_python: bool = False,
) -> int:
    """Run the program in a forked process, and return its exit status.

    Args:
        words: The command line after `localrank`.
        folder: The working directory.
        environment: All of it.
        out: What to open as standard output: a file, or a terminal.
        err: What to open as standard error.
        before: Called in the process before the program.
        is_python: Whether the words are a script, or -c and code, with its arguments.
    """
    start = _python if is_python else _submit
    arguments = (words, str(folder), dict(environment), str(out), str(err), start, before)
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
        arguments = (words, str(folder), dict(environment), out, err, _submit)
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
            if not stream.closed:
                with stream:
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
    start: Callable[[tuple[str, ...]], None],
    before: Callable[[], None] | None = None,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # that of the old TMPDIR
    os.chdir(folder)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup make test` has it ignored
    for descriptor, one in enumerate((os.devnull, out, err)):
        opened = os.open(one, os.O_RDWR | os.O_NOCTTY) if isinstance(one, str) else one
        os.dup2(opened, descriptor)
        os.close(opened)
    if before is not None:
        before()
    start(words)


def _submit(words: tuple[str, ...]) -> None:
    """Run the program, which has its workers from here."""
    prepare(number_of(words), _main)
    _main(words)


def _main(words: Sequence[str]) -> None:
    _open_streams()
    sys.argv = ["localrank", *words]
    from localrank_cli.__main__ import main  # here, where it is preloaded

    main()


def _python(words: tuple[str, ...]) -> None:
    """Run a script, or code after -c, as `python` does."""
    _open_streams()
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path.insert(0, "")
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = list(words)
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")


def _open_streams() -> None:
    """Open the streams that the process has, as an interpreter does."""
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
    sys.stdin, sys.stdout, sys.stderr = (_opened(number, encoding) for number in range(3))


def _opened(descriptor: int, encoding: str) -> Any:
    """Return a standard stream, or None where it is closed."""
    try:
        os.fstat(descriptor)
    except OSError:
        return None
    errors = "backslashreplace" if descriptor == 2 else None
    mode = "w" if descriptor else "r"
    return open(
        descriptor, mode, encoding=encoding, errors=errors, closefd=False
    )  # a descriptor, as long as the process
