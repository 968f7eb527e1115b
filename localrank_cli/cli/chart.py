"""Charts of letters for terminals and log files: no colour, plain ASCII where nothing else goes."""

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
from localrank_cli.results.columns import Cell, Row

Points = Sequence[tuple[float, float]]

MOST_LINES = 8  # more letters cannot be told apart
_LETTERS = "abcdefgh"
_SEVERAL = "*"
_RAMP = " .:-=+*#%@"
_MOST_ROWS = 24
_MARGIN = 7


@dataclass(frozen=True)
class Paper:
    """What a chart may use.

    Args:
        width: Columns in all.
        height: Rows of the drawing.
        unicode: Whether more than ASCII is shown.
    """

    width: int = 80
    height: int = 17  # four equal parts between rows
    unicode: bool = True


class _Scale:
    """From steps to columns; decades are log, and zero stands to the left of them."""

    def __init__(self, values: Sequence[float], columns: int) -> None:
        positive = [value for value in values if value > 0]
        self._low, self._high = min(values), max(values)
        self._columns = columns
        self.log = bool(positive) and min(values) >= 0 and max(positive) / min(positive) >= 100
        self._beside = max(3, columns // 10) if self.log and 0 in values else 0
        self._least = min(positive, default=1.0)

    def column(self, value: float) -> int:
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
        if self._high == self._low:
            return [self._low]
        if not self.log:
            return [self._low, (self._low + self._high) / 2, self._high]
        first = math.ceil(math.log10(self._least) - 1e-9)
        last = math.floor(math.log10(self._high) + 1e-9)
        zero = [0.0] if self._beside else []
        return zero + [10.0**exponent for exponent in range(first, last + 1)]


def line_chart(lines: Mapping[str, Points], paper: Paper) -> list[str]:
    """One letter for each layer at its checkpoints, dots between them.

    Args:
        lines: Step and value, by layer; at most `MOST_LINES`, values not negative.
        paper: What the chart may use.

    Returns:
        The lines of text: drawing, axis, names.
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
    return [*drawn, *_axis(scale, columns, paper, margin), *_wrapped(names, paper.width)]


def shade_chart(lines: Mapping[str, Points], paper: Paper) -> list[str]:
    """A row for each layer, darker letters for larger values: for many layers.

    Args:
        lines: Step and value, by layer; values not negative.
        paper: What the chart may use.

    Returns:
        The lines of text: drawing, axis, what the letters mean.
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
    said = [f"'{_RAMP[0]}' 0 to '{_RAMP[-1]}' {_short(top)}"]
    if len(names) < len(lines):
        said.append(f"{len(names)} of {len(lines)} layers")
    return [*drawn, *_axis(scale, columns, paper, margin), *_wrapped(said, paper.width)]


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


def _wrapped(parts: Sequence[str], width: int) -> list[str]:
    lines = [""]
    for part in parts:
        if lines[-1] and len(lines[-1]) + 3 + len(part) > width:
            lines.append("")
        lines[-1] += ("   " if lines[-1] else "") + part
    return lines


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII = "_.-=+*%#"
_NUMBERS = ("size", "first", "peak", "at step", "last", "eff. rank")
_TREND_WIDTH, _TREND_LEAST = 14, 5
_NAME_ENOUGH, _NAME_LEAST = 20, 8


@dataclass
class _Course:
    """One layer over the steps."""

    size: str
    steps: list[int] = field(default_factory=list)
    ranks: list[float] = field(default_factory=list)
    effective: list[float] = field(default_factory=list)
    n_points: int = 0


class Summary:
    """Collects rows and draws the table; holds a few numbers of each row only."""

    def __init__(self) -> None:
        self._courses: dict[tuple[str, str], dict[str, _Course]] = {}

    def add(self, rows: Iterable[Row]) -> None:
        """Takes the rows of one checkpoint.

        Args:
            rows: In order.
        """
        for row in rows:
            run = printable(str(row["run"]))
            layers = self._courses.setdefault((run, printable(str(row["tolerance"]))), {})
            course = layers.setdefault(
                printable(str(row["layer"])), _Course(f"{row['n_out']} x {row['n_in']}")
            )
            rank, effective = _number(row["local_rank"]), _number(row["effective_rank"])
            if rank is None or effective is None:
                continue
            course.steps.append(int(_number(row["step"]) or 0))
            course.ranks.append(rank)
            course.effective.append(effective)
            course.n_points = int(_number(row["n_points"]) or 0)

    def show(self, console: Console) -> None:
        """Draws one table for each run and tolerance.

        Args:
            console: Where to.
        """
        for (run, tolerance), layers in self._courses.items():
            steps = sorted({step for course in layers.values() for step in course.steps})
            points = max((course.n_points for course in layers.values()), default=0)
            span = f"step {steps[0]}" if steps else "no finite step"
            if len(steps) > 1:
                span = f"steps {steps[0]} to {steps[-1]}"
            title = f"{run}: local rank at {tolerance} ({points} points, {span})"
            console.print(Text(title, style="bold"), soft_wrap=True)
            _show(layers, console)


def _show(layers: dict[str, _Course], console: Console) -> None:
    rows = [_cells(course) for course in layers.values()]
    numbers = [
        max(len(name), *(len(row[index]) for row in rows)) for index, name in enumerate(_NUMBERS)
    ]
    between = len(numbers) + 1
    longest = max(len("layer"), *(cell_len(layer) for layer in layers))
    # Numbers are never cut: the trend gives way first, then the names.
    free = max(console.width - sum(numbers) - between, _TREND_LEAST + _NAME_LEAST)
    steps = min(_TREND_WIDTH, max(len(course.ranks) for course in layers.values()))
    trend_width = max(_TREND_LEAST, min(steps, free - min(longest, _NAME_ENOUGH)))
    name_width = min(longest, free - trend_width)
    characters = _trend_characters(console)

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0, show_edge=False)
    table.add_column("layer", no_wrap=True, width=name_width)
    for name, width in zip(_NUMBERS[:-1], numbers[:-1], strict=True):
        table.add_column(name, justify="right", no_wrap=True, width=width)
    table.add_column("trend", no_wrap=True, width=trend_width)
    table.add_column(_NUMBERS[-1], justify="right", no_wrap=True, width=numbers[-1])
    for (layer, course), row in zip(layers.items(), rows, strict=True):
        line = trend(course.ranks, characters, trend_width) if course.ranks else ""
        cells = [_shortened(layer, name_width, console), *row[:-1], line, row[-1]]
        table.add_row(*(Text(cell) for cell in cells))
    # On a narrower terminal the lines run over, and every number is there.
    terminal = console.width
    console.width = max(terminal, name_width + trend_width + sum(numbers) + between)
    console.print(table)
    console.width = terminal


