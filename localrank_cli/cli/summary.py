"""The table for a person: one row per layer, how its local rank went over the steps."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from localrank_cli.cli.text import printable
from localrank_cli.table.columns import Cell, Row

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
        _short(course.ranks[0]),
        _short(course.ranks[peak]),
        str(course.steps[peak]),
        _short(course.ranks[-1]),
        f"{_short(course.effective[0])} -> {_short(course.effective[-1])}",
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


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 9999.95 else f"{value:.0f}"


def _number(cell: Cell) -> float | None:
    return float(cell) if isinstance(cell, (int, float)) else None
