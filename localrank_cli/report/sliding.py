"""Local rank at every tolerance of a slider, from kept singular values."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from localrank_cli.report.data import Json, rounded
from localrank_cli.table.spectra import Array, SpectraFile, counts

_PER_DECADE = 10
_DECADES = 6  # under the largest singular value; what lies lower is mostly rounding
_MOST_VALUES = 300_000


def slider_data(
    spectra: SpectraFile,
    steps: Mapping[str, Sequence[int]],
    marks: Mapping[str, Collection[float]] | None = None,
) -> tuple[Json | None, tuple[str, ...]]:
    """Mean ranks over the points on two grids of tolerances, absolute and relative.

    Args:
        spectra: The kept singular values.
        steps: Of each run of the page.
        marks: Tolerances of the table, `atol` and `rtol`, at which the slider can stop exactly.

    Returns:
        For `atol` and `rtol` the grid, and ranks by run, layer and step; None where the file is of
        other runs. And what to say.
    """
    shared = [run for run in spectra.runs if run in steps]
    if not shared:
        return None, ("the singular values are of other runs than the table; no slider is made",)
    found = {run: spectra.read(run, (), sorted(set(steps[run]))) for run in shared}
    every = [one for spectra_of_run in found.values() for one in spectra_of_run]
    per_decade = max(2, min(_PER_DECADE, _MOST_VALUES // (2 * _DECADES * len(every))))
    top = max(float(one.values.max(initial=0.0)) for one in every) or 1.0
    grids = {"atol": _grid(np.log10(top), per_decade), "rtol": _grid(0.0, per_decade)}
    for kind, values in (marks or {}).items():
        grids[kind] = np.union1d(grids[kind], np.array([v for v in values if v > 0]))
    kept: Json = {}
    for kind, grid in grids.items():
        runs: dict[str, dict[str, dict[str, Any]]] = {}
        for run, spectra_of_run in found.items():
            layers = runs.setdefault(run, {})
            for one in spectra_of_run:
                ranks = counts(one, grid, relative=kind == "rtol")
                layers.setdefault(one.layer, {})[str(one.step)] = rounded(ranks)
        kept[kind] = {"grid": [float(f"{value:.9g}") for value in grid], "runs": runs}
    return kept, ()


def _grid(top: float, per_decade: int) -> Array:
    """Tolerances with few digits."""
    last = int(np.ceil(top))
    exponents = np.arange((last - _DECADES) * per_decade, last * per_decade + 1) / per_decade
    return np.array([float(f"{10.0**exponent:.3g}") for exponent in exponents])
