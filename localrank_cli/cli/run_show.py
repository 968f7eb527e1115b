"""The work of `show`: from a table to text on stdout."""

import numpy as np
import pandas as pd
from rich.console import Console
from rich.text import Text

from localrank_cli.cli.chart import MOST_LINES, Paper, Summary, is_unicode, line_chart, shade_chart
from localrank_cli.cli.screen import Screen
from localrank_cli.errors import DataError, Note, printable
from localrank_cli.options.views import ShowOptions
from localrank_cli.results.choose import layers_by_depth, matching, need_numbers, of_one
from localrank_cli.results.columns import meaning
from localrank_cli.results.read import NEEDED, read_table, without_failed

_BOUNDS = ("rank_low", "rank_high", "status")
_SUMMARY = ("local_rank", "effective_rank", "n_in", "n_out", "n_points")


def run_show(options: ShowOptions) -> None:
    """Print the summary and a chart for each run and tolerance."""
    screen, y = Screen(quiet=options.quiet, verbose=False), options.y
    frame = read_table(options.table, (*NEEDED, *_SUMMARY))
    need_numbers(frame, "--y", y)
    if options.tolerance is not None:
        frame = of_one(frame, "tolerance", options.tolerance, "--tolerance")
    whole, note = without_failed(frame)
    if note:
        screen.note(note)
    frame = frame[frame["layer"].isin(matching(layers_by_depth(whole), options.layers))]
    frame = frame.sort_values(["run", "step", "layer_index"], kind="stable")
    console = Console(highlight=False)
    for _, part in frame.groupby(["run", "tolerance"], sort=False):
        summary = Summary()
        summary.add(_rows(part))
        summary.show(console)
        if options.chart is not False:
            _chart(part, y, console, screen.note)


def _rows(frame: pd.DataFrame) -> list[dict[str, str | int | float | None]]:
    bounds = [name for name in _BOUNDS if name in frame.columns]
    named = frame[[*NEEDED, *_SUMMARY, *bounds]].astype(object)
    records: list[dict[str, str | int | float | None]] = []
    for record in named.where(named.notna(), None).to_dict("records"):
        sizes = {name: int(record[name]) for name in ("n_in", "n_out") if record[name] is not None}
        records.append({str(key): value for key, value in record.items()} | sizes)
    return records


def _chart(part: pd.DataFrame, y: str, console: Console, note: Note) -> None:
    if "status" in part.columns:
        part = part[part["status"] == "ok"]
    part = part[part[y].notna()]
    infinite = np.isinf(part[y].astype("float64"))
    if infinite.any():
        note(f"the chart leaves out infinite values of {y}: {int(infinite.sum())}")
        part = part[~infinite]
    if part.empty:
        return
    if (part[y] < 0).any():
        raise DataError(
            f"--y {y}: has negative values, which the chart cannot show.",
            "Choose another column, or draw it with localrank plot.",
        )
    lines = {
        printable(layer): [
            (float(step), float(value)) for step, value in zip(rows["step"], rows[y], strict=True)
        ]
        for layer in layers_by_depth(part)
        for rows in [part[part["layer"] == layer]]
    }
    measure = meaning(y)
    at = f" at {part['tolerance'].iloc[0]}" if measure.uses_tolerance else ""
    paper = Paper(width=max(40, min(console.width, 120)), unicode=is_unicode(console))
    draw = line_chart if len(lines) <= MOST_LINES else shade_chart
    text = ["", printable(f"{measure.label}{at}"), *draw(lines, paper), ""]
    for line in text:
        console.print(Text(line), soft_wrap=True)
