"""Confidence intervals and p-values of means and differences, for many cells at once.

A cell is one layer at one step. Arrays have one row for each run and one column for each cell.
Everything is computed for each cell separately; `holm` and the wide intervals hold for all cells
together.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special, stats

Array = npt.NDArray[np.float64]

BOOTSTRAP_FROM = 10  # runs in each group; with fewer, the tails of a bootstrap hold a few resamples
_FEWEST_RESAMPLES = 9_999
_TAIL = 10  # resamples beyond the farthest quantile that is asked for, so that it means something
_MOST_RESAMPLES = 200_000
_BLOCK = 2**22  # numbers of one block of cells: 32 MiB
# Tables hold 9 significant digits, so each value is off by up to 5e-9 of itself, and two
# differences of two values each are apart by up to four times that where they should be equal.
_ROUNDING = 2e-8
_LEAST_SPREAD = 1e-13  # of the mean square: what is left of a difference of two rounded squares
# Where one sample is this much larger, Welch's degrees of freedom are often those of the larger one
# although the smaller decides: 2 runs and 9 alike would differ in 6 cells in a fifth of all cases.
_UNEQUAL = 2


@dataclass(frozen=True)
class Intervals:
    """Estimates of the cells, each of shape (cells,).

    Equal values of a few runs do not bound what another run would give: a cell without any spread
    has a standard error of 0 and no interval (NaN). Its p-values are those of order alone: of a
    sign test for one mean, of the permutation of all values for two.

    Args:
        estimate: The mean, or the difference of two means.
        se: Its standard error.
        low: The lower end of the interval of each cell alone.
        high: The upper end.
        low_all: The lower end of the intervals that hold for all cells together (Bonferroni).
        high_all: The upper end.
        p: Two-sided p-value of "the mean is 0", of each cell alone.
        p_joint: The same for `holm`, as `low_all`; larger than `p` for unequal numbers of runs.
        p_below: One-sided p-value of "the mean is 0 or above", for `holm`.
    """

    estimate: Array
    se: Array
    low: Array
    high: Array
    low_all: Array
    high_all: Array
    p: Array
    p_joint: Array
    p_below: Array


def of_change(first: Array, second: Array, confidence: float, seed: int = 0) -> Intervals:
    """Estimate the mean of `second` minus `first`, whose rows belong together.

    Student's t of the differences, or the bootstrap from 10 runs on.

    Args:
        first: Shape (runs, cells), or (runs, 1) for one value of all cells; at least 2 runs.
        second: Shape (runs, cells).
        confidence: Such as 0.95.
        seed: Of the bootstrap.
    """
    change = _without_rounding(second - first, np.maximum(np.abs(first), np.abs(second)))
    if len(change) >= BOOTSTRAP_FROM:
        return _bootstrap((change,), confidence, seed)
    freedom = np.full(change.shape[1], len(change) - 1.0)
    se, least = np.sqrt(_variance(change)), np.full(change.shape[1], 0.5 ** len(change))
    return _student(_mean(change), se, (freedom, freedom), least, confidence)


def of_difference(first: Array, second: Array, confidence: float, seed: int = 0) -> Intervals:
    """Estimate the mean of `second` minus that of `first`, whose runs are independent.

    Welch's t, or the bootstrap where both have 10 runs or more.
    """
    if min(len(first), len(second)) >= BOOTSTRAP_FROM:
        return _bootstrap((second, first), confidence, seed)
    return of_summaries(
        _mean(second) - _mean(first),
        (np.sqrt(_variance(first)), np.sqrt(_variance(second))),
        (np.array(float(len(first))), np.array(float(len(second)))),
        confidence,
    )


def of_summaries(
    difference: Array, errors: tuple[Array, Array], counts: tuple[Array, Array], confidence: float
) -> Intervals:
    """Estimate a difference of independent means of known standard errors (Welch 1947, eq. 28).

    Where the counts are far from equal, what holds for all cells together is judged by the degrees
    of freedom of the smaller, with which it holds whatever the spreads are (Mickey & Brown 1966).

    Args:
        difference: The estimate, shape (cells,).
        errors: The standard error of each mean.
        counts: How many values each mean is of.
        confidence: Such as 0.95.
    """
    first, second = (np.square(error) for error in errors)
    se = np.sqrt(first + second)
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = np.square(first) / (counts[0] - 1) + np.square(second) / (counts[1] - 1)
        freedom = np.square(first + second) / parts
    unequal, fewer = are_unequal(*counts), np.minimum(*counts) - 1
    freedoms = (freedom, np.where(unequal, np.minimum(fewer, freedom), freedom))
    return _student(difference, se, freedoms, _least(*counts) + np.zeros_like(se), confidence)


def are_unequal(first: Array, second: Array) -> npt.NDArray[np.bool_]:
    """Return whether counts are too far from equal for Welch's approximation in the far tails."""
    unequal: npt.NDArray[np.bool_] = np.maximum(first, second) >= _UNEQUAL * np.minimum(
        first, second
    )
    return unequal


