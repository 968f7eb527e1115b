"""Groups of runs and their differences against the step, with intervals: `differences`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from localrank_cli.compare.differences import Difference
from localrank_cli.compare.groups import Group, Groups
from localrank_cli.compare.onset import Onset
from localrank_cli.errors import SettingsError
from localrank_cli.figures.axis import scale_x, scale_y
from localrank_cli.figures.labels import shortened
from localrank_cli.figures.look import GREY, Look, Pen, depth_pens, head, new_figure
from localrank_cli.results.columns import meaning

_MOST_LAYERS = 8  # panels that still have room for tick labels in 18 inches
_MOST_GROUPS = 6  # colours that can be distinguished


def differences(
    groups: Groups,
    found: Sequence[Difference],
    falls: Sequence[Onset],
    confidence: float,
    look: Look | None = None,
) -> Figure:
    """Draw each layer in a column: the groups above, their differences from the reference below.

    Above, thin lines are single runs, and a triangle marks the onset of each group. Below, the dark
    band is the interval of each step alone, the light one holds for all layers and steps together.

    Raises:
        SettingsError: If there are too many layers or groups.
    """
    look = look or Look()
    layers, names = groups.layers, [group.name for group in groups.groups]
    for count, most, what, advice in (
        (len(layers), _MOST_LAYERS, "layers", "Choose some with --layers."),
        (len(names), _MOST_GROUPS, "groups", "Give tables with fewer groups."),
    ):
        if count > most:
            raise SettingsError(
                f"--figure: {count} {what}, but at most {most} can be drawn.", advice
            )
    width = min(18.0, 1.2 + 2.7 * len(layers))
    figure = new_figure(look, width, 5.0)
    grid: Any = figure.subplots(
        2, len(layers), squeeze=False, sharey="row", gridspec_kw={"height_ratios": [1.2, 1]}
    )
    inches = width / len(layers) - 0.8
    steps = np.array(groups.steps, dtype=float)
    pens = depth_pens(names)
    onsets = {(fall.group, fall.layer): fall.step for fall in falls}
    for column, layer in enumerate(layers):
        above, below = grid[0][column], grid[1][column]
        scale_x(above, steps, inches)
        scale_x(below, steps, inches)
        for group in groups.groups:
            _draw_group(above, steps, group, column, pens[group.name])
            _mark(above, onsets.get((group.name, layer)), pens[group.name].colour)
        for one in found:
            _draw_difference(below, steps, one, column, pens[one.group.name])
        below.axhline(0.0, color=GREY, linewidth=0.8)
        above.set_title(shortened(layer, max(14, int(inches * 12))))
        above.tick_params(labelbottom=False)
        below.set_xlabel("training step")
    every = np.concatenate([group.ranks.ravel() for group in groups.groups])
    scale_y(grid[0][0], meaning(groups.choice.y), every)
    grid[0][0].set_ylabel(groups.label)
    grid[1][0].set_ylabel(f"minus {shortened(names[0], 18)}")
    grid[0][-1].legend(fontsize=7.5, loc="best")
    figure.align_ylabels()
    over = ", ".join(dict.fromkeys(one.over for one in found))
    facts = (
        f"bands: {100 * confidence:.4g} % intervals over {over}; light: for all layers and steps"
        " together; no band: no spread, or unbounded; triangle: onset",
    )
    head(figure, look, f"{groups.label[:1].upper()}{groups.label[1:]}, by group", facts)
    return figure


def _draw_group(axes: Axes, steps: Any, group: Group, index: int, pen: Pen) -> None:
    for run in group.ranks[:, index]:
        if len(group.runs) > 1:
            axes.plot(steps, run, color=pen.colour, linewidth=0.6, alpha=0.45, label="_run")
    count = len(group.runs)
    name = f"{shortened(group.name, 24)} ({count} run{'' if count == 1 else 's'})"
    axes.plot(steps, group.ranks[:, index].mean(0), label=name, **pen.of_line(len(steps)))


def _mark(axes: Axes, onset: int | None, colour: Any) -> None:
    if onset is not None:
        axes.plot(
            [onset], [0.0], marker="^", color=colour, transform=axes.get_xaxis_transform(),
            clip_on=False, markersize=6, label="_onset",
        )  # fmt: skip


def _draw_difference(axes: Axes, steps: Any, one: Difference, index: int, pen: Pen) -> None:
    line = {
        name: one.grid(name)[index] for name in ("estimate", "low", "high", "low_all", "high_all")
    }
    axes.plot(steps, line["estimate"], **pen.of_line(len(steps)))
    for low, high, alpha in (("low_all", "high_all", 0.15), ("low", "high", 0.3)):
        # Where there is no spread, or the interval is unbounded, there is no band.
        lower, upper = (
            np.where(np.isfinite(line[name]), line[name], np.nan) for name in (low, high)
        )
        axes.fill_between(steps, lower, upper, color=pen.colour, alpha=alpha, linewidth=0)
