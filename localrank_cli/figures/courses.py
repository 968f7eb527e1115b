"""One line for each layer: its course over the steps, of one run or the mean of several."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from localrank_cli.errors import DataError

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Course:
    """One layer's line.

    Args:
        layer: Its name.
        x: Where, ascending.
        y: The measure.
        spread: Half the width of the band; NaN where there is none.
    """

    layer: str
    x: Array
    y: Array
    spread: Array


@dataclass(frozen=True)
class Courses:
    """All lines of one panel, in order of depth.

    Args:
        lines: One for each layer.
        runs: Names of the runs behind them.
        notes: What was left out.
        over_runs: Whether the band is over runs; else it is over points.
    """

    lines: tuple[Course, ...]
    runs: tuple[str, ...]
    notes: tuple[str, ...] = ()
    over_runs: bool = False

    @property
    def band(self) -> str:
        """What the band is; empty where there is none."""
        if not any(np.isfinite(line.spread).any() for line in self.lines):
            return ""
        if self.over_runs:
            return f"± standard deviation over {len(self.runs)} runs"
        return "± standard error over points"


def courses(frame: pd.DataFrame, layers: Sequence[str]) -> Courses:
    """Makes the lines of one panel.

    Args:
        frame: Of `choose`, or a part of it.
        layers: Their order.

    Returns:
        The lines. Of several runs, the mean and standard deviation at the places that all runs of
        a layer have; runs that have one place each (a table of final states) are joined into lines.

    Raises:
        DataError: If the runs have no place in common.
    """
    runs = tuple(dict.fromkeys(str(run) for run in frame["run"]))
    by_layer = dict(tuple(frame.groupby("layer", sort=False)))
    present = [layer for layer in layers if layer in by_layer]
    if len(runs) == 1:
        return Courses(tuple(_of_one(layer, by_layer[layer]) for layer in present), runs)
    joined = frame.groupby("run")["x"].nunique().max() == 1
    lines, dropped = [], 0
    for layer in present:
        line, missing = _of_several(layer, by_layer[layer], joined=joined)
        lines.append(line)
        dropped += missing
    if not any(len(line.x) for line in lines):
        raise DataError(
            f"the runs {', '.join(runs[:6])} have no step in common, so they have no mean.",
            "Show them side by side with --kind compare.",
        )
    notes = (f"{dropped} places are left out that not all runs have",) if dropped else ()
    if not joined:
        names = ", ".join(runs[:6]) + (", ..." if len(runs) > 6 else "")
        notes = (f"the lines are means over {len(runs)} runs: {names}", *notes)
    # Final states of which no two stand at one place have no spread but that of their points.
    over_runs = not joined or bool(frame.groupby("x")["run"].nunique().max() > 1)
    return Courses(tuple(line for line in lines if len(line.x)), runs, notes, over_runs)


def _of_one(layer: str, rows: pd.DataFrame) -> Course:
    rows = rows.sort_values(["x", "step"], kind="stable")
    return Course(layer, *(rows[name].to_numpy("float64") for name in ("x", "y", "error")))


def _of_several(layer: str, rows: pd.DataFrame, *, joined: bool) -> tuple[Course, int]:
    # A run may stand twice at a place that is not a step; it counts once.
    each = rows.groupby(["x", "run"], as_index=False)[["y", "error"]].mean()
    places = each.groupby("x")
    table = places["y"].agg(["mean", "std", "count"])
    spread = table["std"].where(table["count"] > 1, places["error"].mean() if joined else np.nan)
    whole = table["count"] == rows["run"].nunique()
    kept = table.index[whole | joined]
    return Course(
        layer,
        kept.to_numpy("float64"),
        table["mean"].loc[kept].to_numpy("float64"),
        spread.loc[kept].to_numpy("float64"),
    ), int(len(table) - len(kept))


def thinned(line: Course, position: Array, most: int = 1500) -> Course:
    """A line with fewer points that looks the same: of each stretch the least and the largest.

    Args:
        line: Any number of points.
        position: Where they stand on the paper, ascending.
        most: About how many points are kept.

    Returns:
        The line itself where it is short enough.
    """
    if len(line.x) <= most:
        return line
    width = (position[-1] - position[0]) or 1.0
    share = np.minimum((position - position[0]) / width * (most / 2), most / 2 - 1).astype(int)
    frame = pd.DataFrame({"share": share, "y": line.y})
    stretches = frame.groupby("share")["y"]
    ends = np.array([0, len(line.x) - 1])
    kept = np.unique(np.concatenate([ends, stretches.idxmin(), stretches.idxmax()]))
    return Course(line.layer, line.x[kept], line.y[kept], line.spread[kept])
