"""What a person sees: processes of their own at a pseudo-terminal."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import tempfile
import termios
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.cli.program import COMMAND, QUICK
from tests.helpers import entries, save_series, weights
from tests.warm import run_warm

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def at_terminal(
    *words: str, columns: int = 80, stderr: bool = False, cold: bool = False, **environment: str
) -> tuple[int, str, str]:
    """Run the program with stdout (and stderr) at a terminal: status, screen, what is in stderr.

    A `cold` one imports what lays out its help when the terminal is there.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    clean = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "LINES", "NO_COLOR"}}
    clean |= {"TERM": "xterm-256color"} | environment
    name = Path(os.ttyname(slave))
    with tempfile.NamedTemporaryFile() as errors, ThreadPoolExecutor(max_workers=1) as pool:
        written = pool.submit(_read_all, master)
        err = name if stderr else Path(errors.name)
        if cold:
            with name.open("w") as out, err.open("w") as beside:
                status = subprocess.call(
                    [*COMMAND, *words], stdin=subprocess.DEVNULL, stdout=out, stderr=beside,
                    env=clean, timeout=120,
                )  # fmt: skip
        else:
            status = run_warm(words, Path.cwd(), clean, name, err)
        os.close(slave)
        screen = written.result().decode().replace("\r\n", "\n")
        return status, screen, Path(errors.name).read_text("utf-8")


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_an_error_breaks_at_words(tmp_path: Path, columns: int) -> None:
    words = ("analyze", str(tmp_path), "--model", "nothing")
    status, screen, _ = at_terminal(*words, columns=columns, stderr=True)
    assert status == 2
    lines = screen.splitlines()
    assert len(lines) > 1
    assert all(len(line) <= columns for line in lines)
    dumb_status, dumb, _ = at_terminal(*words, columns=columns, stderr=True, TERM="dumb")
    assert dumb_status == 2
    assert " ".join(lines) == dumb.rstrip("\n")


def _read_all(master: int) -> bytes:
    """Read until nobody has the terminal open any more."""
    screen = b""
    # Linux ends a terminal that nobody writes to with an error.
    with contextlib.suppress(OSError), open(master, "rb", buffering=0) as stream:
        while part := stream.read(65536):
            screen += part
    return screen


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Names that are markup to rich, in the folder and in the layers."""
    folder = tmp_path_factory.mktemp("x") / "run[seed=3]"
    folder.mkdir()
    for step in (0, 10):
        names = {"0": "[bold]", "2": "head[/]"}
        state = {f"{names[key[0]]}{key[1:]}": v for key, v in weights(seed=step).items()}
        torch.save(state, folder / f"step_{step}.pt")
    return folder


def test_the_table(strange: Path) -> None:
    status, screen, stderr = at_terminal("analyze", str(strange), *QUICK)
    assert status == 0, stderr
    text = ESCAPE.sub("", screen)
    lines = text.splitlines()
    assert lines[0] == "run[seed=3]: local rank at atol=0.01 (5 points, steps 0 to 10)"
    assert lines[1].split() == ["layer", "size", "first", "peak", "at", "step", "last", "trend",
                                "eff.", "rank"]  # fmt: skip
    assert lines[3].startswith("[bold] ")
    assert lines[4].startswith("head[/] ")
    assert len(lines) == 5
    assert max(map(len, lines)) <= 80
    assert "run,checkpoint" not in text
    assert stderr.count("\n") == 1  # the note


def test_a_narrow_terminal_cuts_no_number(strange: Path) -> None:
    status, screen, _ = at_terminal("analyze", str(strange), *QUICK, columns=56, NO_COLOR="1")
    assert status == 0
    assert ESCAPE.sub("", screen).splitlines()[3].startswith("[bold] ")
    assert "…" not in screen.splitlines()[3][8:]
    # Bold is no colour.
    assert not re.search(r"\x1b\[[0-9;]*(3[0-9]|4[0-9]|9[0-9])m", screen)


def test_everything_at_the_terminal(tmp_path: Path) -> None:
    """With a progress bar, which is gone at the end, and an output file beside the table."""
    folder = save_series(tmp_path / "run", range(4))
    words = ("analyze", str(folder), *QUICK, "-o", str(tmp_path / "ranks.csv"))
    status, screen, _ = at_terminal(*words, stderr=True)
    assert status == 0
    assert "checkpoints" in screen
    assert "4/4" in screen
    assert screen.count("\x1b[?25l") == screen.count("\x1b[?25h")  # the cursor is back
    text = ESCAPE.sub("", screen)
    assert "localrank: note: no --model: read as a plain MLP 4-3-2" in text
    assert "run: local rank at atol=0.01" in text
    assert "ranks.csv.json" in text.replace("\n", "")
    assert entries(tmp_path) == ["ranks.csv", "ranks.csv.journal", "ranks.csv.json", "run"]


def test_an_error_is_not_boxed_or_coloured(tmp_path: Path) -> None:
    folder = tmp_path / "run[red]"
    folder.mkdir()
    status, screen, _ = at_terminal("analyze", str(folder), *QUICK, stderr=True, columns=500)
    assert status == 1
    assert screen == (
        f"localrank: error: {folder}: the folder is empty. Name a folder of checkpoints.\n"
    )


def test_help_has_a_group_for_dangerous_options() -> None:
    status, screen, stderr = at_terminal("analyze", "--help", cold=True)
    assert (status, stderr) == (0, "")
    text = ESCAPE.sub("", screen)
    assert "--trust-model" in text.split("Dangerous options")[1]
    assert "--trust-pickle" in text.split("Dangerous options")[1]
    assert max(map(len, text.splitlines())) <= 80


def test_usage_errors_are_plain_lines() -> None:
    status, screen, _ = at_terminal("analyze", stderr=True, cold=True)
    assert status == 2
    assert screen == (
        "localrank: error: Missing argument 'CHECKPOINTS'. See 'localrank analyze\n--help'.\n"
    )


def test_no_command_shows_the_help() -> None:
    status, screen, stderr = at_terminal(cold=True)
    assert status == 2
    assert "analyze" in screen + stderr
