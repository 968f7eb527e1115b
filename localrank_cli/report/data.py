"""The numbers of the page: a table as JSON, small enough to share."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from localrank_cli.errors import DataError
from localrank_cli.results.choose import layers_by_depth
from localrank_cli.results.columns import MEANINGS

Json = dict[str, Any]
_DIGITS = 5  # more than a tooltip shows
_MOST_VALUES = 400_000  # about 4 MB of JSON, which browsers and mail still handle well


def page_data(frame: pd.DataFrame) -> tuple[Json, tuple[str, ...]]:
    """Collect the numbers of the page from a table.

    Args:
        frame: From `read_tables`, without failed rows.

    Returns:
        The data to embed as JSON, and notes on what was left out.

    Raises:
        DataError: If the table has no measure, or several rows for one place.
    """
    measures = [
        name
        for name in MEANINGS
        if name in frame.columns and np.isfinite(frame[name].astype("float64")).any()
    ]
    if not measures:
        raise DataError("the table has no column of a measure, such as local_rank.")
    repeated = frame[frame.duplicated(["run", "step", "layer", "tolerance"])]
    if len(repeated):
        row = repeated.iloc[0]
        raise DataError(
            f"several rows describe layer {row['layer']} of {row['run']} at step {int(row['step'])}"
            f" and {row['tolerance']}.",
            "Keep one row for each run, step, layer and tolerance.",
        )
    tolerances = [str(label) for label in dict.fromkeys(frame["tolerance"])]
    frame, notes = _fewer_steps(frame, _columns(measures, len(tolerances)))
    runs = [
        {"name": str(run), "layers": _layers(part, measures, tolerances)}
        for run, part in frame.groupby("run", sort=False)
    ]
    return {
        "measures": [
            {
                "name": name,
                "label": meaning.label,
                "sentence": meaning.sentence,
                "kind": meaning.kind,
                "uses_tolerance": meaning.uses_tolerance,
            }
            for name, meaning in MEANINGS.items()
            if name in measures
        ],
        "tolerances": tolerances,
        "layers": layers_by_depth(frame),
        "runs": runs,
        "spectra": None,
    }, notes


def rounded(values: Iterable[float]) -> list[float | int | None]:
    """Round to five significant digits; integers lose the point, non-finite values become None."""
    found: list[float | int | None] = []
    for value in values:
        if not np.isfinite(value):
            found.append(None)
            continue
        short = float(f"{value:.{_DIGITS}g}")
        found.append(int(short) if short == int(short) else short)
    return found


def _columns(measures: list[str], tolerances: int) -> int:
    return sum(2 * (tolerances if MEANINGS[name].uses_tolerance else 1) for name in measures)


def _fewer_steps(frame: pd.DataFrame, columns: int) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Drop steps evenly until the page is small enough."""
    places = frame.drop_duplicates(["run", "step", "layer"])
    count = len(places) * columns
    if count <= _MOST_VALUES:
        return frame, ()
    steps = np.array(sorted(set(frame["step"])))
    most = max(2, int(len(steps) * _MOST_VALUES / count))
    # Evenly spaced on a log axis too, so that the first steps are not lost.
    at = np.log1p(np.maximum(steps, 0))
    goals = np.linspace(at[0], at[-1], most // 2)
    near = np.clip(np.searchsorted(at, goals), 0, len(steps) - 1)
    even = np.linspace(0, len(steps) - 1, most - most // 2).round().astype(int)
    kept = steps[np.unique(np.concatenate([near, even, [0, len(steps) - 1]]))]
    note = f"the page holds {len(kept)} of {len(steps)} steps to stay small"
    return frame[frame["step"].isin(kept)], (note,)


def _layers(part: pd.DataFrame, measures: list[str], tolerances: list[str]) -> list[Json]:
    found = []
    by_layer = dict(tuple(part.groupby("layer", sort=False)))
    for layer in layers_by_depth(part):
        rows = by_layer[layer].sort_values("step", kind="stable")
        steps = sorted({int(step) for step in rows["step"]})
        by_tolerance = {
            label: rows[rows["tolerance"] == label].set_index("step").reindex(steps)
            for label in tolerances
        }
        first = rows.drop_duplicates("step").set_index("step").reindex(steps)
        values: Json = {}
        for name in measures:
            chosen = by_tolerance if MEANINGS[name].uses_tolerance else {"": first}
            values[name] = {label: _column(table, name) for label, table in chosen.items()}
        largest = (
            [rows["max_rank"].max()] if "max_rank" in rows.columns else [rows[measures[0]].max()]
        )
        sizes = [rows[name].iloc[0] for name in ("n_out", "n_in") if name in rows.columns]
        found.append(
            {
                "name": layer,
                "max_rank": rounded(largest)[0] or 1,
                "size": " x ".join(f"{int(size)}" for size in sizes),
                "steps": steps,
                "values": values,
            }
        )
    return found


def _column(rows: pd.DataFrame, name: str) -> Json:
    column: Json = {"y": rounded(rows[name].astype("float64"))}
    error = f"{name}_se"
    if error in rows.columns and (rows[error] > 0).any():
        column["e"] = rounded(rows[error].astype("float64"))
    return column
