"""Figures of the experiments: from a table to a matplotlib figure."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from localrank_cli.drawing import import_matplotlib, own_style
from localrank_cli.experiments import compression, generalization, patel2024, vib
from localrank_cli.experiments.training import LANDMARK
from localrank_cli.experiments.vib import RHO
from localrank_cli.information.bottleneck import (
    Information,
    active,
    optimal_information,
    variational_information,
    variational_singular_values,
)

_MISSING = "no picture: matplotlib is not installed (pip install 'localrank[plot]')"
_DARKEST, _LIGHTEST = 0.95, 0.4  # places in the map of blues; lighter ones are too faint


class PictureError(Exception):
    """Matplotlib is not installed."""


def save_picture(name: str, frame: pd.DataFrame, target: Path) -> None:
    """Draw the figure of an experiment in matplotlib's default style, and write it.

    Raises:
        PictureError: If matplotlib is not installed.
    """
    try:
        import_matplotlib()
    except ImportError:
        raise PictureError(_MISSING) from None
    with own_style():
        draw(name, frame).savefig(target, dpi=150)


def draw(name: str, frame: pd.DataFrame) -> Any:
    """Draw the figure of an experiment; it belongs to no window and no backend.

    Raises:
        PictureError: If matplotlib is not installed.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError:
        raise PictureError(_MISSING) from None
    figure = Figure(figsize=(9, 7 if name == vib.NAME else 4), layout="constrained")
    if name == vib.NAME:
        _over_beta(figure, frame)
        return figure
    if name == generalization.NAME:
        _over_sweep(figure, frame)
        return figure
    if name == compression.NAME:
        _over_budget(figure, compression.by_checkpoint(frame))
        return figure
    _over_steps(figure, frame[frame["tolerance"] == frame["tolerance"].iloc[0]], colormaps["Blues"])
    figure.suptitle(f"{name}: local rank at {frame['tolerance'].iloc[0]}")
    if name == patel2024.NAME:
        _published(figure.axes[0], colormaps["Blues"])
    return figure


def _over_steps(figure: Any, frame: pd.DataFrame, blues: Any) -> None:
    """Draw a panel for each weight decay, a line for each layer, a band over seeds."""
    decays = sorted(frame["weight_decay"].unique(), reverse=True)
    panels = figure.subplots(1, len(decays), sharey=True, squeeze=False)[0]
    layers = sorted(frame["layer_index"].unique())
    for panel, decay in zip(panels, decays, strict=True):
        part = frame[frame["weight_decay"] == decay]
        # Landmarks differ between seeds: a mean over only some of the seeds would distort the line.
        seeds = part.groupby("step")["seed"].transform("nunique")
        part = part[seeds == part["seed"].nunique()]
        for layer, colour in zip(layers, _shades(blues, len(layers)), strict=True):
            ranks = part[part["layer_index"] == layer].groupby("step")["local_rank"]
            # A log axis cannot show step 0: draw it at step 1.
            steps = [max(1, step) for step in ranks.mean().index]
            panel.plot(steps, ranks.mean(), color=colour, marker=".", label=f"layer {layer + 1}")
            panel.fill_between(steps, ranks.min(), ranks.max(), color=colour, alpha=0.2, lw=0)
        panel.set(
            xscale="log", xlabel="training step", title=f"weight decay {decay:g}", ylim=(0, None)
        )
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("local rank")
    panels[0].legend()


def _over_budget(figure: Any, checkpoints: pd.DataFrame) -> None:
    """Draw ranks against the smallest budget; checkpoints that are not trained yet are hollow."""
    panels = figure.subplots(1, 2, sharey=True)
    names = {"local_rank": "local rank", "weights_rank": "effective rank of the weights"}
    for panel, (name, text) in zip(panels, names.items(), strict=True):
        for decay, colour in zip((True, False), ("tab:blue", "tab:orange"), strict=True):
            part = checkpoints[(checkpoints["weight_decay"] > 0) == decay]
            trained = part["train_accuracy"] >= LANDMARK
            label = "with weight decay" if decay else "without"
            for chosen, face in ((trained, colour), (~trained, "none")):
                panel.scatter(
                    part[chosen][name], part[chosen]["share_two_sided"],
                    facecolors=face, edgecolors=colour, s=18,
                    label=label if face != "none" else f"_{label}",
                )  # fmt: skip
        panel.set(xlabel=f"{text}, summed over layers")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("fewest weights (share of all)")
    panels[0].legend(fontsize=8)
    figure.suptitle("compression: rank and the smallest budget (hollow: not trained to 99 % yet)")


