"""Write docs/cli.md from the help of the program, or --check whether it is up to date."""

import difflib
import sys
from pathlib import Path
from textwrap import TextWrapper
from unittest import mock

import typer
from typer.testing import CliRunner

from localrank_cli.cli.main import app
from localrank_cli.options.setting import options_of
from localrank_cli.options.table import AnalyzeOptions

PAGE = Path(__file__).with_name("cli.md")
WIDTH = 100
HEAD = """\
# Command line

The output of `--help` for every command. This page is written by `python docs/make_cli.py`; a test
fails when it differs from the program.

See [models.md](models.md) for details on the model, data and layers, [measures.md](measures.md) on
tolerances, [checkpoints.md](checkpoints.md) on checkpoints, `--pattern` and `--trust-pickle`, and
[table.md](table.md) on `--output`.
"""

PLACES = """\
## Where an option may be given

The same text means the same on the command line, in a series' `localrank.toml` and in
`localrank_cli.analyze`. The last column names the settings of the manifest that an option decides:
an analysis is resumed only where they are equal.

| command line | `localrank.toml` | Python | default | settings compared when resuming |
| --- | --- | --- | --- | --- |"""


def page() -> str:
    """Return the page in Markdown, with a section for the program and each of its commands."""
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
    # Without markup the help is plain text, on a terminal too. Lines do not end within an option's
    # name, after a hyphen.
    markup, app.rich_markup_mode = app.rich_markup_mode, None
    try:
        with mock.patch.object(TextWrapper, "wordsep_re", TextWrapper.wordsep_simple_re):
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
    """Write or check the page; return 1 if it differs, 2 for wrong arguments, else 0."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write("usage: python docs/make_cli.py [--check]\n")
        return 2
    expected = page()
    if not arguments:
        PAGE.write_text(expected, encoding="utf-8")
        return 0
    current = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    if current == expected:
        return 0
    lines = difflib.unified_diff(
        current.splitlines(), expected.splitlines(), "docs/cli.md", "--help", lineterm=""
    )
    sys.stderr.write("\n".join([*lines, "", "docs/cli.md differs: run python docs/make_cli.py\n"]))
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
