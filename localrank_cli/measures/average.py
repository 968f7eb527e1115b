"""Means over points: the one place where values are reduced, for single runs and merges alike."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Average:
    """A mean over points with its standard error."""

    mean: float | None  # None without points
    error: float | None  # sample standard deviation / sqrt(n); None under 2 points


def average(values: Sequence[float]) -> Average:
    """Averages per-point values.

    Args:
        values: In the order of the point indices.

    Returns:
        Mean and standard error, summed exactly (`math.fsum`), so that the result does not depend
        on how the points were divided.
    """
    count = len(values)
    if count == 0:
        return Average(None, None)
    if count > 1 and min(values) == max(values):
        return Average(float(values[0]), 0.0)  # which a quotient of sums may miss by an ulp
    # Sums of values near the largest double would overflow; a power of two changes no digit.
    scale = 2.0**64 if max(map(abs, values)) > 1e300 else 1.0
    mean = math.fsum(value / scale for value in values) / count * scale
    if count < 2:
        return Average(mean, None)
    deviations = [value - mean for value in values]
    largest = max(map(abs, deviations))
    if largest == 0:
        return Average(mean, 0.0)
    variance = math.fsum((d / largest) * (d / largest) for d in deviations) / (count - 1)
    return Average(mean, largest * math.sqrt(variance / count))
