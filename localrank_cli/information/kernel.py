"""Bounds on information from pairwise distances (Kolchinsky & Tracey, Entropy 19, 2017).

T = h + e with h one of N outputs, each with probability 1/N, and e ~ N(0, v I). Then H(T) - H(e)
lies between
    lower: -1/N sum_i log 1/N sum_j exp(-|h_i - h_j|^2 / (8 v))    (Bhattacharyya distance)
    upper: -1/N sum_i log 1/N sum_j exp(-|h_i - h_j|^2 / (2 v))    (Kullback-Leibler divergence)
and H(T) - H(e) = I(X;T) for X uniform over the N inputs. Neither exceeds log N; near log N
the sample, not the network, determines the value. All values are in nats.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_MOST_ENTRIES = 2**22  # of the distance matrix held at once: 32 MiB in float64


@dataclass(frozen=True)
class Bounds:
    """Bounds on an amount of information, in nats."""

    lower: float
    upper: float


def total_variance(outputs: Tensor) -> float:
    """Compute tr Cov(T) of h, shape (N, n), N at least 2, float64, with divisor N - 1."""
    return float(outputs.var(dim=0, correction=1).sum())


def information_bounds(outputs: Tensor, variance: float) -> Bounds:
    """Compute bounds on I(X;T) for T = h(X) + e.

    Args:
        outputs: h at each of N equally likely inputs, shape (N, n), float64, finite.
        variance: v of each entry of e, positive.

    Returns:
        The bounds; both at most log N.
    """
    count = outputs.shape[0]
    # Centred, since distances from differences of squares lose digits to a large common part.
    centred = outputs - outputs.mean(dim=0)
    squares = centred.square().sum(dim=1)
    sums = {8.0: 0.0, 2.0: 0.0}
    rows = max(1, _MOST_ENTRIES // count)
    for start in range(0, count, rows):
        part = centred[start : start + rows]
        distances = squares[start : start + rows, None] + squares - 2 * part @ centred.mT
        distances.clamp_(min=0)
        # The distance of a point from itself is exactly 0, but rounding may make it positive.
        distances.diagonal(start).zero_()
        for width in sums:
            logs = torch.logsumexp(-distances / (width * variance), dim=1)
            sums[width] += float((math.log(count) - logs).sum())
    return Bounds(max(0.0, sums[8.0] / count), max(0.0, sums[2.0] / count))


def label_bounds(outputs: Tensor, labels: Tensor, variance: float) -> Bounds:
    """Compute bounds on I(T;Y) = H(T) - H(T|Y) for T = h(X) + e and a label Y of each input.

    H(T|Y) is bounded class by class in the same way, so that the bounds are H_lower(T) -
    H_upper(T|Y) and H_upper(T) - H_lower(T|Y); the noise's own entropy cancels. A negative lower
    bound carries no information.

    Args:
        outputs: Shape (N, n), float64, finite.
        labels: Shape (N,), integers.
        variance: v of each entry of e, positive.

    Returns:
        The bounds.
    """
    whole = information_bounds(outputs, variance)
    lower, upper = whole.lower, whole.upper
    for label in torch.unique(labels).tolist():
        members = outputs[labels == label]
        share = members.shape[0] / outputs.shape[0]
        inside = information_bounds(members, variance)
        lower, upper = lower - share * inside.upper, upper - share * inside.lower
    return Bounds(lower, upper)


def ceiling(count: int) -> float:
    """Return log N, the largest value that a bound from N points can take."""
    return math.log(count)
