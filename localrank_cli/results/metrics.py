"""Read a table of other numbers by step, such as accuracies, to stand under a picture."""

from pathlib import Path

import pandas as pd

from localrank_cli.errors import DataError, UsageError
from localrank_cli.results.read import read_table


def split_spec(text: str) -> tuple[Path, str]:
    """Split FILE:COLUMN.

    Args:
        text: From the command line.

    Returns:
        File and column.

    Raises:
        UsageError: If it has no such form.
    """
    file, colon, column = text.rpartition(":")
    if not colon or not file or not column:
        raise UsageError(f"--with {text}: not of the form METRICS.csv:COLUMN.")
    return Path(file), column


def read_metrics(path: Path, column: str) -> pd.DataFrame:
    """Read one column of numbers and the steps it belongs to.

    Args:
        path: A table with columns step, the one asked for and, where runs differ, run.
        column: Its name.

    Returns:
        The table.

    Raises:
        DataError: If the column is missing, or holds no numbers.
    """
    frame = read_table(path, needed=("step",))
    others = [str(name) for name in frame.columns if name not in {"step", "run"}]
    if column not in frame.columns:
        raise DataError(
            f"{path}: has no column {column}.", f"There are {', '.join(others) or 'no others'}."
        )
    if not pd.api.types.is_numeric_dtype(frame[column]):
        raise DataError(f"{path}: column {column} holds no numbers.")
    return frame
