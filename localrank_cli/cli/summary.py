"""The table for a person: one row per layer, how its local rank went over the steps."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from localrank_cli.table.columns import Cell, Row

_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII = "_.-=+*%#"
_TREND_WIDTH = 14


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
            layers = self._courses.setdefault((str(row["run"]), str(row["tolerance"])), {})
            course = layers.setdefault(
                str(row["layer"]), _Course(f"{row['n_out']} x {row['n_in']}")
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
            console.print(_table(layers, _trend_characters(console)))


def _table(layers: dict[str, _Course], characters: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0, show_edge=False)
    table.add_column("layer", overflow="ellipsis", no_wrap=True, min_width=5)
    table.add_column("size", justify="right", no_wrap=True)
    for name in ("first", "peak", "at step", "last"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("trend", no_wrap=True)
    table.add_column("eff. rank", justify="right", no_wrap=True)
    for layer, course in layers.items():
        table.add_row(Text(layer), *(Text(cell) for cell in _cells(course, characters)))
    return table


def _cells(course: _Course, characters: str) -> list[str]:
    if not course.ranks:
        return [course.size, "-", "-", "-", "-", "not finite", "-"]
    peak = max(range(len(course.ranks)), key=course.ranks.__getitem__)
    return [
        course.size,
        _short(course.ranks[0]),
        _short(course.ranks[peak]),
        str(course.steps[peak]),
        _short(course.ranks[-1]),
        trend(course.ranks, characters),
        f"{_short(course.effective[0])} -> {_short(course.effective[-1])}",
    ]


def trend(values: Sequence[float], characters: str = _BLOCKS) -> str:
    """Draws values as a line of blocks, the lowest for 0, the highest for the largest.

    Args:
        values: At least one, not negative; evenly thinned out where there are too many.
        characters: From low to high.

    Returns:
        At most 14 characters; the first and the last value are always there.
    """
    count = min(len(values), _TREND_WIDTH)
    last = len(values) - 1
    picked = [values[round(index * last / max(1, count - 1))] for index in range(count)]
    top = max(values)
    levels = len(characters) - 1
    return "".join(characters[round(value / top * levels) if top > 0 else 0] for value in picked)


def _trend_characters(console: Console) -> str:
    return _BLOCKS if console.encoding.lower().startswith("utf") else _ASCII


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 9999.95 else f"{value:.0f}"


def _number(cell: Cell) -> float | None:
    return float(cell) if isinstance(cell, (int, float)) else None
