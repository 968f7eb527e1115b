"""Groups of runs are found in tables, and runs that cannot be compared are refused by name."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from localrank_cli.compare.differences import differences
from localrank_cli.compare.groups import Choice, find_groups
from localrank_cli.errors import LocalrankError
from tests.figures.tables import table


def seeds(count: int = 3, **constants: float) -> pd.DataFrame:
    """A table of runs seed0, seed1, ...; each is 2 higher than the one before."""
    frame = table(runs=[f"seed{index}" for index in range(count)])
    return frame.assign(seed=frame["run"].str[4:].astype(float), **constants)


def two(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Two tables as `read_tables` joins them."""
    parts = []
    for name, frame in (("a", first), ("b", second)):
        parts.append(frame.assign(run=name + ": " + frame["run"], table=name))
    return pd.concat(parts, ignore_index=True)


def test_tables_are_groups_and_runs_of_one_seed_are_pairs() -> None:
    second = seeds().assign(local_rank=lambda frame: frame["local_rank"] - 5)
    second = second.sort_values("seed", ascending=False)  # another order of runs
    groups = find_groups(two(seeds(), second), Choice())
    assert [group.name for group in groups.groups] == ["a", "b"]
    assert groups.groups[0].keys == ("0", "1", "2") == groups.groups[1].keys
    assert groups.layers == ("layer0", "layer1", "layer2")
    assert groups.steps == (0, 10, 100, 1000)
    (found,) = differences(groups, 0.95)
    # Every pair differs by 5: there is no spread, and 3 pairs alike are 2 / 2^3.
    assert found.over == "pairs of runs, paired t"
    np.testing.assert_allclose(found.grid("estimate"), -5, rtol=1e-12)
    np.testing.assert_allclose(found.cells.p, 0.25)


def test_a_column_makes_groups_of_one_table() -> None:
    frame = pd.concat(
        [
            seeds(3, weight_decay=0.0),
            seeds(4, weight_decay=0.1).assign(run=lambda part: part["run"] + "d"),
        ]
    )
    groups = find_groups(frame, Choice(by="weight_decay", reference="0.1"))
    assert [(group.name, len(group.runs)) for group in groups.groups] == [("0.1", 4), ("0", 3)]
    assert groups.groups[0].keys == ()  # three seeds cannot be paired with four
    (found,) = differences(groups, 0.95)
    assert found.over == "runs, Welch t"
    # Means of 0, 2, 4 and of 0, 2, 4, 6.
    np.testing.assert_allclose(found.grid("estimate"), -1, rtol=1e-9)


def test_runs_of_one_table_are_groups_compared_over_points() -> None:
    groups = find_groups(table(runs=("decay", "none")), Choice(layers=("layer1",)))
    (found,) = differences(groups, 0.95)
    assert found.is_over_points
    # Both standard errors over 64 points are 0.5: 2 -+ t(126) 0.5 sqrt(2).
    np.testing.assert_allclose(found.grid("low"), 2 - 1.978971 * 0.5**0.5, rtol=1e-6)


def test_only_common_layers_and_steps_are_compared_and_the_others_named() -> None:
    second = seeds(3)
    second = second[(second["step"] != 10) & (second["layer"] != "layer2")]
    groups = find_groups(two(seeds(), second), Choice())
    assert groups.steps == (0, 100, 1000)
    assert groups.layers == ("layer0", "layer1")
    assert [note.split(":")[-1] for note in groups.notes] == [" layer2", " 10"]


def test_no_group_hides_another_whose_name_is_nearly_the_same() -> None:
    parts = []
    for rate in (1000001.0, 1000002.0, 1e-7, float("nan")):
        part = seeds(2)
        parts.append(part.assign(run=f"{rate} " + part["run"], lr=rate))
    frame = pd.concat(parts, ignore_index=True)
    groups = find_groups(frame, Choice(by="lr", reference="0.0000001"))
    assert [group.name for group in groups.groups] == ["1e-07", "1000001", "1000002", "none"]
    assert [len(group.runs) for group in groups.groups] == [2, 2, 2, 2]


def test_runs_without_a_seed_are_not_a_pair() -> None:
    frame = two(seeds(), seeds()).replace({"seed": 2.0}, np.nan)
    frame["run"] += frame["table"]  # names would pair them too
    assert find_groups(frame, Choice()).groups[0].keys == ()


def test_a_copy_of_a_run_is_named() -> None:
    copied = pd.concat([seeds(2), seeds(2).query("seed == 1").assign(run="copy")])
    (note,) = find_groups(two(seeds(3), copied), Choice()).notes
    assert note.startswith("runs of b repeat all numbers of another")
    # Which of two is the copy is not known.
    assert note.endswith("b: seed1 (those of b: copy)")


def test_layers_that_are_not_chosen_may_differ() -> None:
    second = seeds()
    second.loc[second["layer"] == "layer2", "wrt"] = "layer0"
    groups = find_groups(two(seeds(), second), Choice(layers=("!layer2",)))
    assert groups.layers == ("layer0", "layer1")


