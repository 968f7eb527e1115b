"""Bounds on information from pairwise distances (Kolchinsky & Tracey, Entropy 19, 2017).

T = h + e with h one of N outputs, each with probability 1/N, and e ~ N(0, v I). Then H(T) - H(e)
lies between
    lower: -1/N sum_i log 1/N sum_j exp(-|h_i - h_j|^2 / (8 v))    (Bhattacharyya distance)
    upper: -1/N sum_i log 1/N sum_j exp(-|h_i - h_j|^2 / (2 v))    (Kullback-Leibler divergence)
and H(T) - H(e) = I(X;T) for X uniform over the N inputs. Neither exceeds log N: near that the
sample, not the network, sets the number. All values are in nats.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Entries of the distance matrix that are held at once.
_ENTRIES = 2**22


@dataclass(frozen=True)
class Bounds:
    """Around an amount of information, in nats."""

    lower: float
    upper: float


def total_variance(outputs: Tensor) -> float:
    """Computes tr Cov(T), with N - 1.

    Args:
        outputs: h, shape (N, n), N at least 2, float64.

    Returns:
        The sum of the variances of all entries.
    """
    return float(outputs.var(dim=0, correction=1).sum())


def information_bounds(outputs: Tensor, variance: float) -> Bounds:
    """Bounds I(X;T) for T = h(X) + e.

    Args:
        outputs: h at each of N equally likely inputs, shape (N, n), float64, finite.
        variance: v of each entry of e, positive.

    Returns:
        The bounds; both at most log N.
    """
    count = outputs.shape[0]
    # Distances from differences of squares lose digits where outputs have a large common part.
    centred = outputs - outputs.mean(dim=0)
    squares = centred.square().sum(dim=1)
    sums = {8.0: 0.0, 2.0: 0.0}
    rows = max(1, _ENTRIES // count)
    for start in range(0, count, rows):
        part = centred[start : start + rows]
        distances = squares[start : start + rows, None] + squares - 2 * part @ centred.mT
        distances.clamp_(min=0)
        # A point's distance from itself is 0, which rounding would make positive.
        distances.diagonal(start).zero_()
        for width in sums:
            logs = torch.logsumexp(-distances / (width * variance), dim=1)
            sums[width] += float((math.log(count) - logs).sum())
    return Bounds(max(0.0, sums[8.0] / count), max(0.0, sums[2.0] / count))


def label_bounds(outputs: Tensor, labels: Tensor, variance: float) -> Bounds:
    """Bounds I(T;Y) = H(T) - H(T|Y) for T = h(X) + e and a label Y of each input.

    H(T|Y) is bounded class by class in the same way, so that the bounds are H_lower(T) -
    H_upper(T|Y) and H_upper(T) - H_lower(T|Y); the noise's own entropy cancels. The lower one may
    be negative, where it says nothing.

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
    """The most that a bound from so many points can say.

    Args:
        count: N.

    Returns:
        log N.
    """
    return math.log(count)
