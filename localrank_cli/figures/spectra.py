"""Figures from kept singular values: each value, and rank against tolerance."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from localrank_cli.errors import SettingsError
from localrank_cli.figures.axis import log_ticks, scale_x
from localrank_cli.figures.curves import Array
from localrank_cli.figures.labels import distinct, layer_bar
from localrank_cli.figures.look import GREY, MOST_NAMES, Look, Pen, depth_pens, head, new_figure
from localrank_cli.figures.steps import choose_steps, step_bar, step_colours
from localrank_cli.results.kept import SpectraFile, Spectrum

_MOST_LAYERS = 12  # panels, four in a row
_MOST_STEPS = 12  # lines whose colours can be distinguished
_DECADES = 8  # below the largest singular value; lower ones are rounding
_RANK_DECADES = 6  # below the largest singular value; lower ones are mostly rounding
_GRID = 400  # tolerances of a curve; finer steps are not visible


def spectrum(
    spectra: SpectraFile,
    run: str | None = None,
    layers: Sequence[str] = (),
    steps: Sequence[int] = (),
    look: Look | None = None,
    marks: Sequence[tuple[str, float]] = (),
) -> Figure:
    """Draw the median over points of each singular value, from the largest to the smallest.

    `run` may be None if there is one; by default an even selection of steps is drawn. `marks` are
    tolerances to mark (`atol` or `rtol`, and the number); absolute ones are drawn as a line.

    Raises:
        SettingsError: If there are too many layers for one figure.
    """
    look = look or Look()
    run = spectra.one_run(run)
    shown = choose_steps(spectra.steps(run), steps, _MOST_STEPS)
    found = spectra.read(run, layers, shown)
    names = list(dict.fromkeys(s.layer for s in sorted(found, key=lambda s: s.layer_index)))
    if len(names) > _MOST_LAYERS:
        raise SettingsError(
            f"--kind spectrum: {len(names)} layers, but at most {_MOST_LAYERS} fit.",
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


def tolerance(
    spectra: SpectraFile,
    run: str | None = None,
    layers: Sequence[str] = (),
    step: int | None = None,
    look: Look | None = None,
    marks: Sequence[tuple[str, float]] = (),
) -> Figure:
    """Draw the mean rank over points at every absolute (left) and relative (right) tolerance.

    `run` may be None if there is one; `step` is the last by default. `marks` are tolerances to
    mark: `atol` or `rtol`, and the number.

    Raises:
        SettingsError: If the step does not exist.
    """
    look = look or Look()
    run = spectra.one_run(run)
    there = spectra.steps(run)
    shown = choose_steps(there, [there[-1] if step is None else step], most=1)
    found = spectra.read(run, layers, shown)
    figure = new_figure(look, 8.4, 4.0)
    width = float(figure.get_figwidth())
    left, right = figure.subplots(1, 2, sharey=True)
    pens = list(depth_pens([one.layer for one in found]).values())
    _draw_ranks(left, found, pens, relative=False)
    _draw_ranks(right, found, pens, relative=True)
    for axes, kind, label in (
        (left, "atol", "absolute tolerance"),
        (right, "rtol", "tolerance relative to the largest singular value"),
    ):
        every = np.concatenate([line.get_xdata() for line in axes.get_lines()])
        scale_x(axes, np.asarray(every, dtype=np.float64), width / 2 - 1)
        axes.set_xlabel(label)
        for name, value in marks:
            if name == kind:
                axes.axvline(value, color=GREY, linestyle=":", linewidth=1, label="_mark")
    high = max(float(np.count_nonzero(one.values, axis=1).max()) for one in found)
    left.set_ylim(0, 1.05 * max(high, 1.0))
    left.set_ylabel("local rank")
    if len(found) > MOST_NAMES:
        layer_bar(figure, [left, right], [one.layer for one in found])
    else:
        # Curves fall from left to right: this corner is always free.
        right.legend(
            handles=right.get_lines()[: len(found)], loc="upper right", title="layer", fontsize=8
        )
    points = len(found[0].values)
    facts = (f"mean over {points} points", "dotted: tolerances of the table" if marks else "")
    head(figure, look, f"{run}: local rank at any tolerance, step {found[0].step}", facts)
    return figure


def _draw_ranks(
    axes: Axes, found: Sequence[Spectrum], pens: Sequence[Pen], *, relative: bool
) -> None:
    top = 1.0 if relative else max(float(one.values.max(initial=0)) for one in found)
    top = top or 1.0
    names = distinct([one.layer for one in found])
    places = np.geomspace(top * 10.0**-_RANK_DECADES, top, _GRID)
    for one, pen in zip(found, pens, strict=True):
        ranks = one.ranks(places, relative=relative)
        axes.plot(places, ranks, label=names[one.layer], **pen.of_line(len(places)))
