"""Write what the docs repeat from the code, or --check whether it is up to date.

That is docs/cli.md, docs/python.md, the rows of the measures in docs/measures.md and docs/table.md,
and the keys of localrank.toml in docs/settings.md.
"""

import difflib
import inspect
import re
import sys
from pathlib import Path
from textwrap import TextWrapper
from typing import Any

import typer
from typer.testing import CliRunner

import localrank_cli
from localrank_cli.cli.main import app
from localrank_cli.measures.table import AVERAGED, CHOICES, MEASURES
from localrank_cli.options.setting import options_of
from localrank_cli.options.table import AnalyzeOptions

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 100
SETTINGS = "docs/settings.md"
HEAD = """\
# Command line

The output of `--help` for every command. This page is written by `python docs/make_cli.py`; a test
fails when it differs from the program.

See [models.md](models.md) for details on the model, data and layers, [measures.md](measures.md) on
tolerances, [checkpoints.md](checkpoints.md) on checkpoints, `--pattern` and `--trust-pickle`, and
[table.md](table.md) on `--output`.
"""

PYTHON = """\
# Python

What `localrank_cli` offers to programs, as `help` shows it. This page is written by
`python docs/make_cli.py`; a test fails when it differs from the code. Every function raises
`localrank_cli.errors.LocalrankError`, or a `TypeError` for a keyword that does not exist.
"""

PLACES = """\
## Where an option may be given

The same text means the same on the command line, in a series' `localrank.toml` and in
`localrank_cli.analyze`. The last column names the settings of the manifest that an option decides:
an analysis is resumed only where they are equal.

| command line | `localrank.toml` | Python | default | settings compared when resuming |
| --- | --- | --- | --- | --- |"""


def pages() -> dict[str, str]:
    """Return the pages in full, by their paths from the root of the repository."""
    return {
        "docs/cli.md": _command_line(),
        "docs/measures.md": _replaced(
            "docs/measures.md",
            r"(\| column \| formula \| source \|\n\| --- \| --- \| --- \|\n)(?:\|.*\n)*",
            _definitions(),
        ),
        "docs/table.md": _replaced(
            "docs/table.md", r"(\| `n_undecided` .*\n)(?:\|.*\n)*?(?=\| `method` )", _columns()
        ),
        SETTINGS: _settings(),
        "docs/python.md": _python(),
    }


def _replaced(path: str, pattern: str, lines: list[str]) -> str:
    """Return a page with other lines after the group of a pattern, to the end of its match."""
    text = (ROOT / path).read_text(encoding="utf-8")
    new = "".join(f"{line}\n" for line in lines)
    found, count = re.subn(pattern, lambda match: match[1] + new, text)
    if count != 1:
        raise RuntimeError(f"{path}: the rows of the measures are not found")
    return found


def _definitions() -> list[str]:
    return [
        f"| `{name}` | {measure.formula} | {measure.source}".rstrip() + " |"
        for name, measure in MEASURES.items()
    ]


def _columns() -> list[str]:
    lines = []
    for name in AVERAGED:
        empty = "" if name in CHOICES["counts"] else "; empty with `--measures counts`"
        lines += [
            f"| `{name}` | float | mean of {MEASURES[name].formula}{empty} |",
            f"| `{name}_se` | float | its standard error |",
        ]
    return lines


def _settings() -> str:
    """Return the page of settings with the keys of localrank.toml, in a paragraph of its own."""
    keys = [f"`{one.key}`" for one in options_of(AnalyzeOptions) if one.setting.in_folder]
    text = (ROOT / SETTINGS).read_text(encoding="utf-8")
    before, start, rest = text.partition("The keys are ")
    paragraph, end, after = rest.partition("\n\n")
    _, conjunction, others = " ".join(paragraph.split()).partition(" and a table ")
    if not conjunction:
        raise RuntimeError(f"{SETTINGS}: the keys of localrank.toml are not found")
    wrapper = TextWrapper(WIDTH, break_long_words=False, break_on_hyphens=False)
    return before + wrapper.fill(start + ", ".join(keys) + conjunction + others) + end + after


def _python() -> str:
    """Return docs/python.md, with a section for each name of the package."""
    names = [name for name in localrank_cli.__all__ if not name.startswith("_")]
    sections = []
    for name in sorted(names, key=str.lower):
        found = getattr(localrank_cli, name)
        text = inspect.getdoc(found) or ""
        sections.append(f"## {name}\n\n```text\n{text}\n```\n")
    return "\n".join([PYTHON, *sections])


def _command_line() -> str:
    """Return docs/cli.md, with a section for the program and each of its commands."""
    program = typer.main.get_command(app)
    commands = sorted(getattr(program, "commands", {}))
    sections = [_section([]), *(_section([name]) for name in commands)]
    return "\n".join([HEAD, *sections, _places()])


def _places() -> str:
    """Return the table of where the options of analyze may be written."""
    rows = [
        f"| `{one.flag}` | {'`' + one.key + '`' if one.setting.in_folder else ''} |"
        f" {'`' + one.name + '`' if one.setting.in_python else ''} |"
        f" {'' if one.setting.default is None else one.setting.default} |"
        f" {', '.join(f'`{key}`' for key in one.setting.decides)} |"
        for one in options_of(AnalyzeOptions)
        if not one.setting.is_argument
    ]
    return "\n".join([PLACES, *rows, ""])


def _section(words: list[str]) -> str:
    command: Any = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    flags = {flag for parameter in command.params for flag in parameter.opts}
    whole = "--help-all" if "--help-all" in flags else "--help"
    result = CliRunner().invoke(app, [*words, whole], prog_name="localrank", terminal_width=WIDTH)
    if result.exit_code != 0:
        raise RuntimeError(f"localrank {' '.join(words)} --help: {result.output}")
    title = " ".join(["localrank", *words])
    return f"## {title}\n\n```text\n{result.output.strip()}\n```\n"


def main(arguments: list[str]) -> int:
    """Write or check the pages; return 1 if one differs, 2 for wrong arguments, else 0."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write("usage: python docs/make_cli.py [--check]\n")
        return 2
    differing = 0
    for name, expected in pages().items():
        path = ROOT / name
        current = path.read_text(encoding="utf-8") if path.is_file() else ""
        if current == expected:
            continue
        if not arguments:
            path.write_text(expected, encoding="utf-8")
            continue
        differing = 1
        lines = difflib.unified_diff(
            current.splitlines(), expected.splitlines(), name, "the program", lineterm=""
        )
        sys.stderr.write("\n".join([*lines, "", f"{name} differs: run python docs/make_cli.py\n"]))
    return differing


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
