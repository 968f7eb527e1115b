"""Names beside the ends of the lines, or a colour bar where there are too many."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure

from localrank_cli.figures.courses import Array
from localrank_cli.figures.look import GREY, depth_map

_NAME = 26
_GAP = 10.0  # points between two names
MOST_NAMES = 14


def shortened(name: str, most: int = _NAME) -> str:
    """Cuts a name in the middle: its end tells layers apart, its beginning where they are.

    Args:
        name: Any.
        most: Characters.

    Returns:
        At most so many.
    """
    if len(name) <= most:
        return name
    front = (most - 1) // 3
    return f"{name[:front]}…{name[len(name) - (most - 1 - front) :]}"


def distinct(names: Sequence[str], most: int = _NAME) -> dict[str, str]:
    """Cuts names so that they can still be told apart.

    Args:
        names: All different.
        most: Characters, where that is enough.

    Returns:
        What to write for each. What all of them begin or end with, up to a dot, gives way first.
    """
    if all(len(name) <= most for name in names):
        return {name: name for name in names}
    parts = [name.split(".") for name in names]
    head, tail = _shared(parts), _shared([part[::-1] for part in parts])
    room = min(map(len, parts)) - 1
    head, tail = min(head, room), min(tail, max(0, room - min(head, room)))
    cores = [
        ("…" if head else "") + ".".join(part[head : len(part) - tail]) + ("…" if tail else "")
        for part in parts
    ]
    for width in range(most, max(map(len, cores)) + 1):
        cut = [shortened(core, width) for core in cores]
        if len(set(cut)) == len(cut):
            return dict(zip(names, cut, strict=True))
    return dict(zip(names, cores, strict=True))


def _shared(parts: Sequence[Sequence[str]]) -> int:
    count = 0
    for same in zip(*parts, strict=False):
        if len(set(same)) > 1:
            break
        count += 1
    return count


def spread_out(wanted: Array, gap: float, low: float, high: float) -> Array:
    """Moves places apart as little as need be.

    Args:
        wanted: Where they should be, in any order.
        gap: The least distance between two.
        low: No place is under this, where there is room.
        high: None is over this.

    Returns:
        Places in the same order, each pair `gap` apart. Those that must move together have the
        least sum of squared moves (pool adjacent violators).
    """
    order = np.argsort(wanted, kind="stable")
    # Taking i gaps off the i-th place turns "at least a gap apart" into "not descending".
    shift = gap * np.arange(len(wanted))
    blocks: list[tuple[float, int]] = []
    for value in wanted[order] - shift:
        mean, count = float(value), 1
        while blocks and blocks[-1][0] > mean:
            before, size = blocks.pop()
            mean = (before * size + mean * count) / (size + count)
            count += size
        blocks.append((mean, count))
    level = np.concatenate([np.full(count, mean) for mean, count in blocks])
    level = np.clip(level, low, max(low, high - shift[-1]))
    placed = np.empty(len(wanted))
    placed[order] = level + shift
    return placed


def name_lines(
    axes: Axes, ends: Mapping[str, tuple[float, float]], colours: Mapping[str, Any], points: float
) -> None:
    """Writes each line's name to the right of the axes, at the height of its end.

    Args:
        axes: With limits set.
        ends: The last x and y of each line.
        colours: Of each line.
        points: About how high the axes are, in points.
    """
    names = list(ends)
    to_share = axes.transData + axes.transAxes.inverted()
    places = to_share.transform(np.array([ends[name] for name in names], dtype=float))
    heights = np.clip(places[:, 1], 0, 1)
    written = distinct(names)
    spread = spread_out(heights, _GAP / points, 0.0, 1.0)
    axes.annotate(
        "layer", xy=(1.035, 1.0), xytext=(0, 6), xycoords="axes fraction", fontsize=7.5,
        textcoords="offset points", annotation_clip=False, va="bottom", color=GREY,
    )  # fmt: skip
    for name, (across, _), height, placed in zip(names, places, heights, spread, strict=True):
        moved = abs(placed - height) * points > 1.5 or across < 0.9
        axes.annotate(
            written[name],
            xy=ends[name],
            xytext=(1.035, placed),
            textcoords="axes fraction",
            annotation_clip=False,
            va="center",
            fontsize=8,
            color=readable(colours[name]),
            arrowprops={
                "arrowstyle": "-", "linewidth": 0.6, "color": colours[name], "alpha": 0.7,
                "shrinkA": 1, "shrinkB": 2, "relpos": (0, 0.5),
            } if moved else None,
        )  # fmt: skip


def readable(colour: Any) -> Any:
    """A colour dark enough for small letters on white.

    Args:
        colour: RGB or RGBA.

    Returns:
        The same, darkened where it is light.
    """
    red, green, blue = (float(part) for part in colour[:3])
    light = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    factor = min(1.0, 0.42 / light) if light > 0 else 1.0
    return (red * factor, green * factor, blue * factor)


def layer_bar(figure: Figure, axes: Sequence[Axes], layers: Sequence[str]) -> None:
    """A colour bar of depth, for more layers than names have room.

    Args:
        figure: Of the axes.
        axes: Beside which it stands.
        layers: In order of depth.
    """
    count = len(layers)
    norm = BoundaryNorm(np.arange(count + 1) - 0.5, count)
    bar = figure.colorbar(
        ScalarMappable(norm, depth_map(count)), ax=list(axes), pad=0.02, fraction=0.05, aspect=30,
        spacing="proportional",
    )  # fmt: skip
    ticks = np.unique(np.linspace(0, count - 1, 8).round().astype(int))
    bar.set_ticks([float(tick) for tick in ticks])
    written = distinct([layers[tick] for tick in ticks], 20)
    bar.set_ticklabels([f"{tick}: {written[layers[tick]]}" for tick in ticks])
    bar.ax.tick_params(length=2, labelsize=7.5)
    bar.ax.minorticks_off()
    bar.ax.invert_yaxis()  # the first layer on top, as in a listing
    bar.set_label(f"layer, in order of depth ({count})")
