"""The summary table of an analysis and charts of letters, for terminals and log files."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from localrank_cli.errors import printable
from localrank_cli.results.columns import Cell, Row, pair_names

Points = Sequence[tuple[float, float]]

MOST_LINES = 8  # with more letters a chart is not readable
_LETTERS = "abcdefgh"
_SEVERAL = "*"
_RAMP = " .:-=+*#%@"
_MOST_ROWS = 24  # of shades, so that the chart fits a terminal of the usual height
_MARGIN = 7  # columns for the numbers of the vertical axis, unless they need more
_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = "_.-=+*%#"
_NUMBERS = ("size", "first", "peak", "at step", "last", "eff. rank")
_TREND_WIDTH = 14  # columns for the trend in a terminal of 80 columns
_SHORTEST_TREND = 5  # columns that still show a rise and a fall
_NAME_WIDTH = 20  # columns for a layer's name before the trend gets the rest
_SHORTEST_NAME = 8  # columns that still distinguish most layers


@dataclass(frozen=True)
class Paper:
    """The space and the characters of a chart."""

    width: int = 80
    height: int = 17  # rows 0, 4, 8, 12 and 16 carry a number
    unicode: bool = True


class _Scale:
    """From steps to columns: logarithmic over decades, with zero to the left."""

    def __init__(self, values: Sequence[float], columns: int) -> None:
        positive = [value for value in values if value > 0]
        self._low, self._high = min(values), max(values)
        self._columns = columns
        self.log = bool(positive) and min(values) >= 0 and max(positive) / min(positive) >= 100
        self._beside = max(3, columns // 10) if self.log and 0 in values else 0
        self._least = min(positive, default=1.0)

    def column(self, value: float) -> int:
        """Return the column of a step, counted from 0."""
        if self._high == self._low:
            return self._columns // 2
        if not self.log:
            share = (value - self._low) / (self._high - self._low)
            return round(share * (self._columns - 1))
        if value <= 0:
            return 0
        share = math.log(value / self._least) / math.log(self._high / self._least)
        return self._beside + round(share * (self._columns - 1 - self._beside))

    def ticks(self) -> list[float]:
        """Return the steps to label on the axis."""
        if self._high == self._low:
            return [self._low]
        if not self.log:
            return [self._low, (self._low + self._high) / 2, self._high]
        first = math.ceil(math.log10(self._least) - 1e-9)
        last = math.floor(math.log10(self._high) + 1e-9)
        zero = [0.0] if self._beside else []
        return zero + [10.0**exponent for exponent in range(first, last + 1)]


def line_chart(lines: Mapping[str, Points], paper: Paper) -> list[str]:
    """Draw a letter for each layer at its checkpoints, with dots between them.

    `lines` holds step and value by layer: at most `MOST_LINES` layers, no negative values. The text
    ends with the axis and the names.
    """
    top = max((y for points in lines.values() for _, y in points), default=0.0) or 1.0
    marks = {round(share * (paper.height - 1)): (1 - share) * top for share in (0, 0.25, 0.5, 0.75)}
    marks[paper.height - 1] = 0.0
    margin = max(_MARGIN - 1, *(len(_short(mark)) for mark in marks.values()))
    columns = max(20, paper.width - margin - 2)
    scale = _Scale([x for points in lines.values() for x, _ in points], columns)
    cells = [[" "] * columns for _ in range(paper.height)]
    dot = "·" if paper.unicode else "."
    places = {
        name: [(scale.column(x), (1 - y / top) * (paper.height - 1)) for x, y in points]
        for name, points in lines.items()
    }
    for points in places.values():
        for (left, high), (right, low) in pairwise(points):
            for column in range(left, right + 1):
                share = (column - left) / (right - left) if right > left else 0.0
                cells[round(high + share * (low - high))][column] = dot
    for letter, points in zip(_LETTERS, places.values(), strict=False):
        for column, row in points:
            taken = cells[round(row)][column]
            free = taken in {" ", dot, letter}
            cells[round(row)][column] = letter if free else _SEVERAL
    names = [f"{letter} {name}" for letter, name in zip(_LETTERS, lines, strict=False)]
    if any(_SEVERAL in row for row in cells):
        names.append(f"{_SEVERAL} several")
    drawn = [
        _row(f"{_short(marks[index])}" if index in marks else "", row, paper, margin)
        for index, row in enumerate(cells)
    ]
    return [*drawn, *_axis(scale, columns, paper, margin), *_wrap(names, paper.width)]


def shade_chart(lines: Mapping[str, Points], paper: Paper) -> list[str]:
    """Draw a row for each layer, darker letters for larger values: for many layers.

    `lines` holds step and value by layer, no negative values.
    """
    names = list(lines)
    if len(names) > _MOST_ROWS:
        shown = {round(i * (len(names) - 1) / (_MOST_ROWS - 1)) for i in range(_MOST_ROWS)}
        names = [names[index] for index in sorted(shown)]
    margin = min(max(map(len, names)), 24)
    columns = max(20, paper.width - margin - 2)
    top = max((y for points in lines.values() for _, y in points), default=0.0) or 1.0
    scale = _Scale([x for points in lines.values() for x, _ in points], columns)
    drawn = []
    for name in names:
        row = [" "] * columns
        points = [(scale.column(x), y) for x, y in lines[name]]
        ends = [column for column, _ in points[1:]] + [columns]
        for (column, y), end in zip(points, ends, strict=True):
            letter = _RAMP[min(len(_RAMP) - 1, math.ceil(y / top * (len(_RAMP) - 1)))]
            row[column : max(end, column + 1)] = letter * max(end - column, 1)
        label = name if len(name) <= margin else name[: margin - 9] + "~" + name[-8:]
        drawn.append(_row(label, row, paper, margin))
    legend = [f"'{_RAMP[0]}' 0 to '{_RAMP[-1]}' {_short(top)}"]
    if len(names) < len(lines):
        legend.append(f"{len(names)} of {len(lines)} layers")
    return [*drawn, *_axis(scale, columns, paper, margin), *_wrap(legend, paper.width)]


def _row(label: str, cells: Sequence[str], paper: Paper, margin: int) -> str:
    bar = "│" if paper.unicode else "|"
    return f"{label:>{margin}} {bar}{''.join(cells)}".rstrip()


def _axis(scale: _Scale, columns: int, paper: Paper, margin: int) -> list[str]:
    rule, corner, tick = ("─", "└", "┬") if paper.unicode else ("-", "+", "+")
    line, texts = [rule] * columns, [" "] * columns
    free = 0
    for value in scale.ticks():
        column = scale.column(value)
        line[column] = tick
        text = f"{value:g}"
        start = min(max(0, column - len(text) // 2), columns - len(text))
        if start >= free:
            texts[start : start + len(text)] = text
            free = start + len(text) + 1
    indent = " " * (margin + 1)
    unit = "step" + (" (log)" if scale.log else "")
    below = f"{indent} {''.join(texts)}".rstrip()
    return [f"{indent}{corner}{''.join(line)}", below, f"{indent} {unit:^{columns}}".rstrip()]


def _wrap(parts: Sequence[str], width: int) -> list[str]:
    lines = [""]
    for part in parts:
        if lines[-1] and len(lines[-1]) + 3 + len(part) > width:
            lines.append("")
        lines[-1] += ("   " if lines[-1] else "") + part
    return lines


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


@dataclass
class _Trajectory:
    """The numbers of one layer over the steps."""

    size: str
    steps: list[int] = field(default_factory=list)
    ranks: list[float] = field(default_factory=list)
    effective: list[float | None] = field(default_factory=list)
    bounds: list[tuple[float, float]] = field(
        default_factory=list
    )  # of intervals, in place of ranks
    n_points: int = 0


class Summary:
    """Collect rows and print a table; keep only a few numbers of each row."""

    def __init__(self) -> None:
        self._layers: dict[tuple[str, str], dict[str, _Trajectory]] = {}

    def add(self, rows: Iterable[Row]) -> None:
        """Add the rows of one checkpoint, in order."""
        every = list(rows)
        pairs = [(str(row["layer"]), str(row.get("wrt") or "")) for row in every]
        names = pair_names(pairs)
        for row, pair in zip(every, pairs, strict=True):
            run = printable(str(row["run"]))
            layers = self._layers.setdefault((run, printable(str(row["tolerance"]))), {})
            trajectory = layers.setdefault(
                printable(names[pair]), _Trajectory(f"{row['n_out']} x {row['n_in']}")
            )
            rank, effective = _number(row["local_rank"]), _number(row["effective_rank"])
            if rank is None:
                low, high = _number(row.get("rank_low")), _number(row.get("rank_high"))
                if low is None or high is None or row.get("status", "ok") != "ok":
                    continue
                trajectory.bounds.append((low, high))
            else:
                trajectory.ranks.append(rank)
                trajectory.effective.append(effective)
            trajectory.steps.append(int(_number(row["step"]) or 0))
            trajectory.n_points = int(_number(row["n_points"]) or 0)

    def show(self, console: Console) -> None:
        """Print one table for each run and tolerance."""
        for (run, tolerance), layers in self._layers.items():
            steps = sorted({step for trajectory in layers.values() for step in trajectory.steps})
            points = max((trajectory.n_points for trajectory in layers.values()), default=0)
            span = f"step {steps[0]}" if steps else "no finite step"
            if len(steps) > 1:
                span = f"steps {steps[0]} to {steps[-1]}"
            has_bounds = any(trajectory.bounds for trajectory in layers.values())
            what = "bounds on the local rank" if has_bounds else "local rank"
            title = f"{run}: {what} at {tolerance} ({points} points, {span})"
            console.print(Text(title, style="bold"), soft_wrap=True)
            (_show_bounds if has_bounds else _show)(layers, console)


def _show_bounds(layers: dict[str, _Trajectory], console: Console) -> None:
    """Print the bounds at the first and the last step, and the widest of all."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("layer", overflow="fold")
    for name in ("size", "first", "last", "widest"):
        table.add_column(name, justify="right", no_wrap=True)
    for layer, trajectory in layers.items():
        # A table may hold exact ranks, too.
        every = trajectory.bounds or [(rank, rank) for rank in trajectory.ranks]
        widest = max((high - low for low, high in every), default=None)
        ends = [_bounds_text(every[0]), _bounds_text(every[-1])] if every else ["-", "-"]
        last = "not finite" if widest is None else _rank_text(widest)
        table.add_row(*(Text(cell) for cell in (layer, trajectory.size, *ends, last)))
    console.print(table)


