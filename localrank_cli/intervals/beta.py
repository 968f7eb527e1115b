"""What a random projection says about a rank: quantiles of the Beta distribution, outward.

Let P project on a subspace of N of d dimensions, and let x be s standard normal vectors of d
entries. Then R = sum x^T P x / sum |x|^2 is distributed as Beta(s N / 2, s (d - N) / 2), whatever
the subspace is. If R is at most b, the N for which that would be rarer than delta are ruled out.
"""

import math

# What is added to either end of a bracket, for the rounding of its weights.
PADDING = 1e-11
# Above it an end counts as 1: a full rank of d whose end were 1 - 2e-16 would lose one.
_NEARLY_ONE = 1 - 1e-9
_TINY = 1e-300


def cumulative(x: float, a: float, b: float) -> float:
    """Return the probability that a Beta(a, b) variable is at most x.

    A parameter of zero puts all weight on one end: `a` on 0, and `b` on 1.
    """
    if x >= 1 or a <= 0:
        return 1.0 if x >= 0 else 0.0
    if x <= 0 or b <= 0:
        return 0.0
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(x, a, b) / a
    return 1 - front * _fraction(1 - x, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    """Return the continued fraction of the incomplete Beta function, by Lentz's method."""
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    found = d
    # It settles in about sqrt(max(a, b)) steps.
    for m in range(1, 1000 + 10 * math.isqrt(int(max(a, b)))):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / _away_from_zero(1 + even * d)
        c = _away_from_zero(1 + even / c)
        found *= c * d
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 / _away_from_zero(1 + odd * d)
        c = _away_from_zero(1 + odd / c)
        found *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return found


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def outward(low: float, high: float) -> tuple[float, float]:
    """Return a bracket of a share with its ends rounded outward."""
    high += PADDING
    return max(0.0, low - PADDING), 1.0 if high > _NEARLY_ONE else high


def largest_count(share: float, delta: float, probes: int, size: int) -> int:
    """Return the largest N of `size` at which R <= share is no rarer than delta."""
    low, high = 0, size  # at 0 it is certain
    while low < high:
        middle = (low + high + 1) // 2
        if _at_most(share, middle, probes, size) >= delta:
            low = middle
        else:
            high = middle - 1
    return low


def smallest_count(share: float, delta: float, probes: int, size: int) -> int:
    """Return the smallest N of `size` at which R >= share is no rarer than delta."""
    low, high = 0, size  # at `size` it is certain
    while low < high:
        middle = (low + high) // 2
        if _at_least(share, middle, probes, size) >= delta:
            high = middle
        else:
            low = middle + 1
    return low


def rare_share(delta: float, probes: int, size: int) -> float:
    """Return the share under which one direction of `size` appears with probability delta."""
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2 if low > 0 or high < 1e-290 else high / 16
        if _at_most(middle, 1, probes, size) < delta:
            low = middle
        else:
            high = middle
        if high <= low * (1 + 1e-12):
            break
    return low


def _at_most(share: float, count: int, probes: int, size: int) -> float:
    return cumulative(share, probes * count / 2, probes * (size - count) / 2)


def _at_least(share: float, count: int, probes: int, size: int) -> float:
    if share <= 0:
        return 1.0
    return cumulative(1 - share, probes * (size - count) / 2, probes * count / 2)
