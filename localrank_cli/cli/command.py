"""Commands that share their parameters, and a command line told again from what was given."""

import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from localrank_cli.errors import UsageError

_Command = TypeVar("_Command", bound=Callable[..., Any])


def words_of(context: typer.Context, names: Collection[str]) -> list[str]:
    """Tells arguments and options again, those that were given.

    Args:
        context: Of the command.
        names: The parameters wanted.

    Returns:
        Words; paths of arguments are absolute.
    """
    words: list[str] = []
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name not in names or source is None or source.name != "COMMANDLINE":
            continue
        value = context.params[parameter.name]
        if parameter.param_type_name == "argument":
            words = [str(Path(one).absolute()) for one in value] + words
        elif value is True:
            words.append(_longest(parameter.opts))
        elif value is False and parameter.secondary_opts:
            words.append(_longest(parameter.secondary_opts))
        else:
            several = value if isinstance(value, list | tuple) else [value]
            words += [part for one in several for part in (_longest(parameter.opts), _text(one))]
    return words


def _longest(names: list[str]) -> str:
    return max(names, key=len)


def _text(value: Any) -> str:
    return f"{value:.17g}" if isinstance(value, float) else str(value)


def taking(
    *functions: Callable[..., Any], without: Collection[str] = ()
) -> Callable[[_Command], _Command]:
    """Gives a command the parameters of other functions, after its context.

    Args:
        *functions: Their parameters, in order, are the command's.
        without: Parameters that the command does not offer.

    Returns:
        A decorator, for a function of a context and of keywords.
    """
    context = inspect.Parameter(
        "context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
    )
    every = [one for each in functions for one in inspect.signature(each).parameters.values()]
    own = [one for one in every if one.name not in without]
    signature = inspect.Signature([context, *own])

    def decorate(command: _Command) -> _Command:
        command.__signature__ = signature  # type: ignore[attr-defined]  # what typer looks at
        command.__annotations__ = {one.name: one.annotation for one in [context, *own]}
        return command

    return decorate


def names_of(function: Callable[..., Any]) -> set[str]:
    """The parameters of a function.

    Args:
        function: Any.

    Returns:
        Their names.
    """
    return set(inspect.signature(function).parameters)


Tables = Annotated[
    list[Path],
    typer.Argument(
        metavar="RANKS",
        readable=False,
        help="Tables that analyze wrote (.csv, .tsv, .jsonl, .parquet).",
        show_default=False,
    ),
]

ShownLayers = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        help="Layers by name, comma separated, * crosses dots, !GLOB leaves out; repeat.",
    ),
]

OneMetric = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Which one, where the table has several."),
]

OverwriteTable = Annotated[
    bool, typer.Option("--overwrite", help="Write over FILE where it is there.")
]

NoNotes = Annotated[bool, typer.Option("--quiet", "-q", help="No notes.")]


def globs(texts: list[str] | None, option: str = "--layers") -> tuple[str, ...]:
    """Takes comma separated patterns apart.

    Args:
        texts: As often as the option was given.
        option: For messages.

    Returns:
        The patterns.

    Raises:
        UsageError: If they are empty.
    """
    parts = [part.strip() for text in texts or [] for part in text.split(",")]
    if texts and not any(parts):
        raise UsageError(f"{option}: is empty.", "Give a pattern, or leave the option out.")
    return tuple(part for part in parts if part)


def factor(text: str) -> float:
    """Reads `--data-scale`: a number, or a fraction, as one says 1/255 of pixels.

    Args:
        text: What was typed.

    Returns:
        The number.

    Raises:
        UsageError: If it is none.
    """
    above, _, below = text.partition("/")
    try:
        return float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError) as error:
        raise UsageError(
            f"--data-scale {text}: is no number.", "Give one, or a fraction such as 1/255."
        ) from error
