"""Arguments and options that several commands beside analyze have in common."""

from pathlib import Path
from typing import Annotated

import typer

from localrank_cli.errors import UsageError

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
