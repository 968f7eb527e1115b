"""Holds a series that may have grown to the list of a plan file."""

from dataclasses import replace
from pathlib import Path

from localrank_cli.checkpoints.reading import footprint
from localrank_cli.checkpoints.series import Series
from localrank_cli.errors import SettingsError, UnreadableError
from localrank_cli.pipeline.frozen import FrozenSeries

_AGAIN = "Submit again when nothing writes to it; what is finished is kept."


def narrow(series: Series, frozen: FrozenSeries) -> Series:
    """Leaves of a series what the plan lists, however much it has grown since.

    Args:
        series: As it is now.
        frozen: As it was.

    Returns:
        The listed files.

    Raises:
        SettingsError: If one of them is not there any more, or has changed.
    """
    files = {file.name: file for file in series.files}
    kept = []
    for one in frozen.checkpoints:
        file = files.get(one.name)
        if file is None:
            raise SettingsError(
                f"{series.folder}: {one.name} is not there any more, and the plan lists it.",
                _AGAIN,
            )
        if marks(file.path) != (one.size, one.mtime_ns):
            raise SettingsError(f"{file.path}: changed since the plan was made.", _AGAIN)
        kept.append(file)
    return replace(series, files=tuple(kept))


def marks(path: Path) -> tuple[int | None, int | None]:
    """By what a checkpoint that has not changed is known.

    Args:
        path: Its file.

    Returns:
        Bytes and time of change; None where it cannot be looked at.
    """
    try:
        found = footprint(path)
    except UnreadableError:
        return None, None
    return found.size, found.mtime_ns