def _published(panel: Any, blues: Any) -> None:
    """Mark the end values of the published log, far to the right of a shorter training."""
    shades = _shades(blues, len(patel2024.PUBLISHED))
    for rank, colour in zip(patel2024.PUBLISHED, shades, strict=True):
        panel.plot(patel2024.PUBLISHED_STEPS, rank, marker="x", color=colour, label="_published")
    panel.set(title="crosses: the published end values")


def _over_beta(figure: Any, frame: pd.DataFrame) -> None:
    """Draw ranks and singular values beside theory, and each bottleneck's information plane."""
    last = frame[frame["layer_index"] == frame["layer_index"].max()]
    ends = last.loc[last.groupby("run")["step"].idxmax()]
    (ranks, sigmas), (optimum, plane) = figure.subplots(2, 2)
    betas = np.geomspace(1, 1.2 * ends["beta"].max(), 400)
    ranks.plot(betas, [active(RHO, beta) for beta in betas], color="0.6", label="theory")
    ranks.plot(ends["beta"], ends["local_rank"], "o", color="tab:blue", label="trained")
    ranks.set(xscale="log", xlabel="beta", ylabel="local rank of the mean", title="rank")
    ranks.legend()
    sigmas.plot(betas, [variational_singular_values(RHO, b) for b in betas], color="0.6")
    for index in range(len(RHO)):
        sigmas.plot(ends["beta"], ends[f"sigma_{index + 1}"], ".", color="tab:blue")
    sigmas.set(xscale="log", xlabel="beta", title="singular values of J Sigma_x^(1/2)")
    # Both bottlenecks share critical betas but not information: one panel each, same axes.
    _plane(optimum, [optimal_information(RHO, b) for b in betas], "Gaussian bottleneck: optimum")
    _plane(plane, [variational_information(RHO, b) for b in betas], "variational bottleneck")
    plane.plot(ends["xt_nats"], ends["ty_nats"], "o", color="tab:blue", label="trained")
    plane.legend()
    plane.sharex(optimum)
    plane.sharey(optimum)


def _over_sweep(figure: Any, frame: pd.DataFrame) -> None:
    """Draw each network's rank and gap, and beside it the coefficients with their intervals."""
    rows = generalization.networks(frame)
    rows = rows[rows["reached"]]
    found = generalization.findings(rows)
    points, bars = figure.subplots(1, 2)
    for noise, part in rows.groupby("label_noise"):
        label = "random labels" if noise == generalization.RANDOM else f"label noise {noise:g}"
        points.plot(part["rank"], part["gap"], ".", label=label, alpha=0.7)
    points.set(xlabel="local rank, mean over hidden layers", ylabel="gap of accuracy")
    points.margins(y=0.3)  # room for the legend
    points.legend(fontsize=8, loc="upper left")
    named = {
        "overall": found.overall,
        **{f"{axis.replace('_', ' ')} only": one for axis, one in found.by_axis.items()},
        "given norms and decay": found.partial,
    }
    for place, one in enumerate(named.values()):
        if not np.isnan(one.low):
            bars.plot([one.low, one.high], [place, place], color="tab:blue")
            bars.plot(one.value, place, "o", color="tab:blue")
    bars.axvline(0, color="0.6", lw=1)
    bars.set(xlim=(-1.05, 1.05), xlabel="rank correlation with the gap")
    bars.set_yticks(range(len(named)), list(named))
    bars.invert_yaxis()
    figure.suptitle("generalization: positive where a low local rank goes with a small gap")


def _plane(panel: Any, curve: list[Information], title: str) -> None:
    x, y = [point.xt for point in curve], [point.ty for point in curve]
    panel.plot(x, y, color="0.6", label="theory")
    panel.set(xlabel="I(X;T), nats", ylabel="I(T;Y), nats", title=title)
    panel.grid(alpha=0.3)


def _shades(blues: Any, count: int) -> Iterable[Any]:
    """Return colours from light, the first layer, to dark, the deepest."""
    if count == 1:
        return [blues(_DARKEST)]
    width = (_DARKEST - _LIGHTEST) / (count - 1)
    return [blues(_LIGHTEST + index * width) for index in range(count)]
