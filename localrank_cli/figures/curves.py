"""One curve for each layer over the steps, of one run or the mean of several."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from localrank_cli.errors import DataError

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Curve:
    """The curve of one layer.

    Args:
        x: Ascending.
        y: The measure.
        spread: Half the width of the band; NaN where there is none.
        is_interval: Whether y +- spread are bounds, and y itself is no value.
    """

    layer: str
    x: Array
    y: Array
    spread: Array
    is_interval: bool = False


@dataclass(frozen=True)
class Curves:
    """All curves of one panel, in order of depth.

    Args:
        lines: One for each layer.
        runs: Names of the runs behind them.
        notes: What was left out.
        over_runs: Whether the band is over runs instead of points.
    """

    lines: tuple[Curve, ...]
    runs: tuple[str, ...]
    notes: tuple[str, ...] = ()
    over_runs: bool = False

    @property
    def band(self) -> str:
        """A description of the band; empty if there is none."""
        if not any(np.isfinite(line.spread).any() for line in self.lines):
            return ""
        if any(line.is_interval for line in self.lines):
            return "rank within the bars, with the confidence of the table"
        if self.over_runs:
            return f"± standard deviation over {len(self.runs)} runs"
        return "± standard error over points"


def curves(frame: pd.DataFrame, layers: Sequence[str]) -> Curves:
    """Compute the curves of one panel, from all rows of a choice or a part of them.

    For several runs, they are the mean and standard deviation wherever all runs of a layer have a
    value; runs of one value each (a table of final states) are joined into one curve.

    Raises:
        DataError: If the runs have no x in common.
    """
    runs = tuple(dict.fromkeys(str(run) for run in frame["run"]))
    by_layer = dict(tuple(frame.groupby("layer", sort=False)))
    present = [layer for layer in layers if layer in by_layer]
    if len(runs) == 1:
        return Curves(tuple(_of_one(layer, by_layer[layer]) for layer in present), runs)
    if frame["is_interval"].any():
        raise DataError(
            f"the table holds intervals of {len(runs)} runs, which have no mean.",
            "Draw them side by side with --kind compare --by run.",
        )
    joined = frame.groupby("run")["x"].nunique().max() == 1
    lines, dropped = [], 0
    for layer in present:
        line, missing = _of_several(layer, by_layer[layer], joined=joined)
        lines.append(line)
        dropped += missing
    if not any(len(line.x) for line in lines):
        raise DataError(
            f"the runs {', '.join(runs[:6])} have no step in common, so they have no mean.",
            "Draw them side by side with --kind compare.",
        )
    notes = (
        (f"left out {dropped} (layer, step) pairs that are missing in some runs",)
        if dropped
        else ()
    )
    if not joined:
        names = ", ".join(runs[:6]) + (", ..." if len(runs) > 6 else "")
        notes = (f"the lines are means over {len(runs)} runs: {names}", *notes)
    # If no two final states share an x, their only spread is that over points.
    over_runs = not joined or bool(frame.groupby("x")["run"].nunique().max() > 1)
    return Curves(tuple(line for line in lines if len(line.x)), runs, notes, over_runs)


def _of_one(layer: str, rows: pd.DataFrame) -> Curve:
    rows = rows.sort_values(["x", "step"], kind="stable")
    x, y, error = (rows[name].to_numpy("float64") for name in ("x", "y", "error"))
    return Curve(layer, x, y, error, is_interval=bool(rows["is_interval"].any()))


def _of_several(layer: str, rows: pd.DataFrame, *, joined: bool) -> tuple[Curve, int]:
    # A run may have several rows at an x that is not a step; it counts once.
    each = rows.groupby(["x", "run"], as_index=False)[["y", "error"]].mean()
    places = each.groupby("x")
    table = places["y"].agg(["mean", "std", "count"])
    spread = table["std"].where(table["count"] > 1, places["error"].mean() if joined else np.nan)
    whole = table["count"] == rows["run"].nunique()
    kept = table.index[whole | joined]
    return Curve(
        layer,
        kept.to_numpy("float64"),
        table["mean"].loc[kept].to_numpy("float64"),
        spread.loc[kept].to_numpy("float64"),
    ), int(len(table) - len(kept))


def thin(line: Curve, position: Array, most: int = 1500) -> Curve:
    """Thin out a curve without changing how it looks: keep the extremes of each stretch.

    `position` holds the positions of its points on the drawn axis, ascending; about `most` points
    are kept.
    """
    if len(line.x) <= most:
        return line
    width = (position[-1] - position[0]) or 1.0
    share = np.minimum((position - position[0]) / width * (most / 2), most / 2 - 1).astype(int)
    frame = pd.DataFrame({"share": share, "y": line.y})
    stretches = frame.groupby("share")["y"]
    ends = np.array([0, len(line.x) - 1])
    kept = np.unique(np.concatenate([ends, stretches.idxmin(), stretches.idxmax()]))
    return Curve(line.layer, line.x[kept], line.y[kept], line.spread[kept], line.is_interval)
