"""`localrank submit`: the same analysis by several processes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from localrank_cli.cli.analyze import (
    Parsed,
    check_divisible,
    do_not_spin,
    parse_options,
    shared_words,
)
from localrank_cli.cli.words import names_of, taking, words_of
from localrank_cli.errors import UsageError

_PANEL = "Workers"
_CLUSTERS = ("local", "slurm")


@dataclass(frozen=True)
class Division:
    """How the work is to be divided."""

    cluster: str
    workers: int | None


def parse_division(
    cluster: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Where the workers run: local, processes on this machine.",
            rich_help_panel=_PANEL,
        ),
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="How many local workers; cores, memory and GPUs are divided among them. Default:"
            " one for each GPU, else one for each core.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
) -> Division:
    """Read how the work is to be divided."""
    if cluster not in _CLUSTERS:
        raise UsageError(
            f"--cluster {cluster}: not known.", f"Known are {' and '.join(_CLUSTERS)}."
        )
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers}: at least 1.")
    return Division(cluster, workers)


@taking(parse_options, parse_division)
def submit(context: typer.Context, **given: Any) -> None:
    """Divide an analysis among several workers, and merge what they give."""
    own = names_of(parse_division)
    division = parse_division(**{name: given.pop(name) for name in own})
    parsed: Parsed = parse_options(**given)
    check_divisible(parsed.options)
    if parsed.options.output in (None, Path("-")):
        raise UsageError("submit: no file to write.", "Name one with -o FILE.")
    do_not_spin()
    from localrank_cli.cli.several import Asked, run_several

    words = tuple(words_of(context, shared_words()))
    asked = Asked(parsed.options, words, division.workers, parsed.quiet, parsed.verbose)
    raise typer.Exit(run_several(asked))
