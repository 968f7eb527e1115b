"""The rank as a share of the largest possible rank, by layer and step."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from localrank_cli.errors import DataError, SettingsError
from localrank_cli.figures.axis import positions, scale_x
from localrank_cli.figures.choose import Choice, FigureRows, choose, runs_side_by_side
from localrank_cli.figures.curves import Array
from localrank_cli.figures.labels import distinct, shortened
from localrank_cli.figures.look import MISSING, Look, head, new_figure
from localrank_cli.measures.table import RANK

_MOST_COLUMNS = 1200  # about as many as a figure of the default size has pixels
_MOST_TICKS = 30  # layer names that fit one below the other at the default height


def heatmap(
    frame: pd.DataFrame, choice: Choice | None = None, look: Look | None = None
) -> tuple[Figure, tuple[str, ...]]:
    """Draw rank over `max_rank` as colour, layers from top to bottom, steps from left to right.

    The figure comes with notes on what was left out.

    Raises:
        SettingsError: If the measure is not a rank, or there are too many runs.
        DataError: If the table has no column max_rank.
    """
    look = look or Look()
    chosen = choose(frame, choice or Choice())
    if chosen.measure.kind != RANK:
        raise SettingsError(
            f"--y {chosen.choice.y}: a heat map shows a rank as a share of max_rank.",
            "Choose a rank with --y, or another --kind.",
        )
    if "max_rank" not in chosen.frame.columns:
        raise DataError("the table has no column max_rank, which a heat map needs.")
    runs = runs_side_by_side(chosen.frame, "heatmap")
    layers = chosen.layers
    size = look.size or (
        6.4 if len(runs) == 1 else min(15.0, 1.6 + 3.6 * len(runs)),
        min(9.0, 1.7 + 0.34 * len(layers)) if len(layers) <= _MOST_TICKS else 5.5,
    )
    figure = new_figure(look, *size)
    grid = figure.subplots(1, len(runs), squeeze=False, sharey=True)[0]
    every_x = chosen.frame["x"].to_numpy("float64")
    inches = size[0] / len(runs) - 1.4
    for axes, run in zip(grid, runs, strict=True):
        scale_x(axes, every_x, inches)
        image = _draw(axes, chosen, chosen.frame[chosen.frame["run"] == run])
        axes.set_title(shortened(str(run), max(20, int(inches * 12))) if len(runs) > 1 else "")
        axes.set_xlabel(chosen.x_label)
    _name_layers(grid[0], layers)
    bar = figure.colorbar(image, ax=list(grid), pad=0.02, fraction=0.05, aspect=25)
    bar.set_label("share of the largest possible rank")
    head(figure, look, chosen.title(str(runs[0]) if len(runs) == 1 else ""), ())
    return figure, chosen.notes


def _draw(axes: Axes, chosen: FigureRows, rows: pd.DataFrame) -> Any:
    share = rows.assign(share=rows["y"] / rows["max_rank"])
    table = share.pivot_table(index="layer", columns="x", values="share", aggfunc="mean")
    table = table.reindex(chosen.layers)
    at = table.columns.to_numpy("float64")
    values = table.to_numpy("float64")
    at, values = _few(axes, at, values)
    axes.set_facecolor(MISSING)
    edges = _edges(axes, at)
    # Extend the outermost cells to the ends of the axis, which all runs share.
    low, high = axes.get_xlim()
    edges[0] = low if at[0] == chosen.frame["x"].min() else edges[0]
    edges[-1] = high if at[-1] == chosen.frame["x"].max() else edges[-1]
    image = axes.pcolormesh(
        edges, np.arange(len(table) + 1) - 0.5, np.ma.masked_invalid(values),
        cmap="viridis", vmin=0, vmax=1, rasterized=values.size > 5000,
    )  # fmt: skip
    axes.set_xlim(low, high)
    for spine in ("left", "bottom"):
        axes.spines[spine].set_visible(False)
    axes.tick_params(length=2.5)
    return image


def _few(axes: Axes, at: Array, values: Array) -> tuple[Array, Array]:
    """Keep the last of all steps that are closer together than pixels."""
    if len(at) <= _MOST_COLUMNS:
        return at, values
    place = positions(axes, at)
    share = ((place - place[0]) / (place[-1] - place[0]) * _MOST_COLUMNS).astype(int)
    last = np.flatnonzero(np.append(share[1:] != share[:-1], True))
    return at[last], values[:, last]


def _edges(axes: Axes, at: Array) -> Array:
    """Return the borders of the cells, half way between steps on the drawn axis."""
    place = positions(axes, at)
    if len(place) == 1:
        return np.array([at[0] - 0.5, at[0] + 0.5])
    middle = (place[1:] + place[:-1]) / 2
    first, last = place[0] - (middle[0] - place[0]), place[-1] + (place[-1] - middle[-1])
    every = np.concatenate([[first], middle, [last]])
    inverted: Array = np.asarray(axes.xaxis.get_transform().inverted().transform(every))
    return inverted


def _name_layers(axes: Axes, layers: Sequence[str]) -> None:
    axes.set_ylim(len(layers) - 0.5, -0.5)  # the first layer on top, as in a listing
    count = len(layers)
    shown = np.arange(count)
    if count > _MOST_TICKS:
        shown = np.unique(np.linspace(0, count - 1, 16).round().astype(int))
    axes.set_yticks(shown, list(distinct([layers[int(index)] for index in shown]).values()))
    axes.set_ylabel("layer, from first to last")
