"""Build commands from tables of options."""

import inspect
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from localrank_cli.cli.completion import completion_of
from localrank_cli.cli.help import HELP_ALL, Help, command_class, help_all_option
from localrank_cli.options.read import FLAGS, read_options
from localrank_cli.options.setting import Option, options_of
from localrank_cli.options.table import AnalyzeOptions
from localrank_cli.remote.address import address_of


@dataclass(frozen=True)
class Command:
    """A command of the program: its function, as typer reads it, and its help."""

    run: Callable[..., None]
    help: Help

    def add_to(self, app: typer.Typer) -> None:
        """Add the command under the name of its function."""
        app.command(self.run.__name__, cls=command_class(self.help))(self.run)


def with_options(
    *tables: type, example: str, without: Collection[str] = ()
) -> Callable[[Callable[..., None]], Command]:
    """Return a decorator that gives a command the options of tables but those named in `without`.

    The command is called with typer's context and one instance of each table. `example` is a
    command line at the end of its help.
    """
    every = [[one for one in options_of(table) if one.name not in without] for table in tables]
    of_command = Help(tuple(one for offered in every for one in offered), example)

    def decorate(command: Callable[..., None]) -> Command:
        """Return the command, with the parameters that typer makes flags of."""

        def run(context: typer.Context, **values: Any) -> None:
            """Check what typer parsed, and run the command."""
            instances: list[Any] = [
                read_options(
                    table, {one.name: _set(values[one.name], one) for one in offered}, FLAGS
                )
                for table, offered in zip(tables, every, strict=True)
            ]
            command(context, *instances)

        kind = inspect.Parameter.KEYWORD_ONLY
        context = inspect.Parameter(
            "context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
        )
        parameters = [_parameter(one, kind) for one in of_command.options]
        if of_command.is_short:
            annotation = Annotated[bool, help_all_option()]
            parameters.append(
                inspect.Parameter(HELP_ALL, kind, default=False, annotation=annotation)
            )
        # typer reads the parameters from these attributes.
        run.__signature__ = inspect.Signature([context, *parameters])  # type: ignore[attr-defined]  # typer reads it
        run.__annotations__ = {one.name: one.annotation for one in [context, *parameters]}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return Command(run, of_command)

    return decorate


def _parameter(option: Option, kind: Any) -> inspect.Parameter:
    """Return the parameter of an option, of which typer reads only the text."""
    setting = option.setting
    text: Any = bool if option.is_switch else list[str] if option.is_several else str
    if setting.is_argument:
        argument = typer.Argument(
            metavar=setting.metavar,
            help=option.help,
            show_default=False,
            autocompletion=completion_of(option),
        )
        return inspect.Parameter(option.name, kind, annotation=Annotated[text, argument])
    # Some versions of typer derive a name in capitals from the metavar where none is given.
    info = typer.Option(
        *(setting.flags or (option.flag,)),
        metavar=setting.metavar or None,
        help=option.help,
        show_default=False,
        autocompletion=completion_of(option),
    )
    return inspect.Parameter(
        option.name, kind, default=None, annotation=Annotated[text | None, info]
    )


def _set(value: Any, option: Option) -> Any:
    """Return typer's value of an option, and None if the user did not set it."""
    if option.is_several and not value and not option.setting.is_argument:
        return None
    return None if value is False and option.kind is bool else value


def words_of(context: typer.Context, names: Collection[str]) -> list[str]:
    """Return the named parameters that the user set, as words of a command line.

    Paths of arguments are made absolute.
    """
    words: list[str] = []
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name not in names or source is None or source.name != "COMMANDLINE":
            continue
        value = context.params[parameter.name]
        if parameter.param_type_name == "argument":
            words = [_from_anywhere(Path(one)) for one in value] + words
        elif isinstance(value, bool):
            words.append(max(parameter.opts if value else parameter.secondary_opts, key=len))
        else:
            several = value if isinstance(value, list | tuple) else [value]
            flag = max(parameter.opts, key=len)
            words += [word for one in several for word in (flag, str(one))]
    return words


def shared_names() -> set[str]:
    """Return the names of the options that all workers of one analysis share."""
    return {one.name for one in options_of(AnalyzeOptions) if one.setting.is_shared}


def do_not_spin() -> None:
    """Let waiting threads sleep, in this process and in those that it starts."""
    # Threads that spin while they wait occupy cores that other processes need: the demo takes 20 s
    # instead of 6 s on a busy machine. OpenMP reads the variable when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _from_anywhere(path: Path) -> str:
    """Return a word that means the same in every folder: an address, or an absolute path."""
    address = address_of(path)
    return str(path.absolute() if address is None else address)
