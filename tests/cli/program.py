"""Run the program: in this process where that is enough, else as a real one."""

import csv
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import typer
from typer.testing import CliRunner

from localrank_cli.cli import signals
from localrank_cli.cli.main import app
from tests.warm import Warm, run_warm

COMMAND = (sys.executable, "-m", "localrank_cli")
command_of = cache(typer.main.get_command)  # which takes longer than most commands
QUICK = ("--data", "normal:4", "--device", "cpu", "--points", "5")


@dataclass(frozen=True)
class Outcome:
    """How the program ended, and what it printed."""

    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The one line of the error, after all notes."""
        *notes, last = self.stderr.splitlines()
        assert last.startswith("localrank: error: "), self.stderr
        assert all(line.startswith(("localrank: note: ", "user: ")) for line in notes), self.stderr
        return last.removeprefix("localrank: error: ")


def invoke(*words: str, **options: Any) -> Outcome:
    """Run the program in this process, which no other one watches: that takes its start."""
    with (
        patch.object(signals, "_last_resort", lambda *_: nullcontext()),
        patch.object(typer.testing, "_get_command", command_of),
    ):
        result = CliRunner().invoke(app, list(words), prog_name="localrank", **options)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def analyze(series: Path, target: Path, *words: str) -> Outcome:
    """Analyze a series quickly, into a table."""
    return invoke("analyze", str(series), *QUICK, "-o", str(target), *words)


def at_once(series: Path, *words: str) -> str:
    """Return the table of a series that is analyzed quickly, without a file."""
    return invoke("analyze", str(series), *QUICK, *words).stdout


def rows(table: str | Path) -> list[dict[str, str]]:
    """Return the rows of a table in CSV, given as its text or its file."""
    text = table.read_text("utf-8") if isinstance(table, Path) else table
    return list(csv.DictReader(io.StringIO(text, newline="")))


def start(*words: str, **options: Any) -> "subprocess.Popen[str]":
    """Start a real process with its streams in pipes, unless `options` differ."""
    streams = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    return subprocess.Popen([*COMMAND, *words], **(streams | options))


def start_warm(*words: str, env: Mapping[str, str] | None = None) -> Warm:
    """Start a process of its own, which has torch already, with its outputs in pipes."""
    return Warm(words, Path.cwd(), os.environ if env is None else env)


def run(
    *words: str,
    env: Mapping[str, str] | None = None,
    **how: Any,
) -> Outcome:
    """Run a process of its own, which has torch already, to its end; `how` is for `run_warm`."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        out.touch()
        err.touch()
        environment = os.environ if env is None else env
        code = run_warm(words, Path.cwd(), environment, out, err, **how)
        return Outcome(code, out.read_text("utf-8"), err.read_text("utf-8"))


def run_python(*words: str | Path, env: Mapping[str, str] | None = None) -> str:
    """Run a script, or -c and code, in a process that has torch already; return its output."""
    outcome = run(*map(str, words), env=env, is_python=True)
    assert outcome.code == 0, outcome.stderr
    return outcome.stdout


def run_cold(*words: str, **options: Any) -> Outcome:
    """Run a process from its start to its end."""
    with start(*words, **options) as process:
        stdout, stderr = process.communicate(timeout=120)
    return Outcome(process.returncode, stdout or "", stderr or "")
