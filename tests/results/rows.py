"""Two rows, one with everything and one whose points all failed."""

from localrank_cli.results.columns import COLUMNS, FLOAT, INT, OPTIONAL_INT, Cell

_VALUES: dict[str, Cell] = {INT: 7, OPTIONAL_INT: 3, FLOAT: 1 / 3}
_MISSING: dict[str, Cell] = {INT: 0, OPTIONAL_INT: None, FLOAT: None}

ROWS: list[dict[str, Cell]] = [
    {name: _VALUES.get(kind, f"a {name}") for name, kind in COLUMNS.items()} | {"beta": 2.5},
    {name: _MISSING.get(kind, "") for name, kind in COLUMNS.items()} | {"beta": None},
]
