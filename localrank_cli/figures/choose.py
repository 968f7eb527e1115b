"""Which rows of a table a picture shows: measure, tolerance, layers, horizontal axis."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from localrank_cli.errors import DataError
from localrank_cli.measures.table import LENGTH, Meaning
from localrank_cli.results.choose import layers_by_depth, matching, need_numbers, of_one
from localrank_cli.results.meanings import meaning
from localrank_cli.results.read import NEEDED, without_failed

_PLACE = ["run", "step", "layer"]
_MAY_DIFFER = ("tolerance", "input_metric", "wrt", "dtype", "method", "checkpoint")


@dataclass(frozen=True)
class Choice:
    """What a picture is of.

    Args:
        y: The measure, or any column of numbers.
        x: The horizontal axis, any column of numbers.
        layers: Globs for layers, `!` leaves out; empty: all.
        tolerance: Its label; needed where the table has several and the measure feels them.
        input_metric: Needed where the table has several.
    """

    y: str = "local_rank"
    x: str = "step"
    layers: tuple[str, ...] = ()
    tolerance: str | None = None
    input_metric: str | None = None


@dataclass(frozen=True)
class Chosen:
    """The rows of a picture.

    Args:
        frame: One row for each run, step and layer, sorted so; columns run, step, layer,
            layer_index, x, y, error (NaN where there is none), and those of the table.
        choice: What was asked for.
        tolerance: The label for titles; empty where the measure does not feel it.
        notes: What was left out.
    """

    frame: pd.DataFrame
    choice: Choice
    tolerance: str
    notes: tuple[str, ...] = field(default=())

    @property
    def measure(self) -> Meaning:
        """What is on the vertical axis."""
        return meaning(self.choice.y)

    @property
    def y_label(self) -> str:
        """The measure with its tolerance."""
        label = self.measure.label
        return f"{label} ({self.tolerance})" if self.tolerance else label

    def title(self, whose: str) -> str:
        """What the picture shows.

        Args:
            whose: A run, or several in words; may be empty.

        Returns:
            Run, measure, tolerance and number of points.
        """
        text = f"{whose}: {self.measure.label}" if whose else self.measure.label
        text = text if whose else text[:1].upper() + text[1:]
        return text + (f" at {self.tolerance}" if self.tolerance else "") + self._points()

    def _points(self) -> str:
        if "n_points" not in self.frame.columns:
            return ""
        low, high = int(self.frame["n_points"].min()), int(self.frame["n_points"].max())
        count = f"{low}" if low == high else f"{low} to {high}"
        return f" ({count} point{'' if high == 1 else 's'})"

    @property
    def x_label(self) -> str:
        """What is on the horizontal axis."""
        return "training step" if self.choice.x == "step" else meaning(self.choice.x).label

    @property
    def layers(self) -> list[str]:
        """Names in order of depth."""
        return layers_by_depth(self.frame)

    @property
    def is_length(self) -> bool:
        """Whether the measure may span decades."""
        return self.measure.kind == LENGTH


def choose(frame: pd.DataFrame, choice: Choice) -> Chosen:
    """Takes the rows of a picture out of a table.

    Args:
        frame: From `read_table` or `localrank_cli.analyze`.
        choice: What the picture is of.

    Returns:
        Its rows.

    Raises:
        SettingsError: If there are several tolerances or metrics to choose from, or what was asked
            for is not there.
        DataError: If no row is left, or several rows tell of one layer at one step.
    """
    notes: list[str] = []
    missing = [name for name in NEEDED if name not in frame.columns]
    if missing:
        raise DataError(f"the table has no column {', '.join(missing)}.")
    frame, said = without_failed(frame)
    notes += [said] if said else []
    for option, name in (("--y", choice.y), ("--x", choice.x)):
        need_numbers(frame, option, name)
    frame = frame[frame["layer"].isin(_matching(frame, choice.layers))]
    frame = of_one(frame, "input_metric", choice.input_metric, "--input-metric")
    feels = meaning(choice.y).feels_tolerance
    if feels or choice.tolerance is not None:
        frame = of_one(frame, "tolerance", choice.tolerance, "--tolerance")
    tolerance = str(frame["tolerance"].iloc[0]) if feels else ""
    frame = _with_axes(frame, choice)
    finite = np.isfinite(frame["x"]) & np.isfinite(frame["y"])
    if not finite.all():
        notes.append(f"{int((~finite).sum())} of {len(frame)} rows have no {choice.y}")
        if not finite.any():
            raise DataError(f"no row has a finite {choice.y} and {choice.x}.")
        frame = frame[finite]
    frame = _one_row_each(frame)
    if choice.x != "step" and frame.groupby("run")["x"].nunique().max() == 1:
        last = frame.groupby(["run", "layer"])["step"].transform("max")
        if (frame["step"] < last).any():
            notes.append(f"{choice.x} is constant in each run, so each is taken at its last step")
            frame = frame[frame["step"] == last]
    frame = frame.sort_values([*_PLACE[:2], "layer_index"], kind="stable").reset_index(drop=True)
    return Chosen(frame, choice, tolerance, tuple(notes))


def _matching(frame: pd.DataFrame, globs: tuple[str, ...]) -> list[str]:
    return matching(layers_by_depth(frame), globs)


def _with_axes(frame: pd.DataFrame, choice: Choice) -> pd.DataFrame:
    error = f"{choice.y}_se"
    return frame.assign(
        x=frame[choice.x].astype("float64"),
        y=frame[choice.y].astype("float64"),
        error=frame[error].astype("float64") if error in frame.columns else np.nan,
    )


def _one_row_each(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame.drop_duplicates([*_PLACE, "x", "y"])
    twice = frame.duplicated(_PLACE, keep=False)
    if twice.any():
        first = frame[twice].iloc[0]
        same = frame[(frame[_PLACE] == first[_PLACE]).all(axis=1)]
        differ = [name for name in _MAY_DIFFER if name in same and len(set(same[name])) > 1]
        raise DataError(
            f"{len(same)} rows tell of layer {first['layer']} of {first['run']} at step"
            f" {int(first['step'])}"
            + (f"; they differ in {', '.join(differ)}." if differ else "."),
            "Keep one row for each run, step, layer and tolerance.",
        )
    return frame
