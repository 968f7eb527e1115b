"""The steps shown by a figure that has room for only some of them, and their colours."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, SymLogNorm
from matplotlib.figure import Figure

from localrank_cli.errors import SettingsError, listed
from localrank_cli.figures.axis import number, spans_decades


def choose_steps(there: Sequence[int], wanted: Sequence[int], most: int) -> list[int]:
    """Return the wanted steps, or the first, the last and an even selection of at most `most`.

    Raises:
        SettingsError: If a step does not exist.
    """
    if wanted:
        for step in wanted:
            if step not in there:
                raise SettingsError(
                    f"--step {step}: no such step.", f"The steps are {listed(there, 20)}."
                )
        return sorted(set(wanted))
    if len(there) <= most:
        return list(there)
    # Evenly spaced on a log axis, on which training steps are usually drawn.
    places = np.log1p(np.array(there, float)) if min(there) >= 0 else np.array(there, float)
    goals = np.linspace(places[0], places[-1], most)
    return [there[i] for i in sorted({int(np.abs(places - goal).argmin()) for goal in goals})]


def step_colours(steps: Sequence[int]) -> tuple[ScalarMappable, dict[int, Any]]:
    """Return what a colour bar needs, and each step's colour, light to dark in time."""
    values = np.array(steps, float)
    scale: Normalize
    low, high = float(values.min()), float(values.max())
    positive = values[values > 0]
    if not spans_decades(values):
        scale = Normalize(low, high if high > low else low + 1)
    elif low > 0:
        scale = LogNorm(low, high)
    else:
        scale = SymLogNorm(float(positive.min()), linscale=0.55, vmin=0, vmax=high)
    colours = mpl.colormaps["viridis_r"](np.linspace(0.14, 1.0, 256))
    mappable = ScalarMappable(scale, mpl.colors.ListedColormap(colours))
    return mappable, dict(zip(steps, mappable.to_rgba(values), strict=True))


def step_bar(
    figure: Figure, axes: Sequence[Axes], mappable: ScalarMappable, steps: Sequence[int]
) -> None:
    """Draw a colour bar of steps beside the axes, with the mappable of `step_colours`."""
    bar = figure.colorbar(mappable, ax=list(axes), pad=0.02, fraction=0.05, aspect=25)
    ticks = _ticks(steps)
    bar.set_ticks([float(tick) for tick in ticks])
    bar.set_ticklabels([number(tick) for tick in ticks])
    bar.ax.minorticks_off()
    bar.set_label("training step")


def _ticks(steps: Sequence[int]) -> list[int]:
    values = np.array(steps, float)
    if not spans_decades(values):
        return sorted(
            {int(steps[index]) for index in np.linspace(0, len(steps) - 1, 6).astype(int)}
        )
    positive = values[values > 0]
    first = math.ceil(math.log10(positive.min()) - 1e-9)
    last = math.floor(math.log10(positive.max()) + 1e-9)
    every = max(1, math.ceil((last - first + 1) / 6))
    powers = [10**exponent for exponent in range(last, first - 1, -every)][::-1]
    return [0, *powers] if (values == 0).any() else powers
