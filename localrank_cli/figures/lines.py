"""A measure against the step, one line for each layer: `ranks`, and `compare` side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from localrank_cli.errors import DataError, SettingsError, listed
from localrank_cli.figures.alike import RunSettings, group_alike
from localrank_cli.figures.axis import positions, scale_x, scale_y
from localrank_cli.figures.choose import Choice, FigureRows, choose
from localrank_cli.figures.curves import Curve, Curves, curves, thin
from localrank_cli.figures.labels import layer_bar, name_lines, shortened
from localrank_cli.figures.look import MOST_NAMES, Look, Pen, depth_pens, head, new_figure
from localrank_cli.results.columns import meaning

_MOST_PANELS = 12  # more are too narrow to read in 15 inches
_METRIC_STYLES = ("-", "--", ":", "-.")
_METRIC_COLOURS = ("#222222", "#b35900", "#00688b", "#8b1a62")


@dataclass(frozen=True)
class Metric:
    """A column of another table, which has a column `step` and, if runs differ, `run`."""

    frame: pd.DataFrame
    column: str

    @property
    def has_runs(self) -> bool:
        """Whether the table has a column run."""
        return "run" in self.frame.columns


@dataclass(frozen=True)
class _Panel:
    title: str
    lines: Curves
    frame: pd.DataFrame
    metrics: tuple[Metric, ...]


def ranks(
    frame: pd.DataFrame,
    choice: Choice | None = None,
    look: Look | None = None,
    metrics: Sequence[Metric] = (),
    settings: RunSettings | None = None,
) -> tuple[Figure, tuple[str, ...]]:
    """Draw a measure against the step, one line for each layer, light to dark by depth.

    The band is the standard error over points or, for several runs, the standard deviation over
    runs around their mean. Runs that differ in more than their seed, by the table or by `settings`,
    are drawn side by side. `metrics` are drawn in a panel below.

    Raises:
        SettingsError: If there are too many kinds of runs.
        DataError: If there is nothing to show.
    """
    chosen = choose(frame, choice or Choice(), bars=True)
    grouping = group_alike(chosen.frame, settings, _axes(chosen))
    groups = grouping.groups
    if len(groups) > _MOST_PANELS:
        raise SettingsError(
            f"{len(groups)} kinds of runs, but at most {_MOST_PANELS} fit side by side:"
            f" {grouping.note}.",
            "Give tables with fewer runs.",
        )
    panels = [
        _Panel(
            group.name,
            curves(group.frame, chosen.layers),
            group.frame,
            _metrics_of(metrics, index, len(groups)) if len(groups) > 1 else tuple(metrics),
        )
        for index, group in enumerate(groups)
    ]
    whose = _whose(panels[0].lines.runs) if len(panels) == 1 else ""
    return _figure(chosen, panels, look or Look(), whose, (grouping.note,))


def compare(
    frame: pd.DataFrame,
    choice: Choice | None = None,
    look: Look | None = None,
    metrics: Sequence[Metric] = (),
    by: str | None = None,
    settings: RunSettings | None = None,
) -> tuple[Figure, tuple[str, ...]]:
    """Draw groups of runs side by side on one scale.

    Each value of column `by` gets a panel; by default each table, or each run of one table. Runs
    with the same value that differ in more than their seed get separate panels. `metrics` are drawn
    in panels below: each joined by run, or one for each panel.

    Raises:
        SettingsError: If there is only one group, or too many.
        DataError: If there is nothing to show.
    """
    chosen = choose(frame, choice or Choice(), bars=True)
    rows = chosen.frame
    if by is None:
        by = "table" if "table" in rows.columns and len(set(rows["table"])) > 1 else "run"
    if by not in rows.columns:
        raise SettingsError(
            f"--by {by}: no such column.", f"The columns are {listed(rows.columns, 50)}."
        )
    groups = [(key, part) for key, part in rows.groupby(by, sort=False)]
    if not 2 <= len(groups) <= _MOST_PANELS:
        raise SettingsError(
            f"--kind compare: needs 2 to {_MOST_PANELS} values of {by}, but found"
            f" {len(groups)}: {listed((key for key, _ in groups), 8)}.",
            "Give several tables, or a column whose values differ between runs with --by.",
        )
    parts, found = [], []
    for key, part in groups:
        text = f"{by} = {key:g}" if isinstance(key, float) else str(key)
        grouping = group_alike(part, settings, {by, *_axes(chosen)})
        found.append(grouping.note)
        parts += [
            (f"{text}: {group.name}" if group.name else text, group.frame)
            for group in grouping.groups
        ]
    if len(parts) > _MOST_PANELS:
        raise SettingsError(
            f"--kind compare: {len(parts)} kinds of runs, but at most {_MOST_PANELS} fit side by"
            f" side: {listed(filter(None, found))}.",
            "Give tables with fewer runs.",
        )
    panels = [
        _Panel(text, curves(part, chosen.layers), part, _metrics_of(metrics, index, len(parts)))
        for index, (text, part) in enumerate(parts)
    ]
    return _figure(chosen, panels, look or Look(), "", found)


def _axes(chosen: FigureRows) -> set[str]:
    return {chosen.choice.x, chosen.choice.y}


def _metrics_of(metrics: Sequence[Metric], index: int, panels: int) -> tuple[Metric, ...]:
    if not metrics or all(metric.has_runs for metric in metrics):
        return tuple(metrics)
    if len(metrics) != panels:
        raise SettingsError(
            f"--with: {len(metrics)} metrics for {panels} panels.",
            "Give one for each panel, in order, or files with a column run.",
        )
    return (metrics[index],)


def _figure(
    chosen: FigureRows,
    panels: Sequence[_Panel],
    look: Look,
    whose: str,
    found: Sequence[str] = (),  # notes on what the runs are
) -> tuple[Figure, tuple[str, ...]]:
    below = any(panel.metrics for panel in panels)
    width = 6.4 if len(panels) == 1 else min(15.0, 3.9 * len(panels))
    size = look.size or (width, 5.4 if below else 4.0)
    figure = new_figure(look, *size)
    ratios = {"height_ratios": [3, 1.15]} if below else {}
    grid = figure.subplots(
        2 if below else 1, len(panels), squeeze=False, sharex=False, sharey="row",
        gridspec_kw=ratios,
    )  # fmt: skip
    inches = size[0] / len(panels) - 1.2
    points = (size[1] * (0.72 if below else 1) - 1.15) * 72
    _draw_panels(chosen, panels, grid, inches)
    _name(figure, panels, grid, chosen.layers, max(points, 40.0))
    figure.align_ylabels()
    head(figure, look, chosen.title(whose), (_bands(panels),))
    notes = [note for note in found if note]
    notes += [note for panel in panels for note in panel.lines.notes]
    return figure, tuple(dict.fromkeys((*chosen.notes, *notes)))


def _draw_panels(chosen: FigureRows, panels: Sequence[_Panel], grid: Any, inches: float) -> None:
    every_x = np.concatenate([line.x for panel in panels for line in panel.lines.lines])
    every_y = np.concatenate([_edges(line) for panel in panels for line in panel.lines.lines])
    pens = depth_pens(chosen.layers)
    for column, panel in enumerate(panels):
        axes = grid[0][column]
        scale_x(axes, every_x, inches)
        for line in panel.lines.lines:
            _draw(axes, line, pens[line.layer])
        scale_y(axes, chosen.measure, every_y)
        axes.set_title(shortened(panel.title, max(20, int(inches * 12))))
        axes.tick_params(labelleft=column == 0)
        if len(grid) > 1:
            axes.tick_params(labelbottom=False)
            scale_x(grid[1][column], every_x, inches)
            draw_metrics(grid[1][column], panel.metrics, panel.frame, first=column == 0)
        grid[-1][column].set_xlabel(chosen.x_label)
    grid[0][0].set_ylabel(chosen.y_label)


def _draw(axes: Axes, line: Curve, pen: Pen) -> None:
    drawn = thin(line, positions(axes, line.x))
    if line.is_interval:
        # No line through the middles: they are no estimates.
        half = np.nan_to_num(drawn.spread, posinf=0.0)
        axes.errorbar(
            drawn.x, drawn.y, yerr=half, fmt="none", ecolor=pen.colour, elinewidth=2,
            label=line.layer,
        )  # fmt: skip
        for ends in (drawn.y - half, drawn.y + half):
            marks = pen.of_line(len(drawn.x))
            axes.plot(drawn.x, ends, linestyle="", label="_end", **marks)
        return
    axes.plot(drawn.x, drawn.y, label=line.layer, **pen.of_line(len(drawn.x)))
    if np.nanmax(drawn.spread, initial=0.0) > 0:
        spread = np.nan_to_num(drawn.spread, posinf=0.0)
        low, high = drawn.y - spread, drawn.y + spread
        axes.fill_between(drawn.x, low, high, color=pen.colour, alpha=0.2, linewidth=0)


def _name(
    figure: Figure, panels: Sequence[_Panel], grid: Any, layers: Sequence[str], points: float
) -> None:
    if len(layers) > min(MOST_NAMES, int(points / 10)):
        layer_bar(figure, [axes for row in grid for axes in row], layers)
        return
    pens = depth_pens(layers)
    for panel, axes in zip(panels, grid[0], strict=True):
        ends = {line.layer: (line.x[-1], line.y[-1]) for line in panel.lines.lines}
        name_lines(axes, ends, pens, points)


def _edges(line: Curve) -> Any:
    return np.concatenate(
        [
            line.y - np.nan_to_num(line.spread, posinf=0.0),
            line.y + np.nan_to_num(line.spread, posinf=0.0),
        ]
    )


def _whose(runs: Sequence[str]) -> str:
    return runs[0] if len(runs) == 1 else f"{len(runs)} runs"


def _bands(panels: Sequence[_Panel]) -> str:
    bands = list(dict.fromkeys(panel.lines.band for panel in panels if panel.lines.band))
    if any(line.is_interval for panel in panels for line in panel.lines.lines):
        return ", ".join(bands)
    return f"mean {', '.join(bands)}" if bands else ""


def draw_metrics(axes: Axes, metrics: Sequence[Metric], rows: pd.DataFrame, *, first: bool) -> None:
    """Draw metrics at the steps of the panel above; the first panel carries the label.

    `rows` are those of the panel above, with columns run, step and x; `axes` has its horizontal
    scale.
    """
    for index, metric in enumerate(metrics):
        places = join_metric(metric, rows)
        axes.plot(
            places["x"], places["value"], color=_METRIC_COLOURS[index % 4], marker="o",
            linestyle=_METRIC_STYLES[index % 4], label=meaning(metric.column).label,
            markersize=2.4 if len(places) <= 60 else 0, linewidth=1.2,
        )  # fmt: skip
    axes.margins(y=0.1)
    axes.tick_params(labelleft=first)
    if first and len({metric.column for metric in metrics}) == 1:
        axes.set_ylabel(meaning(metrics[0].column).label)
    elif first:
        axes.legend(fontsize=7.5, loc="best")


def join_metric(metric: Metric, rows: pd.DataFrame) -> pd.DataFrame:
    """Join a metric to rows with columns run, step and x.

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
