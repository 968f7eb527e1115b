"""The work of `report`: from tables to a file with a page."""

from pathlib import Path

import pandas as pd

from localrank_cli.cli.screen import Screen
from localrank_cli.cli.signals import signal_handler
from localrank_cli.options.views import ReportOptions
from localrank_cli.report.data import Json, page_data, slider_data
from localrank_cli.report.page import render
from localrank_cli.results.choose import of_one
from localrank_cli.results.kept import SpectraFile
from localrank_cli.results.manifest import model_of, read_manifest
from localrank_cli.results.read import read_tables, without_failed
from localrank_cli.results.write import check_replaceable, write_bytes


def run_report(options: ReportOptions, target: Path) -> None:
    """Render the page and write it."""
    from localrank_cli import __version__

    tables = options.tables
    screen = Screen(quiet=options.quiet, verbose=False)
    check_replaceable(target)
    with signal_handler() as handler:
        with handler.interruptible():
            frame = of_one(
                read_tables(tables), "input_metric", options.input_metric, "--input-metric"
            )
            frame, note = without_failed(frame)
            data, notes = page_data(frame)
            doubts: tuple[str, ...] = ()
            if options.spectra is not None:
                kept = SpectraFile(options.spectra)
                data["spectra"], doubts = slider_data(kept, _steps(data), frame)
            manifest = read_manifest(tables[0]) if len(tables) == 1 else None
            names = ", ".join(table.name for table in tables)
            content = render(
                data,
                options.title or f"{_runs(data)}: local rank of each layer",
                " · ".join(filter(None, (model_of(manifest), _points(frame), note, *doubts))),
                manifest,
                f"Made from {names} by localrank {__version__}.",
            ).encode("utf-8", errors="backslashreplace")
        write_bytes(target, content)
    for text in (note, *notes, *doubts):
        if text:
            screen.note(text)
    kilobytes = len(content) / 1e3
    size = f"{kilobytes:.0f} kB" if kilobytes < 1e3 else f"{kilobytes / 1e3:.1f} MB"
    screen.note(f"wrote {target} ({size})")


def _steps(data: Json) -> dict[str, list[int]]:
    return {
        run["name"]: sorted({step for layer in run["layers"] for step in layer["steps"]})
        for run in data["runs"]
    }


def _runs(data: Json) -> str:
    names = [run["name"] for run in data["runs"]]
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} runs"


def _points(frame: pd.DataFrame) -> str:
    if "n_points" not in frame.columns or frame["n_points"].isna().all():
        return ""
    low, high = int(frame["n_points"].min()), int(frame["n_points"].max())
    return f"mean over {low if low == high else f'{low} to {high}'} points"
