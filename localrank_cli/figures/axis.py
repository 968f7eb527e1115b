"""Scales, limits and ticks of axes: log scales over decades, with zero shown beside them."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullFormatter

from localrank_cli.figures.curves import Array
from localrank_cli.measures.table import LENGTH, RANK, SHARE, Meaning

_LOG_SPAN = 2.0  # decades; on a linear axis all but the last one would be squeezed together
_ZERO_GAP = 0.55  # decades on paper between zero and the smallest positive value
_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def spans_decades(values: Array) -> bool:
    """Return whether non-negative values span so many decades that they need a log axis."""
    positive = values[values > 0]
    return bool(
        positive.size
        and not (values < 0).any()
        and math.log10(positive.max() / positive.min()) >= _LOG_SPAN
    )


def scale_x(axes: Axes, values: Array, inches: float) -> None:
    """Set the scale, limits and ticks of a horizontal axis, `inches` wide, to show `values`."""
    if not spans_decades(values):
        _linear_x(axes, values, inches)
        return
    positive = values[values > 0]
    low, high = float(positive.min()), float(positive.max())
    margin = 0.03 * math.log10(high / low)
    if (values == 0).any():
        axes.set_xscale("symlog", linthresh=low, linscale=_ZERO_GAP)
        transform = axes.xaxis.get_transform()
        ends = transform.transform(np.array([0.0, high]))
        pad = 0.03 * (ends[1] - ends[0])
        left, right = transform.inverted().transform(np.array([ends[0] - pad, ends[1] + pad]))
        axes.set_xlim(float(left), float(right))
        _break_mark(axes, low)
    else:
        axes.set_xscale("log")
        axes.set_xlim(low / 10**margin, high * 10**margin)
    log_ticks(axes.xaxis, values, most=max(3, int(inches * 1.7)))


def scale_y(axes: Axes, measure: Meaning, values: Array) -> None:
    """Set the scale and limits of a vertical axis: ranks start at 0, lengths may need a log scale.

    `values` are all that are shown, including bands.
    """
    values = values[np.isfinite(values)]
    high = float(values.max(initial=0.0))
    if measure.kind == LENGTH and spans_decades(values) and (values > 0).all():
        axes.set_yscale("log")
        log_ticks(axes.yaxis, values, most=6)
    elif measure.kind in {RANK, LENGTH}:
        axes.set_ylim(0, high * 1.05 or 1.0)
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=high >= 5))
    elif measure.kind == SHARE:
        axes.set_ylim(-0.02, 1.02)
    else:
        axes.margins(y=0.06)


def positions(axes: Axes, x: Array) -> Array:
    """Return the positions of values on the drawn axis, whose scale must be set."""
    placed: Array = np.asarray(axes.xaxis.get_transform().transform(x), dtype=np.float64)
    return placed


def log_ticks(axis: Any, values: Array, most: int) -> None:
    """Label at most `most` powers of ten on a log axis, and zero if it is among the values."""
    positive = values[values > 0]
    low, high = float(positive.min()), float(positive.max())
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    powers = [10.0**exponent for exponent in range(first, last + 1)]
    if len(powers) < 2:
        powers = [f * 10.0**e for e in range(first - 1, last + 1) for f in (1, 2, 5)]
        powers = [tick for tick in powers if low <= tick * (1 + 1e-9) and tick <= high]
    every = max(1, math.ceil(len(powers) / most))
    shown = powers[::-1][::every][::-1]
    zero = [0.0] if (values == 0).any() else []
    _fixed(axis, [*zero, *shown])
    minor = [f * 10.0**e for e in range(first - 1, last + 1) for f in range(1, 10)]
    few = [tick for tick in minor if low <= tick <= high] if last - first < 7 else powers
    axis.set_minor_locator(FixedLocator(few))
    axis.set_minor_formatter(NullFormatter())


def number(value: float) -> str:
    """Format a tick label: digits, or a power of ten instead of many digits."""
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        exponent = math.floor(math.log10(abs(value)) + 1e-12)
        factor = value / 10.0**exponent
        power = "10" + str(exponent).translate(_SUPERSCRIPTS)
        return power if math.isclose(factor, 1) else f"{factor:.3g}·{power}"
    return f"{value:.12g}"


def _linear_x(axes: Axes, values: Array, inches: float) -> None:
    low, high = float(values.min()), float(values.max())
    if low == high:
        axes.set_xlim(low - 1, high + 1)
        axes.xaxis.set_major_locator(FixedLocator([low]))
        axes.xaxis.set_major_formatter(FixedFormatter([number(low)]))
        return
    pad = 0.03 * (high - low)
    axes.set_xlim(low - pad, high + pad)
    whole = bool((values == np.round(values)).all())
    axes.xaxis.set_major_locator(MaxNLocator(max(3, int(inches * 1.5)), integer=whole))
    ticks = [t for t in axes.xaxis.get_major_locator().tick_values(low, high) if low <= t <= high]
    _fixed(axes.xaxis, ticks)


def _break_mark(axes: Axes, low: float) -> None:
    """Draw two strokes on the axis between zero, which a log scale lacks, and the rest."""
    for share in (0.42, 0.54):
        axes.plot(
            [share * low], [0], marker=(2, 0, -25), markersize=7, color="black", clip_on=False,
            transform=axes.get_xaxis_transform(), markeredgewidth=0.8, label="_break", zorder=5,
        )  # fmt: skip


def _fixed(axis: Any, ticks: Iterable[float]) -> None:
    places = list(ticks)
    axis.set_major_locator(FixedLocator(places))
    whole = all(place == 0 or 1e-3 <= abs(place) < 1e5 for place in places)
    texts = [f"{place:.12g}" if whole else number(place) for place in places]
    if not whole:
        texts = [
            t if place in {0, 1} else number_as_power(place)
            for place, t in zip(places, texts, strict=True)
        ]
    axis.set_major_formatter(FixedFormatter(texts))


def number_as_power(value: float) -> str:
    """Format a nonzero tick beside powers of ten: `10²` for 100, else like `number`."""
    exponent = math.log10(abs(value))
    if value > 0 and math.isclose(exponent, round(exponent), abs_tol=1e-9) and round(exponent):
        return "10" + str(round(exponent)).translate(_SUPERSCRIPTS)
    return number(value)