def holm(p: Array) -> Array:
    """Adjust p-values for all cells together (Holm 1979); cells without one stay NaN and count.

    A cell is decided at level alpha where its adjusted value is at most alpha; the chance of any
    wrong decision is then at most alpha, whatever the cells depend on.
    """
    order = np.argsort(p, kind="stable")  # NaN last
    factors = np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * factors))
    adjusted[np.isnan(p)] = np.nan
    return adjusted


def _without_rounding(change: Array, size: Array) -> Array:
    """Return differences of values of a size, equal where they are apart by rounding alone."""
    size = _ROUNDING * size.max(0)
    change = np.where(np.abs(change) <= size / 2, 0.0, change)
    equal: Array = np.where(np.ptp(change, axis=0) <= size, change[:1], change)
    return equal


def _mean(values: Array) -> Array:
    """Return the means; that of equal values is exactly their value."""
    mean: Array = np.where(np.ptp(values, axis=0) == 0, values[0], values.mean(0))
    return mean


def _variance(values: Array) -> Array:
    """Return the variances of the means; exactly 0 for equal values."""
    variance = values.var(0, ddof=1) / len(values)
    spread: Array = np.where(np.ptp(values, axis=0) == 0, 0.0, variance)
    return spread


def _least(first: Array, second: Array) -> Array:
    """Return the chance that a permutation puts all values of one sample below the other's."""
    logarithm = special.gammaln(first + 1) + special.gammaln(second + 1)
    chance: Array = np.exp(logarithm - special.gammaln(first + second + 1))
    return chance


