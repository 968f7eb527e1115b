"""Whether one measure goes with another over a sweep of settings: rank correlations with intervals.

Granulated coefficients are those of Jiang et al. 2020, section 4: among networks that differ in one
setting only, so that no other setting can bring them about.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]  # places of rows; resamples hold some of them several times

CONFIDENCE = 0.95
FEWEST = 5  # cells, or groups of them, whose resamples show a spread
_RESAMPLES = 1_000


@dataclass(frozen=True)
class Estimate:
    """A coefficient with a percentile interval of the bootstrap over cells; NaN where unknown."""

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 where the interval excludes 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)

    @property
    def text(self) -> str:
        """The coefficient and its interval."""
        if np.isnan(self.value):
            return "unknown, since nothing left varies"
        if np.isnan(self.low):
            return f"{self.value:+.2f} (of too few cells for an interval)"
        return f"{self.value:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


def kendall(frame: pd.DataFrame, x: str, y: str) -> Callable[[Rows], float]:
    """Return Kendall's tau-b as a function of rows; NaN where one measure does not vary."""
    first, second = (frame[name].to_numpy("float64") for name in (x, y))

    def of(rows: Rows) -> float:
        """Return tau of a resample; NaN where one of the columns is constant."""
        one, other = first[rows], second[rows]
        if np.ptp(one) == 0 or np.ptp(other) == 0:
            return float("nan")
        return float(stats.kendalltau(one, other).statistic)

    return of


def granulated(
    frame: pd.DataFrame, x: str, y: str, axis: str, settings: Sequence[str]
) -> Callable[[Rows], float]:
    """Return the granulated tau along one setting, as a function of rows; NaN without any pair.

    It is the mean over pairs of rows that differ in `axis` alone, of `settings`, of 1 where x and y
    change in the same direction, -1 where in opposite ones, and 0 where one does not change.
    """
    first, second, signs = [], [], []
    values = frame[[x, y, axis]].to_numpy("float64")
    others = [name for name in settings if name != axis]
    for places in frame.groupby(others, sort=False).indices.values():
        for index, one in enumerate(places):
            for other in places[index + 1 :]:
                change = np.sign(values[other] - values[one])
                if change[2]:
                    first.append(one)
                    second.append(other)
                    signs.append(change[0] * change[1])

    def of(rows: Rows) -> float:
        """Return the mean sign of a resample, a pair weighted by how often its runs were drawn."""
        counts = np.bincount(rows, minlength=len(frame))
        weights = counts[first] * counts[second] if first else np.zeros(0)
        total = weights.sum()
        return float(weights @ np.array(signs) / total) if total else float("nan")

    return of


def partial(frame: pd.DataFrame, x: str, y: str, given: Sequence[str]) -> Callable[[Rows], float]:
    """Return the partial Spearman correlation, as a function of rows.

    It is the correlation of the ranks of x and y after a linear fit of both by the ranks of
    `given`; NaN where nothing is left to correlate, or a single direction, in which any two
    measures have 1 or -1.
    """
    values = frame[[x, y, *given]].to_numpy("float64")
    fewest = len(given) + 3  # one for the mean, and two directions that are left

    def of(rows: Rows) -> float:
        """Return the partial correlation of a resample; NaN where the controls leave nothing."""
        if len(np.unique(rows)) < fewest:
            return float("nan")
        ranks = stats.rankdata(values[rows], axis=0)
        ranks -= ranks.mean(0)
        controls = ranks[:, 2:]
        rest = ranks[:, :2] - controls @ np.linalg.lstsq(controls, ranks[:, :2], rcond=None)[0]
        lengths = np.linalg.norm(rest, axis=0)
        # What is left of a measure that the controls determine is rounding.
        if (lengths <= 1e-9 * np.linalg.norm(ranks[:, :2], axis=0)).any():
            return float("nan")
        return float(rest[:, 0] @ rest[:, 1] / lengths.prod())

    return of


def n_groups(frame: pd.DataFrame, axis: str, cell: Sequence[str]) -> int:
    """Return how many groups of cells there are that differ in one setting only."""
    others = [name for name in cell if name != axis]
    counts = frame.groupby(others)[axis].nunique()
    return int((counts > 1).sum())


def over_cells(
    frame: pd.DataFrame,
    cell: Sequence[str],
    of: Callable[[Rows], float],
    groups: int | None = None,
    seed: int = 0,
) -> Estimate:
    """Return a coefficient with its interval: whole cells, with all of their seeds, are resampled.

    Args:
        frame: A row for each network.
        cell: The columns that name a cell.
        of: The coefficient, of rows of the frame.
        groups: How many groups of cells it is a mean over, if it is one.
        seed: Of the resamples.
    """
    parts = [np.asarray(rows) for rows in frame.groupby(list(cell), sort=True).indices.values()]
    draw = np.random.default_rng(seed)
    whole = of(np.arange(len(frame)))
    if np.isnan(whole) or min(len(parts), groups or len(parts)) < FEWEST:
        return Estimate(whole, float("nan"), float("nan"))
    drawn = draw.integers(len(parts), size=(_RESAMPLES, len(parts)))
    values = np.array([of(np.concatenate([parts[index] for index in one])) for one in drawn])
    known = values[~np.isnan(values)]
    if len(known) < len(values) / 2:  # too few to show a spread
        return Estimate(whole, float("nan"), float("nan"))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return Estimate(whole, float(low), float(high))
