"""Writes docs/cli.md from the help of the program; --check only says whether it is up to date."""

import difflib
import sys
from pathlib import Path

import typer
from typer.testing import CliRunner

from localrank_cli.cli.main import app
from localrank_cli.options.setting import options_of
from localrank_cli.options.table import AnalyzeOptions

PAGE = Path(__file__).with_name("cli.md")
WIDTH = 100
HEAD = """\
# Command line

What `--help` says, for every command. This page is written by `python docs/make_cli.py`; a test
fails when it differs from the program.

What the options do in detail stands in [models.md](models.md) (model, data, layers),
[measures.md](measures.md) (tolerances), [checkpoints.md](checkpoints.md) (checkpoints, `--pattern`,
`--trust-pickle`) and [table.md](table.md) (`--output`).
"""

PLACES = """\
## Where an option may be given

The same text means the same on the command line, in a series' `localrank.toml` and in
`localrank_cli.analyze`. The last column names the settings of the manifest that an option decides:
an analysis is resumed only where they are equal.

| command line | `localrank.toml` | Python | default | settings compared when resuming |
| --- | --- | --- | --- | --- |"""


def page() -> str:
    """Renders the page.

    Returns:
        Markdown: one section for the program and one for each of its commands.
    """
    program = typer.main.get_command(app)
    commands = sorted(getattr(program, "commands", {}))
    sections = [_section([]), *(_section([name]) for name in commands)]
    return "\n".join([HEAD, *sections, _places()])


def _places() -> str:
    """Render the table of where the options of analyze may be written."""
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
    # Plain text whether this script stands at a terminal or not: no colour, no boxes.
    markup, app.rich_markup_mode = app.rich_markup_mode, None
    try:
        result = CliRunner().invoke(
            app, [*words, "--help"], prog_name="localrank", terminal_width=WIDTH
        )
    finally:
        app.rich_markup_mode = markup
    if result.exit_code != 0:
        raise RuntimeError(f"localrank {' '.join(words)} --help: {result.output}")
    title = " ".join(["localrank", *words])
    return f"## {title}\n\n```text\n{result.output.strip()}\n```\n"


def main(arguments: list[str]) -> int:
    """Writes the page, or checks it.

    Args:
        arguments: Empty, or `--check`.

    Returns:
        The exit status: 0; 1 when the page differs; 2 for other arguments.
    """
    if arguments not in ([], ["--check"]):
        sys.stderr.write("usage: python docs/make_cli.py [--check]\n")
        return 2
    wanted = page()
    if not arguments:
        PAGE.write_text(wanted, encoding="utf-8")
        return 0
    found = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    if found == wanted:
        return 0
    lines = difflib.unified_diff(
        found.splitlines(), wanted.splitlines(), "docs/cli.md", "--help", lineterm=""
    )
    sys.stderr.write("\n".join([*lines, "", "docs/cli.md differs: run python docs/make_cli.py"]))
    sys.stderr.write("\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
