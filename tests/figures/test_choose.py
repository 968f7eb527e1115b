from typing import Any

import numpy as np
import pandas as pd
import pytest

from localrank_cli.errors import DataError, LocalrankError, SettingsError
from localrank_cli.figures.choose import Choice, choose
from localrank_cli.results.choose import matching
from tests.figures.tables import row, table


def test_rows_are_sorted_and_named() -> None:
    chosen = choose(table().sample(frac=1, random_state=0), Choice())
    assert list(chosen.frame["step"]) == [s for s in (0, 10, 100, 1000) for _ in range(3)]
    assert chosen.layers == ["layer0", "layer1", "layer2"]
    assert chosen.y_label == "local rank (atol=0.01)"
    assert chosen.x_label == "training step"
    assert chosen.title("run") == "run: local rank at atol=0.01 (64 points)"
    assert chosen.notes == ()
    assert (chosen.frame["error"] == 0.5).all()


def test_layers_are_in_order_of_depth_not_of_the_alphabet() -> None:
    frame = pd.DataFrame([row("r", 0, 1, layer="a"), row("r", 0, 0, layer="b")])
    assert choose(frame, Choice()).layers == ["b", "a"]


@pytest.mark.parametrize(
    ("changes", "message", "advice"),
    [
        ({"y": "rank"}, "--y rank: no such column", "local_rank, "),
        ({"y": "layer"}, "--y layer: holds no numbers", "local_rank"),
        ({"x": "beta"}, "--x beta: no such column", "step"),
        ({"layers": ("conv*",)}, "--layers conv*: matches no layer", "layer0, layer1, layer2"),
        ({"layers": ("!*",)}, "--layers: leaves no layer", "layer0"),
        ({"tolerance": "atol=1"}, "--tolerance atol=1: not in the table", "atol=0.01"),
        ({"input_metric": "data"}, "--input-metric data: not in the table", "identity"),
    ],
)
def test_unknown_choices_are_refused(changes: dict[str, Any], message: str, advice: str) -> None:
    with pytest.raises(SettingsError) as caught:
        choose(table(), Choice(**changes))
    assert message in caught.value.what
    assert advice in caught.value.advice


def test_several_tolerances_need_a_choice() -> None:
    frame = table(tolerances=("atol=0.01", "rtol=eps"))
    with pytest.raises(
        SettingsError, match=r"several values of tolerance: atol=0\.01, rtol=eps"
    ) as e:
        choose(frame, Choice())
    assert "--tolerance" in e.value.advice
    chosen = choose(frame, Choice(tolerance="rtol=eps"))
    assert chosen.tolerance == "rtol=eps"
    assert chosen.frame["y"].min() == 9.0


def test_a_measure_without_a_tolerance_needs_none() -> None:
    chosen = choose(table(tolerances=("atol=0.01", "rtol=eps")), Choice(y="effective_rank"))
    assert len(chosen.frame) == 12
    assert chosen.title("run") == "run: effective rank (64 points)"


def test_several_metrics_need_a_choice() -> None:
    frame = pd.concat([table(), table().assign(input_metric="data", local_rank=1.0)])
    with pytest.raises(SettingsError, match="several values of input_metric: identity, data") as e:
        choose(frame, Choice())
    assert "--input-metric" in e.value.advice
    assert (choose(frame, Choice(input_metric="data")).frame["y"] == 1).all()


def test_two_rows_for_one_place_are_an_error_that_says_how_they_differ() -> None:
    frame = pd.concat([table(), table().assign(wrt="embed", local_rank=1.0)])
    with pytest.raises(DataError, match="layer layer0 of run at step 0; they differ in wrt"):
        choose(frame, Choice())


def test_failed_and_missing_values_are_left_out_with_a_note() -> None:
    frame = table()
    frame.loc[0, "status"] = "nonfinite"
    frame.loc[4, "local_rank"] = np.nan
    frame.loc[5, "local_rank"] = np.inf
    chosen = choose(frame, Choice())
    assert len(chosen.frame) == 9
    assert "1 of 12 rows are left out because they failed (1 nonfinite; step 0)" in chosen.notes
    assert "2 of 11 rows have no local_rank" in chosen.notes


@pytest.mark.parametrize(
    "frame",
    [
        table().assign(status="mismatch"),
        table().assign(local_rank=np.nan),
        table().drop(columns="layer"),
    ],
)
def test_nothing_to_show(frame: pd.DataFrame) -> None:
    with pytest.raises(LocalrankError):
        choose(frame, Choice())


def test_a_constant_of_each_run_is_taken_at_its_last_step() -> None:
    frame = table(runs=("a", "b"))
    frame["beta"] = np.where(frame["run"] == "a", 0.5, 2.0)
    chosen = choose(frame, Choice(x="beta"))
    assert list(chosen.frame["step"].unique()) == [1000]
    assert sorted(chosen.frame["x"].unique()) == [0.5, 2.0]
    assert chosen.notes == ("beta is constant in each run, so each run is taken at its last step",)
    assert chosen.x_label == "beta"


def test_a_column_that_moves_with_the_step_keeps_all_steps() -> None:
    frame = table()
    frame["epoch"] = frame["step"] / 10
    assert len(choose(frame, Choice(x="epoch")).frame) == 12


def test_globs() -> None:
    names = ["enc.0.fc", "enc.1.fc", "head"]
    assert matching(names, ()) == names
    assert matching(names, ("enc*",)) == names[:2]
    assert matching(names, ("*", "!head")) == names[:2]
    assert matching(names, ("!enc*",)) == ["head"]
