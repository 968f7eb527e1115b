"""The help of commands: groups, the common options first, all of them on demand."""

import re
from typing import Any

import pytest
import typer

from localrank_cli.cli.help import brief
from localrank_cli.cli.main import app
from localrank_cli.options.setting import PANELS, options_of
from localrank_cli.options.table import AnalyzeOptions
from tests.cli.program import invoke

GROUP: Any = typer.main.get_command(app)
COMMANDS = sorted(GROUP.commands)
WHOLE = ("analyze", "inspect", "submit", "compress")  # those whose --help leaves out options


def titles(text: str) -> list[str]:
    """Return the headings of a help, in order."""
    return [line[:-1] for line in text.splitlines() if re.fullmatch(r"[A-Z][^:]*:", line)]


def flags(text: str) -> set[str]:
    """Return the options that have a line of their own."""
    return set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", text, flags=re.MULTILINE))


def test_the_help_of_analyze_fits_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = invoke("analyze", "--help").stdout
    assert len(text.splitlines()) < 60
    assert max(map(len, text.splitlines())) <= 80
    assert [title for title in titles(text) if title in PANELS] == list(PANELS)


def test_options_left_out_are_counted_and_shown_on_demand() -> None:
    short, whole = invoke("analyze", "--help").stdout, invoke("analyze", "--help-all").stdout
    every = {one.flag for one in options_of(AnalyzeOptions) if not one.setting.is_argument}
    assert every <= flags(whole)
    assert flags(short) < flags(whole)
    assert f"{len(flags(whole) - flags(short))} more options" in short
    assert "more options" not in whole


@pytest.mark.parametrize("command", WHOLE)
def test_the_whole_help_holds_the_short_one(command: str) -> None:
    short, whole = invoke(command, "--help").stdout, invoke(command, "--help-all").stdout
    assert flags(short) < flags(whole)
    assert set(titles(short)) <= set(titles(whole))


@pytest.mark.parametrize("command", COMMANDS)
def test_each_help_ends_with_an_example_of_options_that_it_shows(command: str) -> None:
    options, end = invoke(command, "--help").stdout.split("\nExample:\n")
    example = end.splitlines()[0]
    assert example.startswith(f"  localrank {command} ")
    assert len(example) <= 80
    names = re.findall(r"^  (-.*?)(?:  |$)", options, flags=re.MULTILINE)
    shown = set(re.findall(r"--?\w[\w-]*", " ".join(names)))
    assert set(re.findall(r" (--?\w[\w-]*)", example)) <= shown


def test_commands_are_described_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    text = invoke("--help").stdout
    assert "..." not in text.split("Commands:")[1]
    words = " ".join(text.split())
    assert "Recount kept singular values at other tolerances, without recomputing" in words
    assert all(f"\n  {command} " in text for command in COMMANDS)


@pytest.mark.parametrize("width", ["30", "80", "200"])
def test_words_are_not_broken(monkeypatch: pytest.MonkeyPatch, width: str) -> None:
    monkeypatch.setenv("COLUMNS", width)
    text = invoke("analyze", "--help-all").stdout
    assert "last-all" in text
    assert not re.search(r"\w-$", text, flags=re.MULTILINE)


def test_the_short_text_is_the_first_sentence_and_the_default() -> None:
    assert brief("Number of points. They are drawn, e.g. 3. Default: 64.") == (
        "Number of points. Default: 64."
    )
    assert brief("Only this.") == "Only this."


def test_every_option_of_analyze_has_a_group() -> None:
    without = {one.name for one in options_of(AnalyzeOptions) if one.setting.panel is None}
    assert without == {"checkpoints", "debug"}  # the argument, and what is next to --help
