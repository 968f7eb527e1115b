"""The help of commands: their options in groups, the common ones first."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from textwrap import TextWrapper, shorten
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from localrank_cli.options.setting import PANELS, Option

HELP_ALL = "help_all"
_ARGUMENTS, _OTHER = "Arguments", "Other"
_LONGEST_OFFER = 70  # less than the 80 columns of typer
_FEW = 12  # options; a command of so few shows all of them
_WIDEST = 24  # names that are longer have a line of their own
_BRACES = re.compile(r"[{}]")
_SENTENCE = re.compile(r"(?<=\.) (?=[A-Z])")


@dataclass(frozen=True)
class Help:
    """What the help of a command says beside its options' texts.

    Args:
        options: The options of the command.
        example: A command line to copy.
    """

    options: tuple[Option, ...]
    example: str

    @property
    def is_short(self) -> bool:
        """Whether `--help` leaves out options, which `--help-all` shows."""
        is_long = len(self.options) > _FEW
        return is_long and any(one.setting.is_common for one in self.options)

    def common(self) -> set[str]:
        """Return the names of the options that `--help` shows."""
        return {
            one.name
            for one in self.options
            if not self.is_short or one.setting.is_common or one.setting.is_argument
        }


def command_class(of_command: Help) -> type[TyperCommand]:
    """Return the class of a command with this help."""

    class Command(TyperCommand):
        """A command whose help has its options in groups."""

        def collect_usage_pieces(self, ctx: Any) -> list[str]:
            """Return the words after the name in the usage, without braces around one choice."""
            return [_BRACES.sub("", piece) for piece in super().collect_usage_pieces(ctx)]

        def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
            """Return the options that a word may become."""
            return _in_one_line(super().shell_complete(ctx, incomplete))

        def format_options(self, ctx: Any, formatter: Any) -> None:
            """Write the groups of options, and the example."""
            is_whole = not of_command.is_short or ctx.meta.get(HELP_ALL, False)
            left_out = 0
            groups: dict[str, list[tuple[str, str]]] = {}
            panels = {one.name: one.setting.panel for one in of_command.options}
            common = of_command.common()
            for parameter in self.get_params(ctx):
                name = parameter.name or ""
                if name in panels and name not in common and not is_whole:
                    left_out += 1
                    continue
                flag, text = _record(parameter, ctx)
                title = _ARGUMENTS if parameter.param_type_name == "argument" else None
                panel = title or panels.get(name) or _OTHER
                groups.setdefault(panel, []).append((flag, text if is_whole else brief(text)))
            if not {*groups} & {*PANELS}:
                groups["Options"] = groups.pop(_OTHER)
            for panel in _ordered(groups):
                _write(formatter, panel, groups[panel])
            _write_end(formatter, ctx.command_path, of_command.example, left_out)

    return Command


class Group(TyperGroup):
    """The program, whose help shows one whole line or more for each command."""

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Return the commands and options that a word may become."""
        return _in_one_line(super().shell_complete(ctx, incomplete))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the first paragraph of each command's help, wrapped."""
        del ctx
        commands: Mapping[str, Any] = self.commands
        rows = [(name, _first(one.help or "")) for name, one in commands.items() if not one.hidden]
        _write(formatter, "Commands", rows)


def _in_one_line(items: list[Any]) -> list[Any]:
    """Shorten the texts of what is offered: typer breaks lines, at which zsh offers nothing."""
    for item in items:
        if item.help:
            item.help = shorten(brief(item.help), _LONGEST_OFFER, placeholder=" ...")
    return items


def brief(text: str) -> str:
    """Return the first sentence of an option's help, and its default."""
    first, *others = _SENTENCE.split(text)
    return " ".join([first, *(one for one in others if one.startswith("Default:"))])


def help_all_option() -> Any:
    """Return the parameter `--help-all` of a command."""
    return typer.Option(
        "--help-all", is_eager=True, callback=_print_whole, help="Show all options and exit."
    )


def _print_whole(context: typer.Context, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        context.meta[HELP_ALL] = True
        typer.echo(context.get_help())
        raise typer.Exit


def _record(parameter: Any, context: typer.Context) -> tuple[str, str]:
    """Return a parameter's names with its placeholder, and its text."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar), parameter.help or ""
    flag, text = parameter.get_help_record(context)
    return flag, text


def _ordered(groups: Iterable[str]) -> Iterator[str]:
    """Yield the names of groups: those of one command first, then the shared ones."""
    names = list(groups)
    own = [name for name in names if name not in {_ARGUMENTS, *PANELS, _OTHER}]
    yield from (name for name in (_ARGUMENTS, *own, *PANELS, _OTHER) if name in names)


def _write(formatter: Any, title: str, rows: list[tuple[str, str]]) -> None:
    """Write a group: names on the left, their texts on the right, broken between words alone."""
    with formatter.section(_bold(title)):
        indent = formatter.current_indent
        column = indent + min(max(len(name) for name, _ in rows), _WIDEST) + 2
        for name, text in rows:
            lead = f"{'':{indent}}{name}"
            if len(lead) + 2 > column:
                formatter.write(f"{lead}\n")
                lead = ""
            wrapper = TextWrapper(
                formatter.width,
                initial_indent=lead.ljust(column),
                subsequent_indent=" " * column,
                break_long_words=False,
                break_on_hyphens=False,  # options and their values hold hyphens
            )
            formatter.write(wrapper.fill(text) + "\n")


def _bold(title: str) -> str:
    """Return a title in bold, which typer removes where the help does not go to a terminal."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return title if plain else typer.style(title, bold=True)


def _write_end(formatter: Any, path: str, example: str, left_out: int) -> None:
    with formatter.section(_bold("Example")):
        formatter.write(f"{'':{formatter.current_indent}}{example}\n")
    if left_out:
        formatter.write_paragraph()
        formatter.write_text(f"{left_out} more options, and details on these: {path} --help-all")


def _first(text: str) -> str:
    return " ".join(text.split("\n\n", maxsplit=1)[0].split())
