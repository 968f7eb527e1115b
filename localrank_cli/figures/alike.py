"""Find runs of a table that may be averaged: those that differ only in their seed."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from localrank_cli.errors import listed, one_line
from localrank_cli.results.columns import COLUMNS, OPTIONAL, whole

# The settings of each run that decide its numbers, by the name of the setting.
RunSettings = Mapping[str, Mapping[str, object]]

# Columns of localrank that hold a setting; constants of the user come besides.
_SETTINGS = (
    "wrt", "positions", "jacobian", "input_metric", "dtype", "n_cov", "input_slice", "output_slice",
    "sigma_1_of",
)  # fmt: skip
_NO_SETTINGS = {"table", "x", "y", "error", *COLUMNS, *OPTIONAL}
_SHOWN = 3  # values of a setting in a note
_LONGEST_TITLE = 40  # of a panel, in letters: longer ones would be cut


@dataclass(frozen=True)
class Group:
    """Runs that may be averaged.

    Args:
        name: What distinguishes it, for the title of its panel; the run, if it is a single one.
        frame: Their rows.
    """

    name: str
    frame: pd.DataFrame


@dataclass(frozen=True)
class Grouping:
    """The groups of a table's runs, and how they differ or might; the note may be empty."""

    groups: tuple[Group, ...]
    note: str = ""


def group_alike(
    frame: pd.DataFrame, settings: RunSettings | None = None, axes: Collection[str] = ()
) -> Grouping:
    """Group the rows of a choice by the settings of their runs, except the seed.

    Columns that a figure has as axes, or that distinguish its panels, do not count.

    Where every run has one place on the axis (a table of final states over a constant), only runs
    at the same place can be averaged, and only what differs between these counts.
    """
    runs = list(dict.fromkeys(frame["run"]))
    facts = {run: _facts(part, axes) for run, part in frame.groupby("run", sort=False)}
    for run, one in (settings or {}).items():
        if run in facts:
            facts[run] |= {key: _text(value) for key, value in one.items()}
    names = list(dict.fromkeys(name for run in runs for name in facts[run]))
    together = [runs]
    if "step" not in axes and frame.groupby("run")["x"].nunique().max() == 1:
        together = [list(part["run"].unique()) for _, part in frame.groupby("x")]
    differ = [
        name for name in names if any(_differs(name, [facts[r] for r in some]) for some in together)
    ]
    unknown = _without_settings(runs, settings or {})
    if not differ:
        return Grouping((Group("", frame),), unknown)
    members: dict[tuple[str, ...], list[Any]] = {}
    for run in runs:
        members.setdefault(tuple(facts[run].get(name, "") for name in differ), []).append(run)
    groups = []
    for values, some in members.items():
        pairs = [f"{name} = {value or 'none'}" for name, value in zip(differ, values, strict=True)]
        title = ", ".join(pairs)
        if len(some) == 1 or len(title) > _LONGEST_TITLE:
            title = listed(map(str, some), 2)
        groups.append(Group(title, frame[frame["run"].isin(some)]))
    sentence = listed(
        _sentence(name, [facts[run].get(name, "") for run in runs]) for name in differ
    )
    note = f"the runs differ in {sentence}, so they are drawn side by side and not as a mean"
    return Grouping(tuple(groups), f"{note}; {unknown}" if unknown else note)


def _without_settings(runs: Sequence[Any], settings: RunSettings) -> str:
    """Return that some runs record no settings while others do; "" where all or none do."""
    missing = [str(run) for run in runs if run not in settings]
    if not missing or len(missing) == len(runs):
        return ""
    return f"{listed(missing)} has no manifest, so it is not known whether its settings differ"


def _differs(name: str, facts: list[dict[str, str]]) -> bool:
    # A setting that one run does not record is not known to differ.
    return len({one[name] for one in facts if name in one}) > 1


def _sentence(name: str, values: list[str]) -> str:
    texts = [value or "none" for value in dict.fromkeys(values)]
    if any(len(text) > 30 for text in texts):
        return name
    if any(", " in text for text in texts):  # a list itself
        more = f"; {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
        return f"{name} ({'; '.join(texts[:_SHOWN])}{more})"
    return f"{name} ({listed(texts, _SHOWN)})"


def _facts(rows: pd.DataFrame, axes: Collection[str]) -> dict[str, str]:
    """Return the settings of a run that its rows show."""
    facts = dict(_constants(rows, axes))
    shapes = rows.drop_duplicates("layer").set_index("layer")
    facts["layers"] = listed(sorted(map(str, shapes.index)), 10**6)
    sizes = [name for name in ("n_out", "n_in") if name in shapes.columns]
    if sizes:
        facts["sizes of layers"] = ", ".join(
            f"{layer} {' x '.join(whole(shapes.loc[layer, name]) for name in sizes)}"
            for layer in sorted(shapes.index)
        )
    if {"n_points", "n_failed"} <= set(rows.columns):
        facts["points"] = whole((rows["n_points"] + rows["n_failed"]).max())
    return facts


def _constants(rows: pd.DataFrame, axes: Collection[str]) -> Iterator[tuple[str, str]]:
    own = [str(name) for name in rows.columns if name not in _NO_SETTINGS]
    for name in (*_SETTINGS, *own):
        if name not in rows.columns or name in axes or "seed" in name.lower():
            continue
        values = rows[name].drop_duplicates()
        # A column that changes within a run is a measurement.
        if len(values) == 1:
            yield name, _text(values.iloc[0])


def _text(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:g}" if isinstance(value, float) else one_line(str(value))