def _bounds_text(bounds: tuple[float, float]) -> str:
    """Return bounds with one digit, rounded outward; digits of noise do not count."""
    low, high = math.floor(bounds[0] * 10 + 1e-6) / 10, math.ceil(bounds[1] * 10 - 1e-6) / 10
    return f"{_rank_text(low)}..{_rank_text(high)}"


def _show(layers: dict[str, _Trajectory], console: Console) -> None:
    rows = [_cells(trajectory) for trajectory in layers.values()]
    numbers = [
        max(len(name), *(len(row[index]) for row in rows)) for index, name in enumerate(_NUMBERS)
    ]
    between = len(numbers) + 1
    longest = max(len("layer"), *(cell_len(layer) for layer in layers))
    # Numbers are never cut: on a narrow terminal the trend shrinks first, then the names.
    free = max(console.width - sum(numbers) - between, _SHORTEST_TREND + _SHORTEST_NAME)
    steps = min(_TREND_WIDTH, max(len(trajectory.ranks) for trajectory in layers.values()))
    trend_width = max(_SHORTEST_TREND, min(steps, free - min(longest, _NAME_WIDTH)))
    name_width = min(longest, free - trend_width)
    characters = _BLOCKS if is_unicode(console) else _ASCII_BLOCKS

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0, show_edge=False)
    table.add_column("layer", no_wrap=True, width=name_width)
    for name, width in zip(_NUMBERS[:-1], numbers[:-1], strict=True):
        table.add_column(name, justify="right", no_wrap=True, width=width)
    table.add_column("trend", no_wrap=True, width=trend_width)
    table.add_column(_NUMBERS[-1], justify="right", no_wrap=True, width=numbers[-1])
    for (layer, trajectory), row in zip(layers.items(), rows, strict=True):
        line = trend(trajectory.ranks, characters, trend_width) if trajectory.ranks else ""
        cells = [_shorten(layer, name_width, console), *row[:-1], line, row[-1]]
        table.add_row(*(Text(cell) for cell in cells))
    # On an even narrower terminal, lines wrap so that every number is shown.
    terminal = console.width
    console.width = max(terminal, name_width + trend_width + sum(numbers) + between)
    console.print(table)
    console.width = terminal


