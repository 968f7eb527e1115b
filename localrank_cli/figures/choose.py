"""The rows of a table that a figure shows: measure, tolerance, layers, horizontal axis."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from localrank_cli.errors import DataError, SettingsError, listed
from localrank_cli.measures.table import Meaning
from localrank_cli.results.choose import layers_by_depth, matching, need_numbers, of_one
from localrank_cli.results.columns import meaning
from localrank_cli.results.read import NEEDED, without_failed

_LIMIT = 1e307  # the limits of an axis, with their margins, must be finite
_MOST_RUNS = 6  # panels in 15 inches that still have room for their tick labels
_KEY = ["run", "step", "layer"]
_MAY_DIFFER = ("tolerance", "input_metric", "wrt", "dtype", "method", "checkpoint")


@dataclass(frozen=True)
class Choice:
    """What a figure shows.

    Args:
        y: The measure, or any numeric column.
        x: The horizontal axis, any numeric column.
        layers: Globs for layers, `!` excludes; empty: all layers.
        tolerance: The label of a tolerance; required if the table has several and the measure
            depends on it.
        input_metric: Required if the table has several.
    """

    y: str = "local_rank"
    x: str = "step"
    layers: tuple[str, ...] = ()
    tolerance: str | None = None
    input_metric: str | None = None


@dataclass(frozen=True)
class FigureRows:
    """The rows of a figure.

    Args:
        frame: One row for each run, step and layer, in this order, with the columns of the table
            and x, y and error (NaN if the measure has no standard error).
        choice: The choice that selected them.
        tolerance: The label for titles; empty if the measure does not depend on it.
        notes: What was left out.
    """

    frame: pd.DataFrame
    choice: Choice
    tolerance: str
    notes: tuple[str, ...] = field(default=())

    @property
    def measure(self) -> Meaning:
        """The measure on the vertical axis."""
        return meaning(self.choice.y)

    @property
    def y_label(self) -> str:
        """The measure with its tolerance."""
        label = self.measure.label
        return f"{label} ({self.tolerance})" if self.tolerance else label

    def title(self, whose: str) -> str:
        """Return the title: run or runs (may be empty), measure, tolerance, number of points."""
        text = f"{whose}: {self.measure.label}" if whose else self.measure.label
        text = text if whose else text[:1].upper() + text[1:]
        return text + (f" at {self.tolerance}" if self.tolerance else "") + self._points()

    def _points(self) -> str:
        if "n_points" not in self.frame.columns:
            return ""
        points = self.frame["n_points"].dropna()
        if points.empty:
            return ""
        low, high = int(points.min()), int(points.max())
        count = f"{low}" if low == high else f"{low} to {high}"
        return f" ({count} point{'' if high == 1 else 's'})"

    @property
    def x_label(self) -> str:
        """The label of the horizontal axis."""
        return "training step" if self.choice.x == "step" else meaning(self.choice.x).label

    @property
    def layers(self) -> list[str]:
        """Names in order of depth."""
        return layers_by_depth(self.frame)


def choose(frame: pd.DataFrame, choice: Choice, *, bars: bool = False) -> FigureRows:
    """Select the rows of a figure from a table; `bars` is whether the figure can show intervals.

    Raises:
        SettingsError: If the table has several tolerances or metrics and none is chosen, or lacks a
            choice.
        DataError: If no row is left, several rows describe one layer at one step, or there are
            intervals instead of local ranks, which the figure cannot show.
    """
    notes: list[str] = []
    missing = [name for name in NEEDED if name not in frame.columns]
    if missing:
        raise DataError(f"the table has no column {', '.join(missing)}.")
    frame, note = without_failed(frame)
    notes += [note] if note else []
    for option, name in (("--y", choice.y), ("--x", choice.x)):
        need_numbers(frame, option, name)
    frame = frame[frame["layer"].isin(matching(layers_by_depth(frame), choice.layers))]
    frame = of_one(frame, "input_metric", choice.input_metric, "--input-metric")
    uses_tolerance = meaning(choice.y).uses_tolerance
    if uses_tolerance or choice.tolerance is not None:
        frame = of_one(frame, "tolerance", choice.tolerance, "--tolerance")
    tolerance = str(frame["tolerance"].iloc[0]) if uses_tolerance else ""
    frame = _with_bounds(_with_axes(frame, choice), choice, bars=bars)
    finite = (frame["x"].abs() < _LIMIT) & (frame["y"].abs() < _LIMIT)
    if not finite.all():
        notes.append(f"{int((~finite).sum())} of {len(frame)} rows have no {choice.y}")
        if not finite.any():
            raise DataError(
                f"no row has a finite {choice.y} and {choice.x}.", "Choose others with --y and --x."
            )
        frame = frame[finite]
    frame = _one_row_each(frame)
    if choice.x != "step" and frame.groupby("run")["x"].nunique().max() == 1:
        last = frame.groupby(["run", "layer"])["step"].transform("max")
        if (frame["step"] < last).any():
            notes.append(
                f"{choice.x} is constant in each run, so each run is taken at its last step"
            )
            frame = frame[frame["step"] == last]
    frame = frame.sort_values([*_KEY[:2], "layer_index"], kind="stable").reset_index(drop=True)
    return FigureRows(frame, choice, tolerance, tuple(notes))


def runs_side_by_side(rows: pd.DataFrame, kind: str) -> list[Any]:
    """Return the names of the runs, each of which gets a panel, in the order of the rows.

    Raises:
        SettingsError: If there are too many.
    """
    runs = list(dict.fromkeys(rows["run"]))
    if len(runs) > _MOST_RUNS:
        raise SettingsError(
            f"--kind {kind}: {len(runs)} runs, but at most {_MOST_RUNS} fit side by side:"
            f" {listed(runs, 20)}.",
            "Give a table with fewer runs.",
        )
    return runs


def _with_axes(frame: pd.DataFrame, choice: Choice) -> pd.DataFrame:
    name, error = f"{choice.y}_se", pd.Series(np.nan, frame.index)
    if name in frame.columns:
        error = frame[name].astype("float64")
        # A table edited by hand may have others.
        error = error.where((error >= 0) & np.isfinite(error))
    return frame.assign(
        x=frame[choice.x].astype("float64"), y=frame[choice.y].astype("float64"), error=error
    )


def _with_bounds(frame: pd.DataFrame, choice: Choice, *, bars: bool) -> pd.DataFrame:
    """Fill y and error with the middle and half of the width of intervals, where there are any."""
    if choice.y != "local_rank" or not {"rank_low", "rank_high"} <= set(frame.columns):
        return frame.assign(is_interval=False)
    low, high = (frame[name].astype("float64") for name in ("rank_low", "rank_high"))
    there = np.isfinite(low) & np.isfinite(high) & ~np.isfinite(frame["y"])
    if there.any() and not bars:
        raise DataError(
            "the table holds intervals instead of local ranks, which this figure cannot show.",
            "Choose --y rank_low or --y rank_high, or draw bars with --kind ranks.",
        )
    return frame.assign(
        y=frame["y"].where(~there, (low + high) / 2),
        error=frame["error"].where(~there, (high - low) / 2),
        is_interval=there,
    )


def _one_row_each(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame.drop_duplicates([*_KEY, "x", "y"])
    twice = frame.duplicated(_KEY, keep=False)
    if twice.any():
        first = frame[twice].iloc[0]
        same = frame[(frame[_KEY] == first[_KEY]).all(axis=1)]
        differ = [name for name in _MAY_DIFFER if name in same and len(set(same[name])) > 1]
        raise DataError(
            f"{len(same)} rows describe layer {first['layer']} of {first['run']} at step"
            f" {int(first['step'])}"
            + (f"; they differ in {', '.join(differ)}." if differ else "."),
            "Keep one row for each run, step, layer and tolerance.",
        )
    return frame