def _student(
    estimate: Array, se: Array, freedoms: tuple[Array, Array], least: Array, confidence: float
) -> Intervals:
    """Estimate cells by Student's t, with degrees of freedom of each alone and of all together."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(se > 0, estimate / se, np.nan)
    freedom, joint = freedoms
    alone = stats.t.ppf(0.5 + confidence / 2, freedom) * se
    together = stats.t.isf((1 - confidence) / (2 * max(1, len(se))), joint) * se
    alone, together = (np.where(se > 0, width, np.nan) for width in (alone, together))
    two_sided = [2 * stats.t.sf(np.abs(t), one) for one in freedoms]
    return Intervals(
        estimate, se, estimate - alone, estimate + alone, estimate - together, estimate + together,
        *_without_spread(estimate, se, least, (*two_sided, stats.t.cdf(t, joint))),
    )  # fmt: skip


def _without_spread(
    estimate: Array, se: Array, least: Array, p: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    """Return p-values with those of cells without spread, whose one-sided value is `least`."""
    one_sided = np.where(estimate < 0, least, 1.0)
    two_sided = np.where(estimate == 0, 1.0, np.minimum(1.0, 2 * least))
    alone, joint, below = p
    return (
        np.where(se == 0, two_sided, alone),
        np.where(se == 0, two_sided, joint),
        np.where(se == 0, one_sided, below),
    )


def _bootstrap(groups: tuple[Array, ...], confidence: float, seed: int) -> Intervals:
    """Estimate the mean of a group, or the first minus the second, by the bootstrap of Student's t.

    Efron & Tibshirani 1993, section 12.5: the distribution of (mean* - mean) / se* over resamples
    of the runs takes the place of Student's. The same resamples serve all cells.
    """
    cells = groups[0].shape[1]
    tail = (1 - confidence) / 2
    wanted = math.ceil(_TAIL * cells / tail)
    resamples = min(max(_FEWEST_RESAMPLES, wanted), _MOST_RESAMPLES)
    draw = np.random.default_rng(seed)
    counts = [
        draw.multinomial(len(group), np.full(len(group), 1 / len(group)), resamples).astype(float)
        for group in groups
    ]
    parts = [
        _of_block(tuple(group[:, part] for group in groups), counts, tail, cells)
        for part in _blocks(cells, max(1, _BLOCK // resamples))
    ]
    estimate, se, *ends, p, below = (np.concatenate(part) for part in zip(*parts, strict=True))
    sizes = [np.full(cells, float(len(group))) for group in groups]
    least = 0.5 ** sizes[0] if len(sizes) == 1 else _least(*sizes)
    p, joint, below = _without_spread(estimate, se, least, (p, p, below))
    return Intervals(estimate, se, ends[0], ends[1], ends[2], ends[3], p, joint, below)


def most_to_bootstrap(confidence: float) -> int:
    """Return how many cells the bootstrap can judge together.

    Of more, no interval for all together is bounded and no adjusted p-value is small.
    """
    return math.floor((1 - confidence) / 2 * (_MOST_RESAMPLES + 1))


def _blocks(cells: int, size: int) -> Iterator[slice]:
    for start in range(0, cells, size):
        yield slice(start, start + size)


def _of_block(
    groups: tuple[Array, ...], counts: list[Array], tail: float, cells: int
) -> tuple[Array, ...]:
    estimate, variance = np.zeros(groups[0].shape[1]), np.zeros(groups[0].shape[1])
    moved: Any = 0.0
    spread: Any = 0.0
    for sign, group, count in zip((1.0, -1.0), groups, counts, strict=False):
        n = len(group)
        mean = _mean(group)
        centred = group - mean  # keeps the differences of squares below exact enough
        shift = count @ centred / n
        squares = count @ np.square(centred) / n
        estimate = estimate + sign * mean
        variance = variance + _variance(group)
        moved = moved + sign * shift
        apart = squares - np.square(shift)
        spread = spread + np.where(apart > _LEAST_SPREAD * squares, apart, 0.0) / (n - 1)
    se = np.sqrt(variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = moved / np.sqrt(spread)
        t = np.where(se > 0, estimate / se, np.nan)
    # A resample of equal values has no spread: it is beyond every quantile, on its side.
    ratio = np.sort(np.where(np.isnan(ratio), 0.0, ratio), axis=0)
    above = (1 + (ratio >= t).sum(0)) / (len(ratio) + 1)
    below = (1 + (ratio <= t).sum(0)) / (len(ratio) + 1)
    ends = []
    for share in (tail, tail / cells):
        low, high = _quantiles(ratio, share)
        ends += [estimate - high * se, estimate - low * se]
    p = np.minimum(1.0, 2 * np.minimum(above, below))
    none = np.where(se > 0, 0.0, np.nan)
    return (estimate, se, *(end + none for end in ends), p + none, below + none)


def _quantiles(ordered: Array, share: float) -> tuple[Array, Array]:
    """Return the values beyond which a share of resamples lies, infinite for less than one."""
    place = math.floor(share * (len(ordered) + 1)) - 1
    if place < 0:
        infinite = np.full(ordered.shape[1], np.inf)
        return -infinite, infinite
    return ordered[place], ordered[-1 - place]
