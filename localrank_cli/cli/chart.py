"""Charts of letters for terminals and log files: no colour, plain ASCII where nothing else goes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

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
