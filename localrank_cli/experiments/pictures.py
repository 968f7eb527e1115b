"""Figures of the experiments: from a table to a matplotlib figure, which must be installed."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from localrank_cli.experiments import compression, generalization, patel2024, vib
from localrank_cli.experiments.correlation import CONFIDENCE
from localrank_cli.experiments.training import LANDMARK
from localrank_cli.experiments.vib import RHO
from localrank_cli.figures.axis import log_ticks, scale_x, scale_y
from localrank_cli.figures.labels import name_lines
from localrank_cli.figures.look import (
    GREY,
    MARKERS,
    Look,
    depth_colours,
    depth_pens,
    head,
    new_figure,
    saved,
    styled,
)
from localrank_cli.information.bottleneck import (
    Information,
    active,
    optimal_information,
    variational_information,
    variational_singular_values,
)
from localrank_cli.results.columns import meaning

_WIDTH, _HEIGHT = 7.8, 4.0  # inches of two panels
_ROOM = 1.2  # inches of a panel's width for labels, beside and above its axes
_OURS = depth_colours(1)[0]


def save_picture(name: str, frame: pd.DataFrame, target: Path) -> None:
    """Draw the figure of an experiment and write it as a PNG file."""
    with styled():
        target.write_bytes(saved(draw(name, frame), ".png"))


def draw(name: str, frame: pd.DataFrame) -> Figure:
    """Draw the figure of an experiment; it belongs to no window and no backend."""
    draw_it = {
        vib.NAME: _over_beta,
        generalization.NAME: _over_sweep,
        compression.NAME: _over_budget,
        patel2024.NAME: _with_published,
    }.get(name)
    return _over_steps(name, frame) if draw_it is None else draw_it(name, frame)


def _over_steps(
    name: str, frame: pd.DataFrame, fact: str = "", ends: tuple[float, ...] = (), at: int = 0
) -> Figure:
    """Draw a panel for each weight decay, a line for each layer, a band over seeds.

    The layers' `ends` in another run, at step `at`, are crosses, described by `fact`.
    """
    tolerance = frame["tolerance"].iloc[0]
    frame = frame[frame["tolerance"] == tolerance]
    decays = sorted(frame["weight_decay"].unique(), reverse=True)
    width = max(6.4, _WIDTH / 2 * len(decays))
    figure = new_figure(Look(), width, _HEIGHT)
    panels = figure.subplots(1, len(decays), sharey=True, squeeze=False)[0]
    names = {layer: f"layer {layer + 1}" for layer in sorted(frame["layer_index"].unique())}
    pens = depth_pens(list(names.values()))
    every_step = np.append(frame["step"].to_numpy("float64"), [at] * len(ends))
    every_rank = np.append(frame["local_rank"].to_numpy("float64"), ends)
    for panel, decay in zip(panels, decays, strict=True):
        part = frame[frame["weight_decay"] == decay]
        # Landmarks differ between seeds: a mean over only some of the seeds would distort the line.
        seeds = part.groupby("step")["seed"].transform("nunique")
        part = part[seeds == part["seed"].nunique()]
        scale_x(panel, every_step, width / len(decays) - _ROOM)
        scale_y(panel, meaning("local_rank"), every_rank)
        last = {}
        for layer, text in names.items():
            ranks = part[part["layer_index"] == layer].groupby("step")["local_rank"]
            line = ranks.mean()
            pen = pens[text]
            panel.plot(line.index, line, label=text, **pen.of_line(len(line)))
            panel.fill_between(
                line.index, ranks.min(), ranks.max(), color=pen.colour, alpha=0.2, linewidth=0
            )
            last[text] = (float(line.index[-1]), float(line.iloc[-1]))
        name_lines(panel, last, pens, (_HEIGHT - _ROOM) * 72)
        panel.set(xlabel="training step", title=f"weight decay {decay:g}")
        for rank, pen in zip(ends, pens.values(), strict=False):
            panel.plot(at, rank, marker="x", color=pen.colour, label="_published")
    panels[0].set_ylabel("local rank")
    count = frame["seed"].nunique()
    band = f"mean and range over {count} seeds" if count > 1 else ""
    head(figure, Look(), f"{name}: local rank at {tolerance}", (band, fact))
    return figure


def _with_published(name: str, frame: pd.DataFrame) -> Figure:
    """Mark the end values of the published log, far to the right of a shorter training."""
    steps = patel2024.PUBLISHED_STEPS
    fact = f"crosses: end values in the published log, at {steps:,} steps"
    return _over_steps(name, frame, fact, patel2024.PUBLISHED, steps)


def _over_budget(name: str, frame: pd.DataFrame) -> Figure:
    """Draw ranks against the smallest budget; checkpoints that are not trained yet are hollow."""
    checkpoints = compression.by_checkpoint(frame)
    figure = new_figure(Look(), _WIDTH, _HEIGHT)
    panels = figure.subplots(1, 2, sharey=True)
    names = {"local_rank": "local rank", "weights_rank": "effective rank of the weights"}
    decays = ((True, "with weight decay"), (False, "without"))
    for panel, (column, text) in zip(panels, names.items(), strict=True):
        styles = zip(decays, depth_colours(2), MARKERS, strict=False)
        for (decay, label), colour, marker in styles:
            part = checkpoints[(checkpoints["weight_decay"] > 0) == decay]
            trained = part["train_accuracy"] >= LANDMARK
            for chosen, face in ((trained, colour), (~trained, "none")):
                panel.scatter(
                    part[chosen][column], part[chosen]["share_two_sided"], s=18, marker=marker,
                    facecolors=[face], edgecolors=[colour],
                    label=label if face != "none" else f"_{label}",
                )  # fmt: skip
        panel.set(xlabel=f"{text}, summed over layers", ylim=(0, None))
    panels[0].set_ylabel("fewest weights (share of all)")
    panels[0].legend(fontsize=8, loc="lower left")
    fact = f"hollow: not yet trained to {100 * LANDMARK:g} % accuracy"
    head(figure, Look(), f"{name}: rank and the smallest budget", (fact,))
    return figure


def _over_beta(name: str, frame: pd.DataFrame) -> Figure:
    """Draw ranks and singular values beside theory, and each bottleneck's information plane."""
    last = frame[frame["layer_index"] == frame["layer_index"].max()]
    ends = last.loc[last.groupby("run")["step"].idxmax()]
    figure = new_figure(Look(), _WIDTH, 1.6 * _HEIGHT)
    (ranks, sigmas), (optimum, plane) = figure.subplots(2, 2)
    betas = np.geomspace(1, 1.2 * ends["beta"].max(), 400)
    ranks.plot(betas, [active(RHO, beta) for beta in betas], color=GREY, label="theory")
    ranks.plot(ends["beta"], ends["local_rank"], "o", color=_OURS, label="trained")
    ranks.set(ylabel="local rank of the mean", title="rank")
    ranks.legend()
    sigmas.plot(betas, [variational_singular_values(RHO, b) for b in betas], color=GREY)
    for index in range(len(RHO)):
        sigmas.plot(ends["beta"], ends[f"sigma_{index + 1}"], "o", color=_OURS)
    sigmas.set(title="singular values of J Σ^½, Σ = Cov(X)")
    for panel in (ranks, sigmas):
        panel.set(xscale="log", xlabel="β")
        log_ticks(panel.xaxis, betas, most=4)
    # Both bottlenecks share critical betas but not information: one panel each, same axes.
    _plane(optimum, [optimal_information(RHO, b) for b in betas], "Gaussian bottleneck: optimum")
    _plane(plane, [variational_information(RHO, b) for b in betas], "variational bottleneck")
    plane.plot(ends["xt_nats"], ends["ty_nats"], "o", color=_OURS, label="trained")
    plane.legend()
    plane.sharex(optimum)
    plane.sharey(optimum)
    head(figure, Look(), f"{name}: trained encoders and theory", ())
    return figure


