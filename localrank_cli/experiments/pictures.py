"""The pictures of the experiments: a table goes in, a matplotlib figure comes out."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

_DARKEST, _LIGHTEST = 0.95, 0.4  # of the map of blues, so that the first layer is still seen


class PictureError(Exception):
    """There is no matplotlib to draw with."""


def draw(name: str, frame: pd.DataFrame) -> Any:
    """Draws the picture of an experiment.

    Args:
        name: Of the experiment.
        frame: Its table.

    Returns:
        A `matplotlib.figure.Figure`, which belongs to no window and no backend.

    Raises:
        PictureError: If matplotlib is not installed.
    """
    try:
        from matplotlib import colormaps  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415  # an extra, and slow to import
        from matplotlib.figure import Figure  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415  # as above
    except ImportError:
        raise PictureError(
            "no picture: matplotlib is not installed (pip install matplotlib)"
        ) from None
    figure = Figure(figsize=(9, 4), layout="constrained")
    _over_steps(figure, frame[frame["tolerance"] == frame["tolerance"].iloc[0]], colormaps["Blues"])
    figure.suptitle(f"{name}: local rank at {frame['tolerance'].iloc[0]}")
    return figure


def _over_steps(figure: Any, frame: pd.DataFrame, blues: Any) -> None:
    """One panel for each weight decay, one line for each layer, the band from seed to seed."""
    decays = sorted(frame["weight_decay"].unique(), reverse=True)
    panels = figure.subplots(1, len(decays), sharey=True, squeeze=False)[0]
    layers = sorted(frame["layer_index"].unique())
    for panel, decay in zip(panels, decays, strict=True):
        part = frame[frame["weight_decay"] == decay]
        for layer, colour in zip(layers, _shades(blues, len(layers)), strict=True):
            ranks = part[part["layer_index"] == layer].groupby("step")["local_rank"]
            # Step 0 has no place on a logarithmic axis: it stands where step 1 would.
            steps = [max(1, step) for step in ranks.mean().index]
            panel.plot(steps, ranks.mean(), color=colour, marker=".", label=f"layer {layer + 1}")
            panel.fill_between(steps, ranks.min(), ranks.max(), color=colour, alpha=0.2, lw=0)
        panel.set(
            xscale="log", xlabel="training step", title=f"weight decay {decay:g}", ylim=(0, None)
        )
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("local rank")
    panels[0].legend()


def _shades(blues: Any, count: int) -> Iterable[Any]:
    """From light, the first layer, to dark, the deepest."""
    if count == 1:
        return [blues(_DARKEST)]
    width = (_DARKEST - _LIGHTEST) / (count - 1)
    return [blues(_LIGHTEST + index * width) for index in range(count)]