def test_what_was_measured_may_be_what_is_compared() -> None:
    frame = pd.concat(
        [seeds(), seeds().assign(run=lambda part: part["run"] + "p", positions="same")]
    )
    groups = find_groups(frame, Choice(by="positions"))
    assert [group.name for group in groups.groups] == ["none", "same"]


def test_jacobians_of_other_sizes_are_named() -> None:
    wide = seeds()
    wide.loc[wide["layer"] == "layer1", "n_out"] = 80
    assert find_groups(two(seeds(), wide), Choice()).notes == (
        "the Jacobians differ in size between runs: layer1",
    )


def test_rows_that_failed_leave_their_cells_out() -> None:
    frame = two(seeds(), seeds())
    frame.loc[(frame["table"] == "b") & (frame["step"] == 100), "local_rank"] = np.nan
    (found,) = differences(find_groups(frame, Choice()), 0.95)
    assert np.isnan(found.grid("estimate")[:, 2]).all()
    assert np.isfinite(found.grid("estimate")[:, [0, 1, 3]]).all()


BAD = {
    "a single run": (table(), Choice(), "single group, run = run"),
    "no such column": (seeds(), Choice(by="decay"), "--by decay: no column"),
    "a column of the layer": (seeds(), Choice(by="layer"), "--by layer: no column"),
    "a column that changes": (seeds(), Choice(by="local_rank"), "changes within the run seed0"),
    "no such group": (seeds(), Choice(reference="x"), "The groups are seed0, seed1, seed2"),
    "mixed tolerances": (
        two(seeds(), seeds().assign(tolerance="rtol=0.1")),
        Choice(),
        "Choose one with --tolerance",
    ),
    "other steps": (
        two(seeds(), seeds().assign(step=lambda frame: frame["step"] + 1)),
        Choice(),
        "no step in common: a has 0, 10, 100, 1000; b has 1, 11",
    ),
    "other layers": (
        two(seeds(), seeds().assign(layer=lambda frame: "net." + frame["layer"])),
        Choice(),
        "no layer in common",
    ),
    "other quantities": (
        two(seeds(), seeds().assign(positions="same", jacobian="J-1")),
        Choice(),
        "layer layer0: the runs differ in positions (none, same)",
    ),
    "an empty measure": (
        two(seeds(), seeds()).assign(effective_rank=np.nan),
        Choice(y="effective_rank"),
        "--y effective_rank: no row has a finite value",
    ),
    "intervals beside exact ranks": (
        two(seeds(), seeds().assign(local_rank=np.nan, rank_low=3.0, rank_high=5.0)),
        Choice(),
        "there is no local_rank in the rows of run b: seed0, which --method interval computed",
    ),
    "text": (seeds(), Choice(y="module"), "--y module: holds no numbers"),
    "pairs by what is not there": (two(seeds(), seeds()), Choice(pair="lr"), "--pair lr: no such"),
    "pairs that do not match": (
        two(seeds(3), seeds(4)),
        Choice(pair="seed"),
        "a: 0, 1, 2; b: 0, 1, 2, 3",
    ),
    "two rows of one place": (
        pd.concat([seeds(), seeds().assign(local_rank=7.0)]),
        Choice(),
        "several rows describe layer layer0 of run seed0 at step 0",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_compared_is_refused_by_name(case: str) -> None:
    frame, choice, message = BAD[case]
    with pytest.raises(LocalrankError) as found:
        find_groups(frame, choice)
    assert message in str(found.value)


def test_one_run_against_several_is_refused() -> None:
    groups = find_groups(two(seeds(1), seeds(3)), Choice())
    with pytest.raises(LocalrankError, match="a has one run and b has 3"):
        list(differences(groups, 0.95))


@pytest.mark.parametrize(
    ("column", "message"),
    [("local_rank_se", "no standard errors over points"), ("n_points", "x has no n_points")],
)
def test_single_runs_need_errors_over_points(column: str, message: str) -> None:
    frame = table(runs=("x", "y")).drop(columns=column)
    with pytest.raises(LocalrankError, match=message):
        list(differences(find_groups(frame, Choice()), 0.95))


@pytest.mark.parametrize(("first", "second", "unequal"), [(2, 4, True), (2, 3, False)])
def test_unequal_numbers_of_runs_are_told_apart(first: int, second: int, unequal: bool) -> None:
    (found,) = differences(find_groups(two(seeds(first), seeds(second)), Choice()), 0.95)
    assert found.is_unequal == unequal
    # Means of runs that are 2 apart: of 2 and 4 runs, jointly with 1 degree of freedom.
    error = np.sqrt(2.0 / 2 + 20 / 3 / 4)
    width = stats.t.isf(0.05 / 2 / 12, 1) * error
    assert np.allclose(found.cells.high_all - found.cells.estimate, width) == unequal
