"""Rank against tolerance, from kept singular values: how much a result depends on its tolerance."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from localrank_cli.figures.axis import scale_x
from localrank_cli.figures.labels import MOST_NAMES, distinct, layer_bar
from localrank_cli.figures.look import GREY, Look, depth_colours, head, new_figure
from localrank_cli.figures.steps import chosen_steps
from localrank_cli.results.kept import SpectraFile, Spectrum

_DECADES = 6  # below the largest singular value; lower ones are mostly rounding
_GRID = 400  # tolerances of a curve; finer steps are not visible


def tolerance(
    spectra: SpectraFile,
    run: str | None = None,
    layers: Sequence[str] = (),
    step: int | None = None,
    look: Look | None = None,
    marks: Sequence[tuple[str, float]] = (),
) -> Figure:
    """Draw the mean rank over points at every absolute (left) and relative (right) tolerance.

    Args:
        spectra: The kept singular values.
        run: Which run; None: the only one.
        layers: Globs; empty: all.
        step: Which step; None: the last.
        look: Title and size.
        marks: Tolerances to mark: `atol` or `rtol`, and the number.

    Returns:
        The figure.

    Raises:
        SettingsError: If the step does not exist.
    """
    look = look or Look()
    run = spectra.one_run(run)
    there = spectra.steps(run)
    shown = chosen_steps(there, [there[-1] if step is None else step], most=1)
    found = spectra.read(run, layers, shown)
    figure = new_figure(look, 8.4, 4.0)
    width = float(figure.get_figwidth())
    left, right = figure.subplots(1, 2, sharey=True)
    colours = depth_colours(len(found))
    _draw(left, found, colours, relative=False)
    _draw(right, found, colours, relative=True)
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
        layer_bar(figure, [left, right], [spectrum.layer for spectrum in found])
    else:
        # Curves fall from left to right: this corner is always free.
        right.legend(
            handles=right.get_lines()[: len(found)], loc="upper right", title="layer", fontsize=8
        )
    points = len(found[0].values)
    facts = (f"mean over {points} points", "dotted: tolerances of the table" if marks else "")
    head(figure, look, f"{run}: local rank at any tolerance, step {found[0].step}", facts)
    return figure


def _draw(axes: Axes, found: Sequence[Spectrum], colours: Sequence[Any], *, relative: bool) -> None:
    top = 1.0 if relative else max(float(spectrum.values.max(initial=0)) for spectrum in found)
    top = top or 1.0
    names = distinct([spectrum.layer for spectrum in found])
    places = np.geomspace(top * 10.0**-_DECADES, top, _GRID)
    for spectrum, colour in zip(found, colours, strict=True):
        ranks = spectrum.ranks(places, relative=relative)
        axes.plot(places, ranks, color=colour, label=names[spectrum.layer])
