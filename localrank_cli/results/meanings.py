"""What the columns with numbers are called, and what each means in a sentence."""

from localrank_cli.measures.table import MEASURES, OTHER, SHARE, Meaning

_COUNTS = {
    "rank_min": Meaning(
        "least local rank", "The least local rank of any point.", uses_tolerance=True
    ),
    "rank_max": Meaning(
        "largest local rank", "The largest local rank of any point.", uses_tolerance=True
    ),
}
_CERTAINTY = {
    "near_tol": Meaning(
        "share of points near the tolerance",
        "The share of points whose count changes when the tolerance moves by 1 %.",
        SHARE,
        uses_tolerance=True,
    ),
    "n_undecided": Meaning(
        "undecided points",
        "The number of points whose count is decided by rounding.",
        OTHER,
        uses_tolerance=True,
    ),
}
_OF_MEASURES = {name: measure.meaning for name, measure in MEASURES.items()}

# In the order in which menus list them.
MEANINGS: dict[str, Meaning] = {
    "local_rank": _OF_MEASURES["local_rank"],
    **_COUNTS,
    **_OF_MEASURES,
    **_CERTAINTY,
}


def meaning(column: str) -> Meaning:
    """Return what a column is called, for any column of a table.

    An unknown column, such as one of the user's own, goes by its name.
    """
    return MEANINGS.get(column) or Meaning(column.replace("_", " "), "", OTHER)
