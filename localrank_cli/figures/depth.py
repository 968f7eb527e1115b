"""A measure against depth, one line for each step."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from localrank_cli.figures.axis import scale_y
from localrank_cli.figures.choose import Choice, FigureRows, choose, runs_side_by_side
from localrank_cli.figures.labels import distinct, shortened
from localrank_cli.figures.look import GREY, Look, head, new_figure
from localrank_cli.figures.steps import choose_steps, step_bar, step_colours
from localrank_cli.measures.table import RANK

_MOST_STEPS = 25  # lines whose colours can still be distinguished
_MOST_NAMES = 16  # tick labels that fit below one panel


def depth(
    frame: pd.DataFrame,
    choice: Choice | None = None,
    look: Look | None = None,
    steps: Sequence[int] = (),
) -> tuple[Figure, tuple[str, ...]]:
    """Draw a measure against depth, one line for each step, light to dark; return notes too.

    Without `steps`, all are drawn, or an even selection.

    Raises:
        SettingsError: If a step does not exist, or there are too many runs.
        DataError: If there is nothing to show.
    """
    look = look or Look()
    chosen = choose(frame, choice or Choice())
    rows, layers = chosen.frame, chosen.layers
    runs = runs_side_by_side(rows, "depth")
    there = sorted({int(step) for step in rows["step"]})
    shown = choose_steps(there, steps, _MOST_STEPS)
    notes = list(chosen.notes)
    if len(shown) < len(there) and not steps:
        notes.append(f"drew {len(shown)} of {len(there)} steps; choose others with --step")
    rows = rows[rows["step"].isin(shown)]
    size = look.size or (6.4 if len(runs) == 1 else min(15.0, 1.2 + 3.8 * len(runs)), 4.0)
    figure = new_figure(look, *size)
    grid = figure.subplots(1, len(runs), squeeze=False, sharey=True)[0]
    mappable, colours = step_colours(shown)
    for axes, run in zip(grid, runs, strict=True):
        _draw(axes, chosen, rows[rows["run"] == run], colours)
        axes.set_title(shortened(str(run), 40) if len(runs) > 1 else "")
        _name_layers(axes, layers, size[0] / len(runs))
    ceiling = _ceiling(grid, chosen, rows, runs)
    scale_y(grid[0], chosen.measure, np.append(rows["y"].to_numpy("float64"), ceiling))
    grid[0].set_ylabel(chosen.y_label)
    step_bar(figure, grid, mappable, shown)
    head(figure, look, chosen.title(str(runs[0]) if len(runs) == 1 else ""), ())
    return figure, tuple(notes)


def _draw(axes: Axes, chosen: FigureRows, rows: pd.DataFrame, colours: dict[int, Any]) -> None:
    place = {layer: index for index, layer in enumerate(chosen.layers)}
    for step in sorted(set(rows["step"])):
        part = rows[rows["step"] == step]
        at = [place[layer] for layer in part["layer"]]
        order = np.argsort(at, kind="stable")
        axes.plot(
            np.array(at)[order], part["y"].to_numpy("float64")[order], color=colours[int(step)],
            marker="o" if len(place) <= 40 else "", linewidth=1.3, label=f"{step}",
        )  # fmt: skip


def _ceiling(
    grid: Sequence[Axes], chosen: FigureRows, rows: pd.DataFrame, runs: Sequence[str]
) -> Any:
    """Draw the largest possible rank, unless it is so high that it would flatten all else."""
    if chosen.measure.kind != RANK or "max_rank" not in rows.columns:
        return np.array([])
    if rows["max_rank"].max() > 2.5 * rows["y"].max():
        return np.array([])
    for axes, run in zip(grid, runs, strict=True):
        largest = rows[rows["run"] == run].groupby("layer")["max_rank"].max()
        shown = [float(largest.get(layer, np.nan)) for layer in chosen.layers]
        axes.plot(
            range(len(shown)), shown, color=GREY, linestyle="--", linewidth=0.9, label="_max_rank",
            zorder=0.5,
        )  # fmt: skip
        _name_ceiling(axes, np.array(shown))
    return rows["max_rank"].to_numpy("float64")


def _name_ceiling(axes: Axes, shown: Any) -> None:
    """Write what the dashed line is above its highest stretch, where no other line can be."""
    highest = np.flatnonzero(shown == np.nanmax(shown))
    stretch = highest[highest - highest[0] == np.arange(len(highest))]
    middle = float(stretch.mean())
    last = len(shown) - 1
    side = "center" if last == 0 else {0.0: "left", float(last): "right"}.get(middle, "center")
    axes.annotate(
        "largest possible rank", xy=(middle, float(shown[stretch[0]])), xytext=(0, 2),
        textcoords="offset points", ha=side, va="bottom", fontsize=7.5, color=GREY,
        annotation_clip=False,
    )  # fmt: skip


def _name_layers(axes: Axes, layers: Sequence[str], inches: float) -> None:
    count = len(layers)
    shown = np.arange(count)
    if count > _MOST_NAMES:
        shown = np.unique(np.linspace(0, count - 1, 9).round().astype(int))
    names = list(distinct([layers[int(index)] for index in shown], 20).values())
    # Turn names that would overlap.
    turned = max(map(len, names)) * len(names) * 0.085 > inches - 1.8
    axes.set_xticks(shown, names, rotation=35 if turned else 0, ha="right" if turned else "center")
    axes.set_xlim(-0.3, max(count - 0.7, 0.3))
    axes.set_xlabel("layer, from first to last")
