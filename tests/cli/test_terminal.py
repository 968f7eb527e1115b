"""What a person sees: real processes at a pseudo-terminal."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from pathlib import Path

import pytest
import torch

from tests.cli.program import COMMAND, QUICK
from tests.helpers import entries, save_series, weights

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def at_terminal(
    *words: str, columns: int = 80, stderr: bool = False, **environment: str
) -> tuple[int, str, str]:
    """Run the program with stdout (and stderr) at a terminal: status, screen, stderr's pipe."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    clean = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "LINES", "NO_COLOR"}}
    process = subprocess.Popen(
        [*COMMAND, *words],
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave if stderr else subprocess.PIPE,
        env=clean | {"TERM": "xterm-256color"} | environment,
    )
    os.close(slave)
    screen = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        screen += part
    os.close(master)
    errors = process.communicate(timeout=120)[1] or b""
    return process.returncode, screen.decode().replace("\r\n", "\n"), errors.decode()


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
    status, screen, _ = at_terminal("analyze", str(folder), *QUICK, stderr=True)
    assert status == 1
    assert screen == (
        f"localrank: error: {folder}: the folder is empty. Name a folder of checkpoints.\n"
    )


def test_help_has_a_group_for_dangerous_options() -> None:
    status, screen, stderr = at_terminal("analyze", "--help")
    assert (status, stderr) == (0, "")
    text = ESCAPE.sub("", screen)
    assert "--trust-model" in text.split("Dangerous options")[1]
    assert "--trust-pickle" in text.split("Dangerous options")[1]
    assert max(map(len, text.splitlines())) <= 80


def test_usage_errors_are_plain_lines() -> None:
    status, screen, _ = at_terminal("analyze", stderr=True)
    assert status == 2
    assert screen.startswith("localrank: error: Missing argument")
    assert screen.count("\n") == 1


def test_no_command_shows_the_help() -> None:
    status, screen, stderr = at_terminal()
    assert status == 2
    assert "analyze" in screen + stderr
