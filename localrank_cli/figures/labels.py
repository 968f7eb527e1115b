"""Names beside the ends of lines, or a colour bar if there are too many."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from localrank_cli.figures.curves import Array
from localrank_cli.figures.look import GREY, Pen, depth_map

_NAME_LENGTH = 26  # characters; about a fifth of the default width
_BESIDE = 1.035  # of the width of the axes
_ROOM = 7.0  # points for a marker before a name
_GAP = 10.0  # points between two names, a little more than their font size


def shortened(name: str, most: int = _NAME_LENGTH) -> str:
    """Cut a name in the middle: its end identifies the layer, its beginning the place."""
    if len(name) <= most:
        return name
    front = (most - 1) // 3
    return f"{name[:front]}…{name[len(name) - (most - 1 - front) :]}"


def distinct(names: Sequence[str], most: int = _NAME_LENGTH) -> dict[str, str]:
    """Shorten names so that they remain distinct.

    Args:
        names: All different.
        most: Characters, unless more are needed.

    Returns:
        The text for each name; parts between dots that all names share at either end go first.
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
    """Move positions apart as little as necessary (pool adjacent violators).

    Args:
        wanted: The desired positions, in any order.
        gap: The smallest distance between two.
        low: The lower bound, unless there is no room.
        high: The upper bound.

    Returns:
        Positions in the same order, each pair at least `gap` apart, with the least sum of squared
        moves.
    """
    order = np.argsort(wanted, kind="stable")
    # Subtracting i gaps from the i-th position turns "a gap apart" into "not descending".
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
    axes: Axes, ends: Mapping[str, tuple[float, float]], pens: Mapping[str, Pen], points: float
) -> None:
    """Write marker and name of each line to the right of the axes, at the height of its end.

    Args:
        axes: With its limits set.
        ends: The last x and y of each line.
        pens: The pen of each line.
        points: The approximate height of the axes, in points.
    """
    names = list(ends)
    to_share = axes.transData + axes.transAxes.inverted()
    places = to_share.transform(np.array([ends[name] for name in names], dtype=float))
    heights = np.clip(places[:, 1], 0, 1)
    written = distinct(names)
    spread = spread_out(heights, _GAP / points, 0.0, 1.0)
    axes.annotate(
        "layer", xy=(_BESIDE, 1.0), xytext=(0, 6), xycoords="axes fraction", fontsize=7.5,
        textcoords="offset points", annotation_clip=False, va="bottom", color=GREY,
    )  # fmt: skip
    shift = ScaledTranslation((_ROOM / 2 + 1.5) / 72, 0, axes.figure.dpi_scale_trans)
    after_marker = axes.transAxes + shift
    for name, (across, _), height, placed in zip(names, places, heights, spread, strict=True):
        pen = pens[name]
        moved = abs(placed - height) * points > 1.5 or across < 0.9
        axes.annotate(
            written[name],
            xy=ends[name],
            xytext=(_BESIDE, placed),
            textcoords=after_marker,
            annotation_clip=False,
            va="center",
            fontsize=8,
            color=readable(pen.colour),
            arrowprops={
                "arrowstyle": "-", "linewidth": 0.6, "color": pen.colour, "alpha": 0.7,
                "shrinkA": _ROOM, "shrinkB": 2, "relpos": (0, 0.5),
            } if moved else None,
        )  # fmt: skip
        axes.plot(
            [_BESIDE], [placed], color=pen.colour, marker=pen.marker, clip_on=False, label="_name",
            transform=axes.transAxes,
        )  # fmt: skip


def readable(colour: Any) -> Any:
    """Darken a light colour enough for small letters on white."""
    red, green, blue = (float(part) for part in colour[:3])
    light = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    factor = min(1.0, 0.42 / light) if light > 0 else 1.0
    return (red * factor, green * factor, blue * factor)


def layer_bar(figure: Figure, axes: Sequence[Axes], layers: Sequence[str]) -> None:
    """Draw a colour bar of depth beside the axes, for more layers than can be named."""
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