def _over_sweep(name: str, frame: pd.DataFrame) -> Figure:
    """Draw each network's rank and gap, and beside it the coefficients with their intervals."""
    rows = generalization.networks(frame)
    rows = rows[rows["reached"]]
    found = generalization.findings(rows)
    figure = new_figure(Look(), _WIDTH, _HEIGHT)
    points, bars = figure.subplots(1, 2)
    groups = list(rows.groupby("label_noise"))
    styles = zip(groups, depth_colours(len(groups)), MARKERS, strict=False)
    for (noise, part), colour, marker in styles:
        label = "random labels" if noise == generalization.RANDOM else f"label noise {noise:g}"
        points.plot(
            part["rank"], part["gap"], marker, label=label, color=colour, alpha=0.7, markersize=3
        )
    points.set(xlabel="local rank, mean over hidden layers", ylabel="generalization gap (accuracy)")
    points.margins(y=0.3)  # room for the legend
    points.legend(fontsize=8, loc="upper left")
    named = {
        "overall": found.overall,
        **{f"{axis.replace('_', ' ')} only": one for axis, one in found.by_axis.items()},
        "given norms and decay": found.partial,
    }
    for place, one in enumerate(named.values()):
        if not np.isnan(one.low):
            bars.plot([one.low, one.high], [place, place], color=_OURS)
            bars.plot(one.value, place, "o", color=_OURS)
    bars.axvline(0, color=GREY, linewidth=0.8)
    bars.set(xlim=(-1.05, 1.05), xlabel="rank correlation with the gap")
    bars.set_yticks(range(len(named)), list(named))
    bars.invert_yaxis()
    facts = (
        "positive: a low local rank goes with a small gap",
        f"bars: {100 * CONFIDENCE:g} % intervals",
    )
    head(figure, Look(), f"{name}: local rank and the generalization gap", facts)
    return figure


def _plane(panel: Axes, curve: list[Information], title: str) -> None:
    x, y = [point.xt for point in curve], [point.ty for point in curve]
    panel.plot(x, y, color=GREY, label="theory")
    panel.set(xlabel="I(X;T), nats", ylabel="I(T;Y), nats", title=title)
