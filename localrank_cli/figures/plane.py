"""The information plane: I(T;Y) against I(X;T), a path over the steps for each layer."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from localrank_cli.errors import DataError, SettingsError
from localrank_cli.figures.choose import Choice, choose, runs_side_by_side
from localrank_cli.figures.labels import distinct, shortened
from localrank_cli.figures.look import GREY, Look, Pen, depth_pens, head, new_figure

_X, _Y = "information_xt", "information_ty"
_CEILING = "information_ceiling_nats"
_MOST_LAYERS = 12  # paths whose colours can be distinguished


def information_plane(
    frame: pd.DataFrame, choice: Choice | None = None, look: Look | None = None
) -> tuple[Figure, tuple[str, ...]]:
    """Draw the lower bounds as paths, and lines to the upper bounds at the last step.

    Raises:
        DataError: If the table has no bounds.
        SettingsError: If there are too many layers or runs.
    """
    look = look or Look()
    columns = [f"{name}_{side}_nats" for name in (_X, _Y) for side in ("lower", "upper")]
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise DataError(
            f"the table has no column {', '.join(missing)}.",
            "Make it with localrank analyze --information --labels-key NAME.",
        )
    # The bounds do not depend on the tolerance: keep one row for each layer and step.
    frame = frame.drop_duplicates(["run", "step", "layer"])
    layers = (choice or Choice()).layers
    chosen = choose(frame, Choice(y=columns[2], x=columns[0], layers=layers))
    runs = runs_side_by_side(chosen.frame, "information-plane")
    if len(chosen.layers) > _MOST_LAYERS:
        raise SettingsError(
            f"--kind information-plane: {len(chosen.layers)} layers, but at most {_MOST_LAYERS} can"
            " be distinguished.",
            "Choose some with --layers.",
        )
    size = look.size or (6.4 if len(runs) == 1 else min(15.0, 1.6 + 3.8 * len(runs)), 4.2)
    figure = new_figure(look, *size)
    grid = figure.subplots(1, len(runs), squeeze=False, sharex=True, sharey=True)[0]
    pens = depth_pens(chosen.layers)
    names = distinct(chosen.layers, 24)
    ceiling = _ceiling(chosen.frame)
    for axes, run in zip(grid, runs, strict=True):
        rows = chosen.frame[chosen.frame["run"] == run]
        for layer in chosen.layers:
            _path(axes, rows[rows["layer"] == layer].sort_values("step"), pens[layer], layer)
        axes.set_title(shortened(str(run), 40) if len(runs) > 1 else "")
        axes.set_xlabel("I(X;T) in nats")
        if ceiling is not None:
            axes.axvline(ceiling, color=GREY, linestyle="--", linewidth=0.9, label="_ceiling")
    grid[0].set_ylabel("I(T;Y) in nats")
    handles = [line for line in grid[0].get_lines() if not str(line.get_label()).startswith("_")]
    figure.legend(
        handles, [names[layer] for layer in chosen.layers], loc="outside right upper", title="layer"
    )
    facts = ["lines: lower bounds; circle: first step; thin: to the upper bounds at the last step"]
    if ceiling is not None:
        facts.append("dashed: ceiling log N of the sample")
    title = f"{runs[0]}: information plane" if len(runs) == 1 else "Information plane"
    head(figure, look, title, facts)
    return figure, chosen.notes


def _path(axes: Axes, rows: pd.DataFrame, pen: Pen, layer: str) -> None:
    x, y = rows["x"].to_numpy("float64"), rows["y"].to_numpy("float64")
    if not len(x):
        axes.plot([], [], label=layer, **pen.of_line(0))
        return
    colour = pen.colour
    axes.plot(x, y, label=layer, **pen.of_line(len(x)))
    axes.plot(
        x[:1], y[:1], color=colour, marker="o", markersize=8.5, fillstyle="none", label="_first"
    )
    last = rows.iloc[-1]
    axes.plot(
        [last["x"], last[f"{_X}_upper_nats"]], [last["y"], last["y"]],
        color=colour, linewidth=0.7, label="_upper x",
    )  # fmt: skip
    axes.plot(
        [last["x"], last["x"]], [last["y"], last[f"{_Y}_upper_nats"]],
        color=colour, linewidth=0.7, label="_upper y",
    )  # fmt: skip


def _ceiling(rows: pd.DataFrame) -> float | None:
    """Return log N if it is near enough to the bounds to matter."""
    if _CEILING not in rows.columns or rows[_CEILING].isna().all():
        return None
    ceiling = float(rows[_CEILING].max())
    return ceiling if np.nanmax(rows[f"{_X}_upper_nats"]) > 0.7 * ceiling else None
