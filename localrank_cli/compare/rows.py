"""Differences and onsets as rows of tables."""

import math
from collections.abc import Iterable, Iterator

from localrank_cli.compare.differences import Difference
from localrank_cli.compare.groups import Groups
from localrank_cli.compare.onset import Onset
from localrank_cli.results.columns import Cell, Row

DIFFERENCE_COLUMNS = (
    "group", "reference", "layer", "step", "measure", "tolerance", "n_runs", "n_runs_reference",
    "mean", "mean_reference", "difference", "se", "low", "high", "low_all", "high_all", "p",
    "p_holm", "over", "confidence",
)  # fmt: skip
ONSET_COLUMNS = (
    "group", "layer", "measure", "tolerance", "n_runs", "first_step", "first", "last_step", "last",
    "onset", "fall", "fall_low", "fall_high", "peak", "peak_step", "over", "confidence",
)  # fmt: skip
_INTERVALS = ("se", "low", "high", "low_all", "high_all", "p", "p_holm")


def difference_rows(
    groups: Groups, found: Iterable[Difference], confidence: float
) -> Iterator[Row]:
    """Yield a row for each group, layer and step."""
    for one in found:
        means = [group.ranks.mean(0) for group in (one.group, one.reference)]
        grids = {name: one.grid(name) for name in ("estimate", *_INTERVALS)}
        for index, layer in enumerate(groups.layers):
            for place, step in enumerate(groups.steps):
                yield {
                    "group": one.group.name,
                    "reference": one.reference.name,
                    "layer": layer,
                    "step": step,
                    "measure": groups.choice.y,
                    "tolerance": groups.tolerance,
                    "n_runs": len(one.group.runs),
                    "n_runs_reference": len(one.reference.runs),
                    "mean": _cell(means[0][index, place]),
                    "mean_reference": _cell(means[1][index, place]),
                    "difference": _cell(grids["estimate"][index, place]),
                    **{name: _cell(grids[name][index, place]) for name in _INTERVALS},
                    "over": one.over,
                    "confidence": confidence,
                }


def onset_rows(groups: Groups, found: Iterable[Onset], confidence: float) -> Iterator[Row]:
    """Yield a row for each group and layer."""
    for one in found:
        yield {
            "group": one.group,
            "layer": one.layer,
            "measure": groups.choice.y,
            "tolerance": groups.tolerance,
            "n_runs": one.n_runs,
            "first_step": groups.steps[0],
            "first": _cell(one.first),
            "last_step": groups.steps[-1],
            "last": _cell(one.last),
            "onset": one.step,
            "fall": _cell(one.fall),
            "fall_low": _cell(one.fall_low),
            "fall_high": _cell(one.fall_high),
            "peak": _cell(one.peak),
            "peak_step": one.peak_step,
            "over": one.over,
            "confidence": confidence,
        }


def _cell(value: float) -> Cell:
    return None if math.isnan(value) else float(value)