def _cells(trajectory: _Trajectory) -> list[str]:
    if not trajectory.ranks:
        return [trajectory.size, "-", "-", "-", "-", "not finite"]
    peak = max(range(len(trajectory.ranks)), key=trajectory.ranks.__getitem__)
    return [
        trajectory.size,
        _rank_text(trajectory.ranks[0]),
        _rank_text(trajectory.ranks[peak]),
        str(trajectory.steps[peak]),
        _rank_text(trajectory.ranks[-1]),
        _ends(trajectory.effective[0], trajectory.effective[-1]),
    ]


def _ends(first: float | None, last: float | None) -> str:
    if first is None or last is None:
        return "-"  # not computed: --measures counts
    return f"{_rank_text(first)} -> {_rank_text(last)}"


def _shorten(name: str, width: int, console: Console) -> str:
    """Cut a name in the middle: its end identifies the layer, its beginning the place."""
    if cell_len(name) <= width:
        return name
    mark = "…" if is_unicode(console) else "~"
    head = (width - 1) // 3
    return name[:head] + mark + name[len(name) - (width - 1 - head) :]


def trend(values: Sequence[float], characters: str = _BLOCKS, width: int = _TREND_WIDTH) -> str:
    """Draw nonnegative values as a line of at most `width` blocks, the lowest for 0.

    The first and last value are always shown; if there are too many others, a character shows the
    largest of its share, so that the peak is always visible. Infinite values, which only a table
    edited by hand has, are drawn as the largest finite one.
    """
    picked = list(values)
    if len(values) > width:
        inner, shares = values[1:-1], width - 2
        edges = [round(index * len(inner) / shares) for index in range(shares + 1)]
        peaks = [max(inner[low:high]) for low, high in pairwise(edges)]
        picked = [values[0], *peaks, values[-1]]
    top = max(filter(math.isfinite, values), default=0.0)
    levels = len(characters) - 1
    return "".join(
        characters[round(min(value, top) / top * levels) if top > 0 else 0] for value in picked
    )


def is_unicode(console: Console) -> bool:
    """Return whether the console can show characters beyond ASCII."""
    return console.encoding.lower().startswith("utf")


def _rank_text(value: float) -> str:
    return f"{value:.1f}" if value < 9999.95 else f"{value:.0f}"


def _number(cell: Cell) -> float | None:
    return float(cell) if isinstance(cell, (int, float)) and math.isfinite(cell) else None
