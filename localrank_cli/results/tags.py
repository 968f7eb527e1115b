"""The names of values for the loggers of training frameworks."""

from collections.abc import Iterable

from localrank_cli.results.columns import Row

_AT_A_TOLERANCE = ("local_rank", "rank_low", "rank_high")
_MEASURES = (*_AT_A_TOLERANCE, "effective_rank")


def tags(rows: Iterable[tuple[str, Row]]) -> dict[str, float]:
    """Return the values of one step by their names: `local_rank/LAYER`, `effective_rank/LAYER`.

    The local rank at another tolerance than the first is `local_rank_LABEL/LAYER`; of intervals
    there are `rank_low` and `rank_high` in place of it. Values that are missing are left out. Each
    row comes with the name of its layer.
    """
    found: dict[str, float] = {}
    first = None
    for name, row in rows:
        label = row["tolerance"]
        first = label if first is None else first
        for measure in _MEASURES:
            value = row.get(measure)
            if isinstance(value, int | float) and value == value:  # noqa: PLR0124  # NaN is missing
                is_other = measure in _AT_A_TOLERANCE and label != first
                prefix = f"{measure}_{label}" if is_other else measure
                found.setdefault(f"{prefix}/{name}", float(value))
    return found
