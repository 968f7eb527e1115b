"""Singular values by index, a line for each step and a panel for each layer."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from localrank_cli.errors import SettingsError
from localrank_cli.figures.axis import log_ticks
from localrank_cli.figures.curves import Array
from localrank_cli.figures.labels import distinct
from localrank_cli.figures.look import GREY, Look, head, new_figure
from localrank_cli.figures.steps import chosen_steps, step_bar, step_colours
from localrank_cli.results.kept import SpectraFile, Spectrum

_MOST_LAYERS = 12  # panels, four in a row
_MOST_STEPS = 12  # lines whose colours can be told apart
_DECADES = 8  # below the largest singular value; lower ones are rounding


def spectrum(
    spectra: SpectraFile,
    run: str | None = None,
    layers: Sequence[str] = (),
    steps: Sequence[int] = (),
    look: Look | None = None,
    marks: Sequence[tuple[str, float]] = (),
) -> Figure:
    """Draw the median over points of each singular value, from the largest to the smallest.

    Args:
        spectra: The kept singular values.
        run: Which run; None: the only one.
        layers: Globs; empty: all.
        steps: The steps to show; by default an even selection.
        look: Title and size.
        marks: Tolerances to mark; absolute ones are drawn as a line.

    Returns:
        The figure.

    Raises:
        SettingsError: If there are too many layers for one figure.
    """
    look = look or Look()
    run = spectra.one_run(run)
    shown = chosen_steps(spectra.steps(run), steps, _MOST_STEPS)
    found = spectra.read(run, layers, shown)
    names = list(dict.fromkeys(s.layer for s in sorted(found, key=lambda s: s.layer_index)))
    if len(names) > _MOST_LAYERS:
        raise SettingsError(
            f"--kind spectrum: {len(names)} layers, and at most {_MOST_LAYERS} have room.",
            "Choose some with --layers.",
        )
    across = min(len(names), 4)
    down = math.ceil(len(names) / across)
    figure = new_figure(look, 1.4 + 2.5 * across + (2 if across == 1 else 0), 0.9 + 2.5 * down)
    grid = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    mappable, colours = step_colours(shown)
    written = distinct(names)
    for axes, name in zip(grid, names, strict=False):
        _draw(axes, [one for one in found if one.layer == name], colours, marks)
        axes.set_title(f"layer {written[name]}")
    for axes in grid[len(names) :]:
        axes.remove()
    _scale(grid[0], np.concatenate([medians(one.values) for one in found]))
    for index, axes in enumerate(grid[: len(names)]):
        if index % across == 0:
            axes.set_ylabel("singular value")
        if index + across >= len(names):
            axes.set_xlabel("index, from the largest")
    step_bar(figure, list(grid[: len(names)]), mappable, shown)
    points = max(len(one.values) for one in found)
    dotted = any(kind == "atol" for kind, _ in marks)
    facts = (f"median over {points} points", "dotted: absolute tolerance" if dotted else "")
    head(figure, look, f"{run}: singular values of each layer's Jacobian", facts)
    return figure


def medians(values: Array) -> Array:
    """Return the median over points of each singular value.

    Args:
        values: Descending in each row; shape (points, r).

    Returns:
        Shape (r,); NaN instead of 0, which a log axis cannot show.
    """
    middle: Array = np.median(values, axis=0)
    return np.where(middle > 0, middle, np.nan)


def _draw(
    axes: Axes,
    found: Sequence[Spectrum],
    colours: Mapping[int, Any],
    marks: Sequence[tuple[str, float]],
) -> None:
    for one in found:
        middle = medians(one.values)
        index = np.arange(1, len(middle) + 1)
        axes.plot(index, middle, color=colours[one.step], linewidth=1.2, label=f"{one.step}")
    for kind, value in marks:
        if kind == "atol":
            axes.axhline(value, color=GREY, linestyle=":", linewidth=1, label="_mark", zorder=0.5)


def _scale(axes: Axes, values: Array) -> None:
    positive = values[values > 0]
    axes.set_yscale("log")
    if positive.size:
        high = float(positive.max())
        # Lower values would squeeze all others together at the top.
        low = max(float(positive.min()), high * 10.0**-_DECADES)
        axes.set_ylim(low / 1.5, high * 1.5)
        log_ticks(axes.yaxis, np.array([low, high]), most=6)
