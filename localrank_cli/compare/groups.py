"""Groups of runs, taken from a table: their values by layer and step."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from localrank_cli.compare.intervals import Array
from localrank_cli.errors import DataError, SettingsError, listed
from localrank_cli.results.choose import layers_by_depth, matching, need_numbers, of_one
from localrank_cli.results.columns import MEANINGS, meaning
from localrank_cli.results.read import without_failed

_SEED = "seed"
_NONE = "none"  # what an empty cell is called
_FINAL_KEY = ["run", "step", "layer"]
# What a number is a measure of: values that differ in it are not the same quantity.
_QUANTITY = (
    "positions", "jacobian", "wrt", "input_slice", "output_slice", "sigma_1_of",
)  # fmt: skip
_NOT_BY = ("step", "layer", "layer_index", "tolerance", "atol", "rtol")


@dataclass(frozen=True)
class Choice:
    """What is compared.

    Args:
        y: The measure, or any numeric column.
        layers: Globs for layers, `!` excludes; empty: all layers.
        tolerance: Its label; required if the table has several and the measure depends on them.
        input_metric: Required if the table has several.
        by: The column whose values are the groups; None: the tables, or the runs of a single one.
        reference: The group that the others are compared with; None: the first.
        pair: The column that pairs runs of two groups, usually the seed; None: `seed` where there
            is such a column, else the names of the runs where they are the same in both groups.
    """

    y: str = "local_rank"
    layers: tuple[str, ...] = ()
    tolerance: str | None = None
    input_metric: str | None = None
    by: str | None = None
    reference: str | None = None
    pair: str | None = None


@dataclass(frozen=True)
class Group:
    """Runs of one kind.

    Args:
        name: The value of the column that makes groups, or the name of a table or run.
        runs: The names of its runs.
        keys: What pairs each run with one of another group; empty if nothing does.
        ranks: The measure, shape (runs, layers, steps); NaN where a run has none.
        errors: Its standard errors over points, of the same shape; NaN where there are none.
        points: How many points each value is a mean of, of the same shape.
    """

    name: str
    runs: tuple[str, ...]
    keys: tuple[str, ...]
    ranks: Array
    errors: Array
    points: Array


@dataclass(frozen=True)
class Groups:
    """The groups of a table on common layers and steps.

    Args:
        groups: The reference first.
        layers: In order of depth.
        steps: Ascending.
        choice: What was chosen.
        tolerance: The label for titles; empty if the measure does not depend on it.
        notes: What was left out.
    """

    groups: tuple[Group, ...]
    layers: tuple[str, ...]
    steps: tuple[int, ...]
    choice: Choice
    tolerance: str
    notes: tuple[str, ...]

    @property
    def label(self) -> str:
        """The measure with its tolerance."""
        label = meaning(self.choice.y).label
        return f"{label} at {self.tolerance}" if self.tolerance else label


def find_groups(frame: pd.DataFrame, choice: Choice) -> Groups:
    """Find the groups of runs in a table that `read_tables` returned.

    Raises:
        SettingsError: If there is only one group, a choice is missing or is not in the table, or
            the groups have no layer or no step in common.
        DataError: If several rows describe one run, layer and step.
    """
    rows, note = without_failed(frame)
    notes = [note] if note else []
    need_numbers(rows, "--y", choice.y)
    _check_values(rows, choice.y)
    rows = of_one(rows, "input_metric", choice.input_metric, "--input-metric")
    uses_tolerance = meaning(choice.y).uses_tolerance
    if uses_tolerance or choice.tolerance is not None:
        rows = of_one(rows, "tolerance", choice.tolerance, "--tolerance")
    tolerance = str(rows["tolerance"].iloc[0]) if uses_tolerance else ""
    rows = _one_row_each(rows, choice.y)
    parts = _parts(rows, choice)
    layers, steps, left_out = _common(rows, parts)
    notes += left_out
    layers = matching(layers, choice.layers)
    _check_quantity(rows[rows["layer"].isin(layers)], choice.by)
    notes += _other_sizes(rows, layers)
    notes += _copies(rows, parts)
    groups = [_group(name, part, choice, layers, steps) for name, part in parts.items()]
    return Groups(
        tuple(_paired(groups, choice.pair)), tuple(layers), tuple(steps), choice, tolerance,
        tuple(notes),
    )  # fmt: skip


def _check_values(rows: pd.DataFrame, y: str) -> None:
    """Check that there is something to compare: intervals leave the columns of the rank empty."""
    there = np.isfinite(rows[y].astype("float64"))
    bounds = [name for name in ("rank_low", "rank_high") if name in rows.columns]
    bounded = np.isfinite(rows[bounds].astype("float64")).all(axis=1) & (len(bounds) == 2)
    empty = bounded & ~there
    if empty.any():
        run = rows["run"][empty].iloc[0]
        raise SettingsError(
            f"--y {y}: there is no {y} in the rows of run {run}, which --method interval computed.",
            "Compare the bounds of several runs in each group with --y rank_low or --y rank_high.",
        )
    if not there.any():
        raise SettingsError(
            f"--y {y}: no row has a finite value.", "Choose another measure with --y."
        )


def _one_row_each(rows: pd.DataFrame, y: str) -> pd.DataFrame:
    # Measures without a tolerance have the same value in the rows of each.
    rows = rows.drop_duplicates([*_FINAL_KEY, y])
    twice = rows.duplicated(_FINAL_KEY, keep=False)
    if twice.any():
        first = rows[twice].iloc[0]
        raise DataError(
            f"several rows describe layer {first['layer']} of run {first['run']} at step"
            f" {int(first['step'])}, with different {y}.",
            "Keep one row for each run, step, layer and tolerance.",
        )
    return rows


def _check_quantity(rows: pd.DataFrame, by: str | None) -> None:
    for name in _QUANTITY:
        if name == by or name not in rows.columns:
            continue
        # A table without the column holds the default, which is empty.
        values = rows.assign(**{name: rows[name].fillna("")}).groupby("layer")[name].unique()
        differ = values[values.map(len) > 1]
        if len(differ):
            there = [value or "none" for value in differ.iloc[0]]
            raise SettingsError(
                f"layer {differ.index[0]}: the runs differ in {name} ({listed(there)}), so their"
                " numbers do not measure the same thing.",
                "Analyze them with the same settings, or compare this difference itself with --by"
                f" {name}.",
            )


def _other_sizes(rows: pd.DataFrame, layers: Sequence[str]) -> list[str]:
    if not {"n_out", "n_in"} <= set(rows.columns):
        return []
    sizes = rows[rows["layer"].isin(layers)].groupby("layer")[["n_out", "n_in"]].nunique()
    differ = [str(layer) for layer in layers if (sizes.loc[layer] > 1).any()]
    if not differ:
        return []
    return [f"the Jacobians differ in size between runs: {listed(differ, 6)}"]


def _copies(rows: pd.DataFrame, parts: Mapping[str, pd.DataFrame]) -> list[str]:
    """Return notes on runs of one group that agree in every number: a copy is not another run."""
    numbers = ["step", *(name for name in MEANINGS if name in rows.columns)]
    notes = []
    for name, part in parts.items():
        firsts: dict[bytes, str] = {}
        copies = []
        for run, own in part.sort_values(_FINAL_KEY).groupby("run", sort=False):
            content = own[numbers].to_numpy("float64", na_value=np.nan).tobytes()
            first = firsts.setdefault(content, str(run))
            if first != run:
                copies.append(f"{run} (those of {first})")
        if copies:
            notes.append(
                f"runs of {name} repeat all numbers of another and still count as runs, so leave"
                f" out copies: {listed(copies, 4)}"
            )
    return notes


def _parts(rows: pd.DataFrame, choice: Choice) -> dict[str, pd.DataFrame]:
    """Return the rows of each group by its name, the reference first."""
    by = choice.by
    if by is None:
        by = "table" if "table" in rows.columns else "run"
    if by not in rows.columns or by in _NOT_BY:
        there = [
            str(name)
            for name, counts in rows.groupby("run").nunique().items()
            if name not in _NOT_BY and counts.max() == 1
        ]
        raise SettingsError(
            f"--by {by}: no column that can distinguish runs.",
            f"These are constant in each run: {listed(['run', *there], 40)}.",
        )
    mixed = rows.groupby("run", sort=False)[by].nunique(dropna=False)
    if (mixed > 1).any():
        raise SettingsError(
            f"--by {by}: changes within the run {mixed.index[mixed > 1][0]}.",
            "Name a column that is constant in each run, such as one of [columns] in"
            " localrank.toml.",
        )
    # By their texts, so that no two groups have one name.
    parts = {str(key): part for key, part in rows.groupby(rows[by].map(_text), sort=False)}
    if len(parts) < 2:
        raise SettingsError(
            f"there is a single group, {by} = {next(iter(parts))}, and nothing to compare it with.",
            "Give the table of another run too, or a column that distinguishes runs with --by.",
        )
    first = next(iter(parts)) if choice.reference is None else _named(choice.reference, parts)
    return {first: parts[first]} | parts


def _named(reference: str, names: Iterable[str]) -> str:
    """Return the name of a group that the user gave, who may write 1e-1 for 0.1."""
    there = list(names)
    if reference in there:
        return reference
    with suppress(ValueError):
        as_number = _text(float(reference))
        if as_number in there:
            return as_number
    raise SettingsError(
        f"--reference {reference}: no such group.", f"The groups are {listed(there, 20)}."
    )


def _text(value: Any) -> str:
    """Return the text of a cell, which no other number has."""
    if isinstance(value, float):
        if np.isnan(value):
            return _NONE
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(float(value))
    return str(value) or _NONE


def _common(
    rows: pd.DataFrame, parts: Mapping[str, pd.DataFrame]
) -> tuple[list[str], list[int], list[str]]:
    """Return the layers and steps of every run, and notes on those of some runs only."""
    notes = []
    found: dict[str, list[Any]] = {}
    for column, name in (("layer", "layers"), ("step", "steps")):
        sets = {run: set(part[column]) for run, part in rows.groupby("run", sort=False)}
        common = set.intersection(*sets.values())
        every = set.union(*sets.values())
        if not common:
            texts = [
                f"{key} has {listed(sorted(set(part[column])), 6)}" for key, part in parts.items()
            ]
            raise SettingsError(
                f"the runs have no {column} in common: {'; '.join(texts[:4])}.",
                "Only runs of the same network that were saved at the same steps can be compared.",
            )
        if common != every:
            notes.append(
                f"{len(every - common)} of {len(every)} {name} are left out because some runs lack"
                f" them: {listed(sorted(every - common), 6)}"
            )
        found[column] = [one for one in _ordered(rows, column) if one in common]
    return found["layer"], [int(step) for step in found["step"]], notes


def _ordered(rows: pd.DataFrame, column: str) -> Sequence[Any]:
    return layers_by_depth(rows) if column == "layer" else sorted(set(rows[column]))


def _group(
    name: str, rows: pd.DataFrame, choice: Choice, layers: Iterable[str], steps: Iterable[int]
) -> Group:
    runs = list(dict.fromkeys(rows["run"]))
    names = {"ranks": choice.y, "errors": f"{choice.y}_se", "points": "n_points"}
    indexed = rows.set_index(_FINAL_KEY)
    whole = pd.MultiIndex.from_product([runs, steps, layers], names=_FINAL_KEY)
    shape = (len(runs), len(list(steps)), len(list(layers)))
    arrays: dict[str, Array] = {}
    for field, column in names.items():
        if column in indexed.columns:
            cells = indexed[column].reindex(whole).to_numpy("float64", na_value=np.nan)
            arrays[field] = cells.reshape(shape).swapaxes(1, 2)
        else:
            arrays[field] = np.full((shape[0], shape[2], shape[1]), np.nan)
    arrays["ranks"] = np.where(np.isfinite(arrays["ranks"]), arrays["ranks"], np.nan)
    return Group(name, tuple(map(str, runs)), _keys(rows, runs, choice.pair), **arrays)


def _keys(rows: pd.DataFrame, runs: Sequence[Any], pair: str | None) -> tuple[str, ...]:
    """Return what pairs runs by the column that is named, or `seed`; empty without one."""
    column = pair or _SEED
    if column not in rows.columns:
        if pair is not None:
            raise SettingsError(
                f"--pair {pair}: no such column.", f"The columns are {listed(rows.columns, 60)}."
            )
        return ()
    found = {run: {_text(key) for key in part[column]} for run, part in rows.groupby("run")}
    if any(len(keys) > 1 for keys in found.values()):
        raise SettingsError(
            f"--pair {column}: changes within a run.", "Name a column that is constant in each run."
        )
    return tuple(key for run in runs for key in found[run])


def _paired(groups: Sequence[Group], pair: str | None) -> list[Group]:
    """Return groups whose runs are in the order of their keys, and unpaired ones without keys."""
    keys = [group.keys or _own_names(group) for group in groups]
    alike = all(sorted(one) == sorted(keys[0]) for one in keys)
    # Two runs without a seed do not have the same one.
    distinct = all(len(set(one)) == len(one) and _NONE not in one for one in keys)
    if not (alike and distinct and len(keys[0]) > 1):
        if pair is not None:
            texts = [f"{group.name}: {listed(group.keys, 6)}" for group in groups[:4]]
            raise SettingsError(
                f"--pair {pair}: each value must occur once in each group, but there are"
                f" {'; '.join(texts)}.",
                "Leave out --pair to compare the groups as independent.",
            )
        return [_ordered_group(group, (), range(len(group.runs))) for group in groups]
    return [
        _ordered_group(group, tuple(sorted(own)), np.argsort(own, kind="stable"))
        for group, own in zip(groups, keys, strict=True)
    ]


def _own_names(group: Group) -> tuple[str, ...]:
    """Return the names of runs without those of their tables, which `read_tables` puts first."""
    return tuple(run.removeprefix(f"{group.name}: ") for run in group.runs)


def _ordered_group(group: Group, keys: tuple[str, ...], order: Iterable[int]) -> Group:
    index = list(order)
    return Group(
        name=group.name,
        runs=tuple(group.runs[i] for i in index),
        keys=keys,
        ranks=group.ranks[index],
        errors=group.errors[index],
        points=group.points[index],
    )
