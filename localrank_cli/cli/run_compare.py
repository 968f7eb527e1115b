"""The work of `compare`: from tables to differences, onsets and a figure."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from localrank_cli.cli.run_plot import warnings_as_notes
from localrank_cli.cli.screen import Screen, stdout_for_data
from localrank_cli.cli.signals import signal_handler
from localrank_cli.compare.differences import Difference, differences
from localrank_cli.compare.groups import Choice, Group, Groups, find_groups
from localrank_cli.compare.intervals import most_to_bootstrap
from localrank_cli.compare.onset import RANGE, Onset, onsets
from localrank_cli.compare.rows import (
    DIFFERENCE_COLUMNS,
    ONSET_COLUMNS,
    difference_rows,
    onset_rows,
)
from localrank_cli.errors import OutputError, UsageError, listed, printable
from localrank_cli.options.views import CompareOptions
from localrank_cli.plotting import load_figures
from localrank_cli.results.read import read_tables
from localrank_cli.results.write import (
    RowWriter,
    check_replaceable,
    real_target,
    write_bytes,
    write_rows,
)

_STDOUT = Path("-")


def run_compare(options: CompareOptions) -> None:
    """Compare groups of runs, and print or write the result."""
    screen = Screen(quiet=options.quiet, verbose=False)
    files = [file for file in (options.output, options.onsets, options.figure) if file is not None]
    files = [file for file in files if file != _STDOUT]
    _check_files(options, files)
    with signal_handler() as handler, handler.interruptible(), stdout_for_data(screen) as data:
        with warnings_as_notes(screen):
            groups = find_groups(read_tables(options.tables), _choice(options))
            found = list(differences(groups, options.confidence, options.seed))
            falls = list(onsets(groups, options.confidence, options.seed))
            figure = _figure(options, groups, found, falls)
        for note in (*groups.notes, *_notes(groups, found, options.confidence)):
            screen.note(note)
        _write_rows(options, groups, found, falls)
        if options.figure is not None and figure is not None:
            write_bytes(options.figure, figure)
        _print_results(options, data, groups, found, falls)
    for file in files:
        screen.note(f"wrote {file}")


def _check_files(options: CompareOptions, files: Sequence[Path]) -> None:
    """Check, before any work, that files can be written, and that no other is lost by it."""
    real = [real_target(file) for file in files]
    for file, target in zip(files, real, strict=True):
        check_replaceable(file)
        if any(table.exists() and target == real_target(table) for table in options.tables):
            raise UsageError(f"{file}: is one of the tables to compare.", "Name another file.")
        if real.count(target) > 1:
            raise UsageError(f"{file}: is named twice.", "Name two files.")
        if file != options.figure and target.exists() and not options.overwrite:
            raise OutputError(
                f"{file}: already exists.", "Name another file, or replace it with --overwrite."
            )


def _write_rows(
    options: CompareOptions, groups: Groups, found: Sequence[Difference], falls: Sequence[Onset]
) -> None:
    if options.output is not None and options.output != _STDOUT:
        rows = difference_rows(groups, found, options.confidence)
        write_rows(real_target(options.output), rows, DIFFERENCE_COLUMNS)
    if options.onsets is not None:
        lines = onset_rows(groups, falls, options.confidence)
        write_rows(real_target(options.onsets), lines, ONSET_COLUMNS)


def _print_results(
    options: CompareOptions,
    data: TextIO,
    groups: Groups,
    found: Sequence[Difference],
    falls: Sequence[Onset],
) -> None:
    if options.output == _STDOUT or (options.output is None and not data.isatty()):
        rows = difference_rows(groups, found, options.confidence)
        RowWriter(data, DIFFERENCE_COLUMNS).write(rows)
    elif data.isatty():
        _print(Console(file=data, highlight=False), groups, found, falls, options.confidence)


def _choice(options: CompareOptions) -> Choice:
    return Choice(
        options.y, options.layers, options.tolerance, options.input_metric, options.by,
        options.reference, options.pair,
    )  # fmt: skip


def _figure(
    options: CompareOptions,
    groups: Groups,
    found: Sequence[Difference],
    falls: Sequence[Onset],
) -> bytes | None:
    if options.figure is None:
        return None
    figures = load_figures()
    with figures.styled(None):
        figure = figures.differences(groups, found, falls, options.confidence)
        content: bytes = figures.saved(figure, options.figure.suffix.lower())
    return content


def _notes(groups: Groups, found: Sequence[Difference], confidence: float) -> list[str]:
    notes = []
    if any(one.is_over_points for one in found):
        notes.append(
            "there is only one run in each group, so intervals are over its points: they say"
            " nothing about other seeds"
        )
    elif groups.groups[0].keys:
        keys = [str(key) for key in groups.groups[0].keys]
        notes.append(f"the runs are paired: {listed(keys, 6)}")
    short = [group.name for group in groups.groups if 1 < len(group.runs) < 5]
    if short and len(groups.steps) > 1:
        notes.append(
            f"with fewer than 5 runs, the onset is the step from which every run is below its first"
            f" value: {listed(short, 6)}"
        )
    notes += _notes_on_counts(groups, found, confidence)
    empty = sum(int(np.isnan(one.cells.estimate).sum()) for one in found)
    if empty:
        notes.append(
            f"{empty} (layer, step) pairs have no difference, because a run has no value there"
        )
    return notes


def _notes_on_counts(groups: Groups, found: Sequence[Difference], confidence: float) -> list[str]:
    """Return what the numbers of runs and cells make of the intervals."""
    notes = []
    for one in found:
        if one.is_unequal:
            fewer, more = sorted((one.reference, one.group), key=lambda group: len(group.runs))
            notes.append(
                f"{fewer.name} has {len(fewer.runs)} runs and {more.name} has {len(more.runs)}: the"
                " intervals of single layers and steps may be too narrow, and the joint intervals"
                f" use {len(fewer.runs) - 1} degrees of freedom"
            )
    cells = len(groups.layers) * len(groups.steps)
    most = most_to_bootstrap(confidence)
    if cells > most and any("bootstrap" in one.over for one in found):
        notes.append(
            f"{cells} layers and steps are more than the {most} that the bootstrap can judge"
            " together, so none counts as different: choose some with --layers"
        )
    return notes


def _print(
    console: Console,
    groups: Groups,
    found: Sequence[Difference],
    falls: Sequence[Onset],
    confidence: float,
) -> None:
    for one in found:
        _print_difference(console, groups, one, confidence)
    if falls:
        _print_onsets(console, groups, falls, confidence)


def _print_difference(console: Console, groups: Groups, one: Difference, confidence: float) -> None:
    how = f"{100 * confidence:.4g} % intervals over {one.over}"
    title = (
        f"{groups.label}, step {groups.steps[-1]}: {one.group.name} minus {one.reference.name}"
        f" ({_count(one.group)} and {_count(one.reference)}; {how})"
    )
    table = _table(("layer", "reference", "group", "difference", "interval", "p (Holm)", "differ"))
    means = [group.ranks.mean(0)[:, -1] for group in (one.reference, one.group)]
    last = {name: one.grid(name)[:, -1] for name in ("estimate", "low", "high", "p_holm")}
    with np.errstate(invalid="ignore"):
        differ = (one.grid("p_holm") <= 1 - confidence).sum(1)
    for index, layer in enumerate(groups.layers):
        _add(
            table,
            layer,
            _number(means[0][index]),
            _number(means[1][index]),
            _number(last["estimate"][index], sign=True),
            _interval(last["low"][index], last["high"][index]),
            _p(last["p_holm"][index]),
            f"{differ[index]}/{len(groups.steps)} steps",
        )
    _print_table(console, title, table)


def _count(group: Group) -> str:
    return "1 run" if len(group.runs) == 1 else f"{len(group.runs)} runs"


def _print_onsets(
    console: Console, groups: Groups, falls: Sequence[Onset], confidence: float
) -> None:
    first, last = groups.steps[0], groups.steps[-1]
    for name in dict.fromkeys(fall.group for fall in falls):
        rows = [fall for fall in falls if fall.group == name]
        over = rows[0].over
        how = over if over == RANGE else f"{100 * confidence:.4g} % intervals over {over}"
        onset = f"onset (stays below its value at step {first})"
        title = f"{name}: {onset}, and fall to step {last} ({how})"
        table = _table(
            (
                "layer",
                f"step {first}",
                f"step {last}",
                "fall",
                "range" if over == RANGE else "interval",
                "onset",
                "peak",
            )
        )
        for one in rows:
            _add(
                table,
                one.layer,
                _number(one.first),
                _number(one.last),
                _number(one.fall, sign=True),
                _interval(one.fall_low, one.fall_high),
                _onset(one),
                "-" if one.peak_step is None else f"{_number(one.peak)} at {one.peak_step}",
            )
        _print_table(console, title, table)


def _onset(one: Onset) -> str:
    if one.step is not None:
        return str(one.step)
    # Without the first or last value nothing is known of a fall.
    return "-" if math.isnan(one.fall) else "none"


def _table(names: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, name in enumerate(names):
        header = Text(printable(name))
        # Numbers are never cut: on a narrow terminal the names of layers are folded.
        table.add_column(
            header, justify="right" if index else "left", no_wrap=index > 0, overflow="fold"
        )
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*(Text(printable(cell)) for cell in cells))


def _print_table(console: Console, title: str, table: Table) -> None:
    console.print(Text(printable(title), style="bold"), soft_wrap=True)
    console.print(table)
    console.print()


def _number(value: float, *, sign: bool = False) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:+.4g}" if sign and value else f"{value:.4g}"


def _interval(low: float, high: float) -> str:
    # Values without any spread have no interval.
    # The sign of -0 is dropped.
    return "-" if math.isnan(low) else f"{low + 0.0:.3g} to {high + 0.0:.3g}"


def _p(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"