def _cells(course: _Course) -> list[str]:
    if not course.ranks:
        return [course.size, "-", "-", "-", "-", "not finite"]
    peak = max(range(len(course.ranks)), key=course.ranks.__getitem__)
    return [
        course.size,
        _rank_text(course.ranks[0]),
        _rank_text(course.ranks[peak]),
        str(course.steps[peak]),
        _rank_text(course.ranks[-1]),
        f"{_rank_text(course.effective[0])} -> {_rank_text(course.effective[-1])}",
    ]


def _shortened(name: str, width: int, console: Console) -> str:
    """Cuts a name in the middle: its end tells layers apart, its beginning where they are."""
    if cell_len(name) <= width:
        return name
    mark = "…" if console.encoding.lower().startswith("utf") else "~"
    head = (width - 1) // 3
    return name[:head] + mark + name[len(name) - (width - 1 - head) :]


def trend(values: Sequence[float], characters: str = _BLOCKS, width: int = _TREND_WIDTH) -> str:
    """Draws values as a line of blocks, the lowest for 0, the highest for the largest.

    Args:
        values: At least one, not negative. Where there are too many, a character stands for the
            largest of its share, so that the peak is always seen.
        characters: From low to high.
        width: At most so many characters.

    Returns:
        At most `width` characters; the first and the last value are always there.
    """
    picked = list(values)
    if len(values) > width:
        inner, shares = values[1:-1], width - 2
        edges = [round(index * len(inner) / shares) for index in range(shares + 1)]
        peaks = [max(inner[low:high]) for low, high in pairwise(edges)]
        picked = [values[0], *peaks, values[-1]]
    top = max(values)
    levels = len(characters) - 1
    return "".join(characters[round(value / top * levels) if top > 0 else 0] for value in picked)


def _trend_characters(console: Console) -> str:
    return _BLOCKS if console.encoding.lower().startswith("utf") else _ASCII


def _rank_text(value: float) -> str:
    return f"{value:.1f}" if value < 9999.95 else f"{value:.0f}"


def _number(cell: Cell) -> float | None:
    return float(cell) if isinstance(cell, (int, float)) else None
