"""Local rank at every tolerance of a slider, from kept singular values."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd

from localrank_cli.report.data import Json, rounded
from localrank_cli.results.kept import Array, SpectraFile, Spectrum

_PER_DECADE = 10  # positions of the slider
_DECADES = 6  # below the largest singular value; lower ones are mostly rounding
_MOST_VALUES = 300_000  # about 3 MB of JSON, beside the 4 MB of the table
_ROUNDING = 1e-8  # relative; a table holds 9 significant digits
_KINDS = ("atol", "rtol")


def slider_data(
    spectra: SpectraFile, steps: Mapping[str, Sequence[int]], frame: pd.DataFrame | None = None
) -> tuple[Json | None, tuple[str, ...]]:
    """Compute mean ranks over points on two grids of tolerances, absolute and relative.

    Args:
        spectra: The kept singular values.
        steps: The steps of each run of the page.
        frame: The table of the page: its tolerances are added to the grids, and its ranks are
            compared with those of the singular values.

    Returns:
        For `atol` and `rtol` the grid, and ranks by run, layer and step; None if the singular
        values belong to other runs. And notes.
    """
    shared = [run for run in spectra.runs if run in steps]
    if not shared:
        return None, (
            "the singular values belong to other runs than the table; the page has no slider",
        )
    found = {run: spectra.read(run, (), sorted(set(steps[run]))) for run in shared}
    every = [one for spectra_of_run in found.values() for one in spectra_of_run]
    per_decade = max(2, min(_PER_DECADE, _MOST_VALUES // (2 * _DECADES * len(every))))
    top = max(one.largest for one in every) or 1.0
    labels = [] if frame is None else _labels(frame, every[0])
    kept: Json = {}
    for kind, highest in zip(_KINDS, (np.log10(top), 0.0), strict=True):
        grid = np.union1d(_grid(highest, per_decade), _of_table(every, labels, kind))
        runs: dict[str, dict[str, dict[str, Any]]] = {}
        for run, spectra_of_run in found.items():
            layers = runs.setdefault(run, {})
            for one in spectra_of_run:
                ranks = one.ranks(grid, relative=kind == "rtol")
                layers.setdefault(one.layer, {})[str(one.step)] = rounded(ranks)
        kept[kind] = {"grid": grid.tolist(), "runs": runs}
    return kept, () if frame is None else _contradiction(every, frame, labels)


def _labels(frame: pd.DataFrame, one: Spectrum) -> list[str]:
    """Return the table's tolerances; a table made by hand may have others than localrank's."""
    found = []
    for label in dict.fromkeys(frame["tolerance"]):
        with suppress(ValueError):
            if 0 < one.number_of(label) < np.inf:
                found.append(label)
    return found


def _of_table(every: Sequence[Spectrum], labels: Sequence[str], kind: str) -> list[float]:
    """Return the numbers of the table's tolerances of one kind."""
    found = [label for label in labels if label.startswith(f"{kind}=")]
    plain = {every[0].number_of(label) for label in found if label != "rtol=eps"}
    # One number for each shape of layer; hundreds of shapes would make the page too large.
    by_shape = {one.number_of(label) for label in found if label == "rtol=eps" for one in every}
    if len(by_shape) * len(every) > _MOST_VALUES:
        by_shape = set()
    return sorted(plain | by_shape)


def _contradiction(
    every: Sequence[Spectrum], frame: pd.DataFrame, labels: Sequence[str]
) -> tuple[str, ...]:
    """Return a note on the first rank that the singular values do not give, if any."""
    if "local_rank" not in frame.columns:
        return ()
    frame = frame[frame["tolerance"].isin(labels)]
    kept = {(one.run, one.step, one.layer): one for one in every}
    if "n_undecided" in frame.columns:  # another machine may count these otherwise
        frame = frame[~(frame["n_undecided"] > 0)]
    names = ["run", "step", "layer", "tolerance", "local_rank"]
    for run, step, layer, label, rank in frame[names].itertuples(index=False):
        one = kept.get((run, step, layer))
        if one is None or np.isnan(rank):
            continue
        counted = one.rank_at(label)
        if abs(counted - rank) > _ROUNDING * max(1.0, abs(rank)):
            return (
                f"the slider does not match the table: at {label}, layer {layer} of {run} at step"
                f" {step} has rank {rank:.5g} in the table and {counted:.5g} by the singular"
                " values;"
                " pass the folder kept with this table to --spectra",
            )
    return ()


def _grid(top: float, per_decade: int) -> Array:
    """Return tolerances of few digits, so that typical tolerances of a table are among them."""
    last = int(np.ceil(top))
    exponents = np.arange((last - _DECADES) * per_decade, last * per_decade + 1) / per_decade
    return np.array([float(f"{10.0**exponent:.3g}") for exponent in exponents])
