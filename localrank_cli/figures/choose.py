"""Which rows of a table a picture shows: measure, tolerance, layers, horizontal axis."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
import pandas as pd

from localrank_cli.errors import DataError, UsageError
from localrank_cli.table.meanings import LENGTH, Meaning, meaning
from localrank_cli.table.read import NEEDED, without_failed

_PLACE = ["run", "step", "layer"]
_MAY_DIFFER = ("tolerance", "input_metric", "wrt", "dtype", "method", "checkpoint")
_TEXTS = {"run", "layer", "tolerance", "table"}


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
        UsageError: If there are several tolerances or metrics to choose from, or what was asked
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
        _need_numbers(frame, option, name)
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


def layers_by_depth(frame: pd.DataFrame) -> list[str]:
    """Names of the layers in order of execution.

    Args:
        frame: With columns layer and layer_index.

    Returns:
        The names; networks that differ between runs are merged by their mean position.
    """
    depth = frame.groupby("layer", sort=False)["layer_index"].mean()
    return [str(name) for name in depth.sort_values(kind="stable").index]


def matching(names: Sequence[str], globs: Iterable[str]) -> list[str]:
    """Names that globs choose.

    Args:
        names: All there are.
        globs: `*` crosses dots, `!` leaves out; none: all names.

    Returns:
        The chosen ones, in their order.

    Raises:
        UsageError: If a glob matches nothing, or nothing is left.
    """
    wanted = [glob for glob in globs if not glob.startswith("!")]
    unwanted = [glob[1:] for glob in globs if glob.startswith("!")]
    for glob in (*wanted, *unwanted):
        if not any(fnmatchcase(name, glob) for name in names):
            raise UsageError(f"--layers {glob}: matches no layer.", f"There are {listed(names)}.")
    chosen = [
        name
        for name in names
        if (not wanted or any(fnmatchcase(name, glob) for glob in wanted))
        and not any(fnmatchcase(name, glob) for glob in unwanted)
    ]
    if not chosen:
        raise UsageError("--layers: leaves nothing over.", f"There are {listed(names)}.")
    return chosen


def of_one(frame: pd.DataFrame, column: str, wanted: str | None, option: str) -> pd.DataFrame:
    """Rows with one value of a column.

    Args:
        frame: A table.
        column: Which; where it is missing, nothing is left out.
        wanted: The value; None: the only one.
        option: How the user sets it.

    Returns:
        The rows.

    Raises:
        UsageError: If there are several to choose from, or it is not there.
    """
    if column not in frame.columns:
        return frame
    there = list(dict.fromkeys(frame[column]))
    if wanted is None and len(there) > 1:
        raise UsageError(
            f"the table has several values of {column}: {listed(there)}.",
            f"Choose one with {option}.",
        )
    if wanted is not None and wanted not in there:
        raise UsageError(f"{option} {wanted}: not in the table.", f"There are {listed(there)}.")
    return frame if wanted is None else frame[frame[column] == wanted]


def listed(names: Iterable[object], most: int = 20) -> str:
    """Names for an error message.

    Args:
        names: Any number.
        most: How many are named.

    Returns:
        Names between commas.
    """
    texts = [str(name) for name in names]
    return ", ".join(texts[:most]) + (f", ... ({len(texts)} in all)" if len(texts) > most else "")


def _matching(frame: pd.DataFrame, globs: tuple[str, ...]) -> list[str]:
    return matching(layers_by_depth(frame), globs)


def _need_numbers(frame: pd.DataFrame, option: str, name: str) -> None:
    numbers = [
        str(column)
        for column in frame.columns
        if pd.api.types.is_numeric_dtype(frame[column]) and column not in _TEXTS
    ]
    if name not in numbers:
        trouble = "holds no numbers" if name in frame.columns else "no such column"
        raise UsageError(f"{option} {name}: {trouble}.", f"There are {listed(numbers, 40)}.")


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
