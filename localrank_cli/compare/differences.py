"""Differences of groups from their reference, by layer and step."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from localrank_cli.compare.groups import Group, Groups
from localrank_cli.compare.intervals import (
    BOOTSTRAP_FROM,
    Array,
    Intervals,
    are_unequal,
    holm,
    of_change,
    of_difference,
    of_summaries,
)
from localrank_cli.errors import SettingsError

POINTS = "points"  # what intervals over points instead of runs are called in tables


@dataclass(frozen=True)
class Difference:
    """One group minus the reference.

    Args:
        over: What the intervals are over, and how: `runs, Welch's t`, ..., or `points`.
        cells: Intervals of each layer and step, in this order; NaN where a run has no value.
        p_holm: Two-sided p-values for all cells together.
        shape: Layers and steps.
    """

    group: Group
    reference: Group
    over: str
    cells: Intervals
    p_holm: Array
    shape: tuple[int, int]

    @property
    def is_over_points(self) -> bool:
        """Whether there is one run in each group, so that nothing is known about other seeds."""
        return self.over == POINTS

    @property
    def is_unequal(self) -> bool:
        """Whether independent groups have too unequal numbers of runs for Welch's approximation."""
        first, second = (np.array(len(one.runs)) for one in (self.reference, self.group))
        return "Welch" in self.over and bool(are_unequal(first, second))

    def grid(self, name: str) -> Array:
        """Return a field of the cells, or `p_holm`, in shape (layers, steps)."""
        cells = self.p_holm if name == "p_holm" else getattr(self.cells, name)
        return np.reshape(cells, self.shape)


def differences(groups: Groups, confidence: float, seed: int = 0) -> Iterator[Difference]:
    """Yield the difference of each further group from the first.

    Raises:
        SettingsError: If one group has a single run and the other several, or there are no standard
            errors for intervals over the points of single runs.
    """
    reference = groups.groups[0]
    for group in groups.groups[1:]:
        over, cells = _cells(reference, group, groups.choice.y, confidence, seed)
        shape = (len(groups.layers), len(groups.steps))
        yield Difference(group, reference, over, cells, holm(cells.p_joint), shape)


def _cells(
    reference: Group, group: Group, y: str, confidence: float, seed: int
) -> tuple[str, Intervals]:
    counts = (len(reference.runs), len(group.runs))
    if max(counts) == 1:
        return POINTS, _over_points(reference, group, y, confidence)
    if min(counts) == 1:
        single, several = sorted((reference, group), key=lambda one: len(one.runs))
        raise SettingsError(
            f"{single.name} has one run and {several.name} has {len(several.runs)}: the spread over"
            " runs is unknown for a single run.",
            "Give two or more runs of each, or one of each to compare them over points.",
        )
    first, second = (one.ranks.reshape(len(one.runs), -1) for one in (reference, group))
    bootstrap = min(counts) >= BOOTSTRAP_FROM
    if reference.keys and reference.keys == group.keys:
        over = f"pairs of runs, {'bootstrap' if bootstrap else 'paired t'}"
        return over, of_change(first, second, confidence, seed)
    over = f"runs, {'bootstrap' if bootstrap else 'Welch t'}"
    return over, of_difference(first, second, confidence, seed)


def check_errors(group: Group, y: str) -> None:
    """Check that a single run has standard errors over its points, and their number.

    Raises:
        SettingsError: If it has none.
    """
    if not np.isfinite(group.errors).any():
        raise SettingsError(
            f"--y {y}: {group.name} has no standard errors over points, which a single run is"
            " judged by.",
            "Give several runs of each group, or another measure with --y.",
        )
    if not np.isfinite(group.points).any():
        raise SettingsError(
            f"{group.name} has no n_points, the number of points that a single run is judged by.",
            "Add the column, or give several runs of each group.",
        )


def _over_points(reference: Group, group: Group, y: str, confidence: float) -> Intervals:
    """Estimate a difference of single runs over their points.

    The points of both are taken as independent: where they are the same points, as with one data
    file and seed, the intervals are usually too wide and not too narrow.

    Raises:
        SettingsError: If the table has no standard errors of `y`.
    """
    for one in (reference, group):
        check_errors(one, y)
    return of_summaries(
        (group.ranks[0] - reference.ranks[0]).ravel(),
        (reference.errors[0].ravel(), group.errors[0].ravel()),
        (reference.points[0].ravel(), group.points[0].ravel()),
        confidence,
    )
