"""The numbers of the page, small enough to share: a table as JSON, and ranks for the slider."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd

from localrank_cli.errors import DataError
from localrank_cli.results.choose import layers_by_depth
from localrank_cli.results.columns import MEANINGS, whole
from localrank_cli.results.kept import Array, SpectraFile, Spectrum

Json = dict[str, Any]
_DIGITS = 5  # more than a tooltip shows
_MOST_VALUES = 400_000  # about 4 MB of JSON, which browsers and mail still handle well
_PER_DECADE = 10  # positions of the slider
_DECADES = 6  # below the largest singular value; lower ones are mostly rounding
_MOST_RANKS = 300_000  # about 3 MB of JSON, beside the 4 MB of the table
_ROUNDING = 1e-8  # relative; a table holds 9 significant digits
_KINDS = ("atol", "rtol")


def page_data(frame: pd.DataFrame) -> tuple[Json, tuple[str, ...]]:
    """Collect the numbers of the page, to embed as JSON, and notes on what was left out.

    `frame` holds no failed rows.

    Raises:
        DataError: If the table has no measure, or several rows for one place.
    """
    measures = [
        name
        for name in MEANINGS
        if name in frame.columns and np.isfinite(frame[name].astype("float64")).any()
    ]
    if not measures:
        raise DataError("the table has no column of a measure, such as local_rank.")
    repeated = frame[frame.duplicated(["run", "step", "layer", "tolerance"])]
    if len(repeated):
        row = repeated.iloc[0]
        raise DataError(
            f"several rows describe layer {row['layer']} of {row['run']} at step {int(row['step'])}"
            f" and {row['tolerance']}.",
            "Keep one row for each run, step, layer and tolerance.",
        )
    tolerances = [str(label) for label in dict.fromkeys(frame["tolerance"])]
    frame, notes = _fewer_steps(frame, _columns(measures, len(tolerances)))
    runs = [
        {"name": str(run), "layers": _layers(part, measures, tolerances)}
        for run, part in frame.groupby("run", sort=False)
    ]
    return {
        "measures": [
            {
                "name": name,
                "label": meaning.label,
                "sentence": meaning.sentence,
                "kind": meaning.kind,
                "uses_tolerance": meaning.uses_tolerance,
            }
            for name, meaning in MEANINGS.items()
            if name in measures
        ],
        "tolerances": tolerances,
        "layers": layers_by_depth(frame),
        "runs": runs,
        "spectra": None,
    }, notes


def round_values(values: Iterable[float]) -> list[float | int | None]:
    """Round to five significant digits; integers lose the point, non-finite values become None."""
    found: list[float | int | None] = []
    for value in values:
        if not np.isfinite(value):
            found.append(None)
            continue
        short = float(f"{value:.{_DIGITS}g}")
        found.append(int(short) if short == int(short) else short)
    return found


def _columns(measures: list[str], tolerances: int) -> int:
    return sum(2 * (tolerances if MEANINGS[name].uses_tolerance else 1) for name in measures)


def _fewer_steps(frame: pd.DataFrame, columns: int) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Drop steps evenly until the page is small enough."""
    places = frame.drop_duplicates(["run", "step", "layer"])
    count = len(places) * columns
    if count <= _MOST_VALUES:
        return frame, ()
    steps = np.array(sorted(set(frame["step"])))
    most = max(2, int(len(steps) * _MOST_VALUES / count))
    # Evenly spaced on a log axis too, so that the first steps are not lost.
    at = np.log1p(np.maximum(steps, 0))
    goals = np.linspace(at[0], at[-1], most // 2)
    near = np.clip(np.searchsorted(at, goals), 0, len(steps) - 1)
    even = np.linspace(0, len(steps) - 1, most - most // 2).round().astype(int)
    kept = steps[np.unique(np.concatenate([near, even, [0, len(steps) - 1]]))]
    note = f"the page holds {len(kept)} of {len(steps)} steps to stay small"
    return frame[frame["step"].isin(kept)], (note,)


def _layers(part: pd.DataFrame, measures: list[str], tolerances: list[str]) -> list[Json]:
    found = []
    by_layer = dict(tuple(part.groupby("layer", sort=False)))
    for layer in layers_by_depth(part):
        rows = by_layer[layer].sort_values("step", kind="stable")
        steps = sorted({int(step) for step in rows["step"]})
        by_tolerance = {
            label: rows[rows["tolerance"] == label].set_index("step").reindex(steps)
            for label in tolerances
        }
        first = rows.drop_duplicates("step").set_index("step").reindex(steps)
        values: Json = {}
        for name in measures:
            chosen = by_tolerance if MEANINGS[name].uses_tolerance else {"": first}
            values[name] = {label: _column(table, name) for label, table in chosen.items()}
        largest = (
            [rows["max_rank"].max()] if "max_rank" in rows.columns else [rows[measures[0]].max()]
        )
        sizes = [rows[name].iloc[0] for name in ("n_out", "n_in") if name in rows.columns]
        found.append(
            {
                "name": layer,
                "max_rank": round_values(largest)[0] or 1,
                "size": " x ".join(map(whole, sizes)),
                "steps": steps,
                "values": values,
            }
        )
    return found


def _column(rows: pd.DataFrame, name: str) -> Json:
    column: Json = {"y": round_values(rows[name].astype("float64"))}
    error = f"{name}_se"
    if error in rows.columns and (rows[error] > 0).any():
        column["e"] = round_values(rows[error].astype("float64"))
    return column


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
            "the singular values belong to different runs from those in the table, so the page has"
            " no slider",
        )
    found = {run: spectra.read(run, (), sorted(set(steps[run]))) for run in shared}
    every = [one for spectra_of_run in found.values() for one in spectra_of_run]
    per_decade = max(2, min(_PER_DECADE, _MOST_RANKS // (2 * _DECADES * len(every))))
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
                layers.setdefault(one.layer, {})[str(one.step)] = round_values(ranks)
        kept[kind] = {"grid": grid.tolist(), "runs": runs}
    return kept, () if frame is None else _contradiction(every, frame, labels)


def _labels(frame: pd.DataFrame, one: Spectrum) -> list[str]:
    """Return the table's tolerances; a table made by hand may have others than localrank's."""
    found = []
    for label in dict.fromkeys(frame["tolerance"]):
        with suppress(ValueError):  # not a tolerance of localrank's
            if 0 < one.number_of(label) < np.inf:
                found.append(label)
    return found


def _of_table(every: Sequence[Spectrum], labels: Sequence[str], kind: str) -> list[float]:
    """Return the numbers of the table's tolerances of one kind."""
    found = [label for label in labels if label.startswith(f"{kind}=")]
    plain = {every[0].number_of(label) for label in found if label != "rtol=eps"}
    # One number for each shape of layer; hundreds of shapes would make the page too large.
    by_shape = {one.number_of(label) for label in found if label == "rtol=eps" for one in every}
    if len(by_shape) * len(every) > _MOST_RANKS:
        by_shape = set()
    return sorted(plain | by_shape)


def _contradiction(
    every: Sequence[Spectrum], frame: pd.DataFrame, labels: Sequence[str]
) -> tuple[str, ...]:
    """Return a note on the first rank that differs from that of the singular values, if any."""
    if "local_rank" not in frame.columns:
        return ()
    frame = frame[frame["tolerance"].isin(labels)]
    kept = {(one.run, one.step, one.layer): one for one in every}
    if "n_undecided" in frame.columns:  # another machine may count these differently
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
                f" {step} has rank {rank:.5g} in the table but {counted:.5g} by the singular"
                " values;"
                " pass the folder kept with this table to --spectra",
            )
    return ()


def _grid(top: float, per_decade: int) -> Array:
    """Return tolerances of few digits, so that typical tolerances of a table are among them."""
    last = int(np.ceil(top))
    exponents = np.arange((last - _DECADES) * per_decade, last * per_decade + 1) / per_decade
    return np.array([float(f"{10.0**exponent:.3g}") for exponent in exponents])
