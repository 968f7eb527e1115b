"""Processes that have imported torch already: a server forks one for each command.

A test that needs a process of its own, but not the start of one, runs several times as fast so.
"""

import multiprocessing
import os
import sys
from collections.abc import Mapping
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path

_PRELOADED = ("torch", "pandas", "safetensors.torch", "matplotlib.pyplot", "localrank_cli.cli.main")


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
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


def _program(
    words: tuple[str, ...], folder: str, environment: dict[str, str], out: str, err: str
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for descriptor, path in enumerate((os.devnull, out, err)):
        opened = os.open(path, os.O_RDWR | os.O_NOCTTY)
        os.dup2(opened, descriptor)
        os.close(opened)
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    sys.stdin = open(0, encoding=encoding, closefd=False)  # noqa: SIM115  # open as long as the process
    sys.stdout = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115  # open as long as the process
    sys.stderr = open(2, "w", encoding=encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115  # open as long as the process
    sys.argv = ["localrank", *words]
    from localrank_cli.__main__ import main  # noqa: PLC0415  # here, where it is preloaded

    main()
