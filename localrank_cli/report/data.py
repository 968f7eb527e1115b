"""What the page knows: the numbers of a table, short enough to be sent to a colleague."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from localrank_cli.errors import DataError
from localrank_cli.results.choose import layers_by_depth
from localrank_cli.results.meanings import MEANINGS

Json = dict[str, Any]
_DIGITS = 5
_MOST_VALUES = 400_000  # about 4 MB


def page_data(frame: pd.DataFrame) -> tuple[Json, tuple[str, ...]]:
    """Takes the numbers of a page out of a table.

    Args:
        frame: From `read_tables`, without rows that failed.

    Returns:
        What goes into the page as JSON, and what was left out.

    Raises:
        DataError: If the table holds no measure, or two rows of one place.
    """
    measures = [
        name
        for name in MEANINGS
        if name in frame.columns and np.isfinite(frame[name].astype("float64")).any()
    ]
    if not measures:
        raise DataError("the table has no column of a measure, such as local_rank.")
    place = ["run", "step", "layer", "tolerance"]
    if frame.duplicated(place).any():
        row = frame[frame.duplicated(place)].iloc[0]
        raise DataError(
            f"several rows tell of layer {row['layer']} of {row['run']} at step {int(row['step'])}"
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
                "label": MEANINGS[name].label,
                "sentence": MEANINGS[name].sentence,
                "kind": MEANINGS[name].kind,
                "feels": MEANINGS[name].feels_tolerance,
            }
            for name in measures
        ],
        "tolerances": tolerances,
        "layers": layers_by_depth(frame),
        "runs": runs,
        "spectra": None,
    }, notes


def rounded(values: Iterable[float]) -> list[float | int | None]:
    """Numbers as short as the eye needs.

    Args:
        values: Any.

    Returns:
        Five significant digits, whole ones without a point; None for what is not finite.
    """
    found: list[float | int | None] = []
    for value in values:
        if not np.isfinite(value):
            found.append(None)
            continue
        short = float(f"{value:.{_DIGITS}g}")
        found.append(int(short) if short == int(short) else short)
    return found


def _columns(measures: list[str], tolerances: int) -> int:
    return sum(2 * (tolerances if MEANINGS[name].feels_tolerance else 1) for name in measures)


def _fewer_steps(frame: pd.DataFrame, columns: int) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Leaves steps out, evenly in their order, until the page is small enough."""
    places = frame.drop_duplicates(["run", "step", "layer"])
    count = len(places) * columns
    if count <= _MOST_VALUES:
        return frame, ()
    steps = np.array(sorted(set(frame["step"])))
    most = max(2, int(len(steps) * _MOST_VALUES / count))
    # Even on the log axis on which they are drawn, so that the first ones are not lost.
    at = np.log1p(np.maximum(steps, 0))
    goals = np.linspace(at[0], at[-1], most // 2)
    near = np.clip(np.searchsorted(at, goals), 0, len(steps) - 1)
    even = np.linspace(0, len(steps) - 1, most - most // 2).round().astype(int)
    kept = steps[np.unique(np.concatenate([near, even, [0, len(steps) - 1]]))]
    said = f"the page holds {len(kept)} of {len(steps)} steps, to stay small"
    return frame[frame["step"].isin(kept)], (said,)


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
            chosen = by_tolerance if MEANINGS[name].feels_tolerance else {"": first}
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
