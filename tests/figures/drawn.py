"""What a figure shows, read from the figure itself."""

from itertools import combinations
from typing import Any

import pytest
from matplotlib import collections
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """Return label, x and y of each data line."""
    return {
        str(line.get_label()): (_numbers(line.get_xdata()), _numbers(line.get_ydata()))
        for line in axes.get_lines()
        if not str(line.get_label()).startswith("_")
    }


def _numbers(values: Any) -> list[float]:
    return [float(value) for value in values]


_BAND = getattr(collections, "FillBetweenPolyCollection", collections.PolyCollection)  # < 3.10


def bands(axes: Axes) -> list[tuple[float, float]]:
    """Return the lowest and highest y of each band."""
    found = [one for one in axes.collections if isinstance(one, _BAND)]
    return [
        (float(one.get_datalim(axes.transData).y0), float(one.get_datalim(axes.transData).y1))
        for one in found
    ]


def ticks(axis: Any) -> list[str]:
    """Return the tick labels."""
    return [tick.get_text() for tick in axis.get_ticklabels() if tick.get_text()]


def texts(figure: Figure) -> dict[str, Any]:
    """Return all drawn texts, and where they are in pixels."""
    canvas: Any = FigureCanvasAgg(figure)
    found: dict[str, Any] = {}
    count = 0
    original = Text.draw

    def draw(self: Text, renderer: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal count
        if self.get_visible() and self.get_text().strip():
            count += 1
            text = self.get_text()
            box = Text.get_window_extent(self, renderer)
            if self.get_rotation() % 90:  # only its end: the box around it is too large
                box = Bbox.from_extents(box.x1 - 9, box.y1 - 9, box.x1, box.y1)
            found[text if text not in found else f"{text} ({count})"] = box
        original(self, renderer, *args, **kwargs)

    # As savefig does: lay out once, and draw what stays.
    figure.draw_without_rendering()
    engine = figure.get_layout_engine()
    figure.set_layout_engine("none")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", draw)
        canvas.draw()
    figure.set_layout_engine(engine or "none")
    return found


def assert_readable(figure: Figure) -> None:
    """Check that no texts overlap, and none is cut off at the edge."""
    shown = texts(figure)
    paper = figure.bbox
    assert shown
    for text, box in shown.items():
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= paper.x1 + 1 and box.y1 <= paper.y1 + 1
        assert inside, f"{text!r} is cut off: {box} on {paper}"
    for (one, first), (other, second) in combinations(shown.items(), 2):
        lower = first.padded(-1.0)
        assert not lower.overlaps(second.padded(-1.0)), f"{one!r} lies on {other!r}"
