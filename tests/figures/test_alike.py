"""Runs are averaged only if they differ in nothing but the seed."""

from typing import Any

import pandas as pd
import pytest

from localrank_cli.errors import SettingsError
from localrank_cli.figures import Choice, compare, ranks
from tests.drawing import one_in
from tests.figures.drawn import lines, texts
from tests.figures.tables import table


def with_column(name: str, values: dict[str, Any]) -> pd.DataFrame:
    frame = table(layers=1, runs=list(values))
    frame[name] = frame["run"].map(values)
    return frame


def heights(figure: Any) -> list[float]:
    """The first rank in each panel; that of run number k is 10 + 2 k."""
    return [float(lines(axes)["layer0"][1][0]) for axes in figure.axes]


@pytest.mark.parametrize(
    ("name", "values"),
    one_in(
        3,
        [
            ("beta", {"a": 0.5, "b": 2.0}),
            ("optimizer", {"a": "sgd", "b": "adam"}),
            ("input_slice", {"a": "", "b": "center:16"}),
            ("wrt", {"a": "", "b": "embed"}),
            ("dtype", {"a": "float32", "b": "float64"}),
            ("n_points", {"a": 64, "b": 128}),
            ("beta", {"a": 1.0, "b": None}),
            ("n_in", {"a": 50, "b": 60}),
        ],
    ),
)
def test_a_column_that_differs(name: str, values: dict[str, Any]) -> None:
    figure, notes = ranks(with_column(name, values))
    assert heights(figure) == [10, 12]
    assert {"a", "b"} <= set(texts(figure))
    (note,) = notes
    assert note.startswith("the runs differ in ")
    assert note.endswith(", so they are drawn side by side and not as a mean")


@pytest.mark.parametrize("name", ["seed", "train_seed", "loss", "accuracy"])
def test_seeds_and_measurements_are_averaged(name: str) -> None:
    figure, notes = ranks(with_column(name, {"a": 1.0, "b": 2.0}))
    assert heights(figure) == [11]
    assert notes == ("the lines are means over 2 runs: a, b",)


def test_a_column_that_changes_within_a_run_is_a_measurement() -> None:
    frame = table(layers=1, runs=("a", "b"))
    frame["lr"] = range(len(frame))
    assert heights(ranks(frame)[0]) == [11]


def test_each_kind_has_its_mean() -> None:
    figure, notes = ranks(with_column("beta", {"a": 0.5, "b": 2.0, "c": 2.0}))
    assert heights(figure) == [10, 13]
    assert {"a", "beta = 2"} <= set(texts(figure))
    assert (
        "the runs differ in beta (0.5, 2), so they are drawn side by side and not as a mean"
        in notes
    )


def test_other_layers() -> None:
    frame = table(layers=2, runs=("a", "b"))
    frame = frame[(frame["run"] == "a") | (frame["layer"] == "layer0")]
    figure, notes = ranks(frame)
    assert heights(figure) == [10, 12]
    assert "layers" in notes[0]
    assert heights(ranks(frame, Choice(layers=("layer0",)))[0]) == [11]


def test_settings_of_manifests() -> None:
    frame = table(layers=1, runs=("a", "b"))
    settings = {"a": {"model": "relu"}, "b": {"model": "tanh"}}
    figure, notes = ranks(frame, settings=settings)
    assert heights(figure) == [10, 12]
    assert "model (relu, tanh)" in notes[0]
    same = {"a": {"model": "relu"}, "b": {"model": "relu"}}
    for alike in (same, {"a": {"model": "relu"}}, {}, {"other": {"model": "x"}}):
        assert heights(ranks(frame, settings=alike)[0]) == [11]


def test_a_run_without_a_manifest_among_others_is_named() -> None:
    frame = table(layers=1, runs=("a", "b"))
    _, notes = ranks(frame, settings={"a": {"model": "relu"}})
    assert any("b has no manifest" in note for note in notes)
    for settings in ({}, {"a": {"model": "relu"}, "b": {"model": "relu"}}):
        assert not any("manifest" in note for note in ranks(frame, settings=settings)[1])


def test_the_lists_of_layers_are_told_apart() -> None:
    frame = table(layers=2, runs=("a", "b"))
    frame = frame[(frame["run"] == "a") | (frame["layer"] == "layer0")]
    assert "layers (layer0, layer1; layer0)" in ranks(frame)[1][0]


def test_a_title_that_would_be_cut_names_the_runs() -> None:
    frame = with_column("beta", {"a": 0.5, "b": 2.0, "c": 2.0})
    for name in ("optimizer", "schedule", "augmentation"):
        frame[name] = frame["run"].map({"a": "one of them", "b": "another", "c": "another"})
    assert {"a", "b, c"} <= set(texts(ranks(frame)[0]))


def test_final_states_over_a_constant_stay_one_curve() -> None:
    frame = with_column("beta", {"a": 0.5, "b": 2.0, "c": 2.0})
    figure, _ = ranks(frame, Choice(x="beta"))
    assert len(figure.axes) == 1
    frame["optimizer"] = frame["run"].map({"a": "sgd", "b": "sgd", "c": "adam"})
    figure, notes = ranks(frame, Choice(x="beta"))
    assert len(figure.axes) == 2
    assert "optimizer (sgd, adam)" in notes[-1] + notes[0] + notes[1]


def test_compare_never_averages_them_either() -> None:
    frame = with_column("beta", {"a": 0.5, "b": 2.0, "c": 2.0, "d": 2.0})
    frame["table"] = frame["run"].map({"a": "one", "b": "one", "c": "two", "d": "two"})
    figure, notes = compare(frame)
    assert heights(figure) == [10, 12, 15]
    assert {"one: a", "one: b", "two"} <= set(texts(figure))
    assert "beta (0.5, 2)" in notes[0]


def test_too_many_kinds() -> None:
    with pytest.raises(SettingsError, match="13 kinds of runs"):
        ranks(with_column("beta", {f"r{index}": index for index in range(13)}))
