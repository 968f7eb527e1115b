"""The table as a pandas DataFrame."""

from collections.abc import Iterable, Sequence

import pandas as pd

from localrank_cli.results.columns import COLUMNS, FLOAT, INT, OPTIONAL, OPTIONAL_INT, Row

_DTYPES = {INT: "int64", OPTIONAL_INT: "Int64", FLOAT: "float64"}


def to_frame(rows: Iterable[Row], columns: Sequence[str]) -> pd.DataFrame:
    """Build a DataFrame of rows.

    Args:
        rows: The table's rows.
        columns: The header.

    Returns:
        One column for each name, with the types of the contract; full precision.
    """
    listed = list(rows)
    data = {name: [row.get(name) for row in listed] for name in columns}
    frame = pd.DataFrame(data, columns=list(columns))
    dtypes = {
        name: _DTYPES[kind]
        for name, kind in (COLUMNS | OPTIONAL).items()
        if name in data and kind in _DTYPES
    }
    for name, kind in COLUMNS.items():
        if kind == INT and name in data and None in data[name]:  # of failed checkpoints
            dtypes[name] = _DTYPES[OPTIONAL_INT]
    return frame.astype(dtypes)
