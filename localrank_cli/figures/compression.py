"""The loss of a compressed network against its share of weights, one line for each method."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from localrank_cli.errors import DataError
from localrank_cli.figures.axis import spans_decades
from localrank_cli.figures.look import GREY, MARKERS, Look, depth_colours, head, new_figure

_ORIGINAL = "original"
# The bounds of 90 %: an increase counts in `localrank compress` where it is beyond one of them.
_QUANTILE = 1.65


def compression(frame: pd.DataFrame, look: Look | None = None) -> tuple[Figure, tuple[str, ...]]:
    """Draw the table `budgets.csv` of `localrank compress`; return notes too.

    Bars are 1.65 standard errors of the increase over the original, whose loss is dashed.

    Raises:
        DataError: If the table has no original, or no budget.
    """
    look = look or Look()
    first = frame[(frame["method"] == _ORIGINAL) & frame["weights"].notna()]
    rest = frame[frame["method"] != _ORIGINAL]
    shown = rest[rest["loss"].notna()]
    if first.empty or shown.empty:
        raise DataError(
            "the table has no loss for the original, or none for any budget.",
            "Name the budgets.csv of localrank compress.",
        )
    total, loss = float(first["weights"].iloc[0]), float(first["loss"].iloc[0])
    # The result is the first row of each budget, and its metric may differ between budgets.
    results = ~rest["budget"].duplicated()
    chosen = "/".join(dict.fromkeys(rest[results]["method"]))
    groups = {f"compress ({chosen})": shown[results.loc[shown.index]]}
    # A baseline that is the result of a budget has no other row there.
    baselines = rest[~results]["method"].unique()
    others = shown[~results.loc[shown.index] | shown["method"].isin(baselines)]
    groups |= {str(name): part for name, part in others.groupby("method", sort=False)}
    figure = new_figure(look, 6.0, 3.8)
    axes = figure.subplots()
    colours = [(0.0, 0.0, 0.0, 1.0), *depth_colours(max(len(groups) - 1, 1))]
    for (name, part), colour, marker in zip(groups.items(), colours, MARKERS * 3, strict=False):
        line = part.sort_values("weights")
        axes.errorbar(
            line["weights"].to_numpy("float64") / total,
            line["loss"].to_numpy("float64"),
            yerr=_QUANTILE * line["loss_increase_se"].to_numpy("float64"),
            color=colour, marker=marker, capsize=2, elinewidth=0.8, label=name,
            linewidth=2.0 if colour == colours[0] else 1.2,
            zorder=3 if colour == colours[0] else 2,
        )  # fmt: skip
    axes.axhline(loss, color=GREY, linestyle="--", linewidth=0.9, label="_original")
    if spans_decades(np.append(shown["loss"].to_numpy("float64"), loss)):
        axes.set_yscale("log")
    axes.set_xlabel("share of the weights")
    axes.set_ylabel("loss on the reporting split")
    axes.legend(fontsize=8)
    facts = ("dashed: the original; bars: 1.65 standard errors of the increase",)
    head(figure, look, "Loss by share of weights", facts)
    missing = rest[rest["loss"].isna()]
    notes = [
        f"{row['method']} has no ranks at {row['budget']:g} of the weights"
        for _, row in missing.iterrows()
    ]
    return figure, tuple(notes)
