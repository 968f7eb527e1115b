"""Choose rows of a table by layer, tolerance and column, with errors that list what there is."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import pandas as pd

from localrank_cli.errors import SettingsError, listed

_TEXTS = {"run", "layer", "tolerance", "table"}


def layers_by_depth(frame: pd.DataFrame) -> list[str]:
    """Return the names of the layers in order of execution.

    Names of networks that differ between runs are ordered by their mean position.
    """
    depth = frame.groupby("layer", sort=False)["layer_index"].mean()
    return [str(name) for name in depth.sort_values(kind="stable").index]


def matching(names: Sequence[str], globs: Iterable[str]) -> list[str]:
    """Return the names that globs match, in their order; all names without globs.

    `*` matches dots too, and a glob that starts with `!` excludes.

    Raises:
        SettingsError: If a glob matches nothing, or nothing is left.
    """
    wanted = [glob for glob in globs if not glob.startswith("!")]
    unwanted = [glob[1:] for glob in globs if glob.startswith("!")]
    for glob in (*wanted, *unwanted):
        if not any(fnmatchcase(name, glob) for name in names):
            raise SettingsError(
                f"--layers {glob}: matches no layer.", f"The layers are {listed(names, 20)}."
            )
    chosen = [
        name
        for name in names
        if (not wanted or any(fnmatchcase(name, glob) for glob in wanted))
        and not any(fnmatchcase(name, glob) for glob in unwanted)
    ]
    if not chosen:
        raise SettingsError("--layers: leaves no layer.", f"The layers are {listed(names, 20)}.")
    return chosen


def of_one(frame: pd.DataFrame, column: str, wanted: str | None, option: str) -> pd.DataFrame:
    """Return the rows with one value of a column; all rows where there is no such column.

    `wanted` None means the only value; messages name the `option` that sets it.

    Raises:
        SettingsError: If there are several values to choose from, or not that one.
    """
    if column not in frame.columns:
        return frame
    there = list(dict.fromkeys(frame[column]))
    if wanted is None and len(there) > 1:
        raise SettingsError(
            f"the table has several values of {column}: {listed(there, 20)}.",
            f"Choose one with {option}.",
        )
    if wanted is not None and wanted not in there:
        raise SettingsError(f"{option} {wanted}: not in the table.", f"It has {listed(there, 20)}.")
    return frame if wanted is None else frame[frame[column] == wanted]


def need_numbers(frame: pd.DataFrame, option: str, name: str) -> None:
    """Check that a column, which `option` names, holds numbers.

    Raises:
        SettingsError: If it is missing, or holds text.
    """
    numbers = [
        str(column)
        for column in frame.columns
        if pd.api.types.is_numeric_dtype(frame[column]) and column not in _TEXTS
    ]
    if name not in numbers:
        trouble = "holds no numbers" if name in frame.columns else "no such column"
        raise SettingsError(
            f"{option} {name}: {trouble}.", f"The numeric columns are {listed(numbers, 40)}."
        )
