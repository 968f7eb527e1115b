"""The panel below a figure: an accuracy or a loss, joined to the table by step."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes

from localrank_cli.errors import DataError
from localrank_cli.results.columns import meaning

_STYLES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Metric:
    """A column of another table.

    Args:
        frame: With column step and, if runs differ, run.
        column: The column to draw.
    """

    frame: pd.DataFrame
    column: str

    @property
    def has_runs(self) -> bool:
        """Whether the table has a column run."""
        return "run" in self.frame.columns


def draw_metrics(axes: Axes, metrics: Sequence[Metric], rows: pd.DataFrame, *, first: bool) -> None:
    """Draw metrics at the steps of the panel above.

    Args:
        axes: With its horizontal scale set.
        metrics: At least one.
        rows: The rows of the panel above, with columns run, step and x.
        first: Whether this panel carries the label.
    """
    colours = ["#222222", "#b35900", "#00688b", "#8b1a62"]
    for index, metric in enumerate(metrics):
        places = join_metric(metric, rows)
        axes.plot(
            places["x"], places["value"], color=colours[index % len(colours)], marker="o",
            linestyle=_STYLES[index % len(_STYLES)], label=meaning(metric.column).label,
            markersize=2.4 if len(places) <= 60 else 0, linewidth=1.2,
        )  # fmt: skip
    axes.margins(y=0.1)
    axes.tick_params(labelleft=first)
    if first and len({metric.column for metric in metrics}) == 1:
        axes.set_ylabel(meaning(metrics[0].column).label)
    elif first:
        axes.legend(fontsize=7.5, loc="best")


def join_metric(metric: Metric, rows: pd.DataFrame) -> pd.DataFrame:
    """Join a metric to the rows of the panel above.

    Args:
        metric: The metric.
        rows: With columns run, step and x.

    Returns:
        Columns x and value, ascending; the mean over several runs.

    Raises:
        DataError: If they have no step in common.
    """
    keys = ["run", "step"] if metric.has_runs else ["step"]
    places = rows[["run", "step", "x"]].drop_duplicates()
    values = metric.frame[[*keys, metric.column]].rename(columns={metric.column: "value"})
    found = places.merge(values, on=keys).dropna(subset=["value"])
    if found.empty:
        raise DataError(
            f"--with {metric.column}: has no {' and '.join(keys)} in common with the table.",
            "Both must count steps in the same way.",
        )
    means: pd.DataFrame = found.groupby("x")["value"].mean().reset_index()
    return means.sort_values("x", kind="stable")
