from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localrank_cli.errors import DataError
from localrank_cli.figures.choose import Choice, choose
from localrank_cli.figures.curves import Curve, Curves, curves, thin
from tests.figures.tables import table


def made(frame: pd.DataFrame, **choice: Any) -> Curves:
    chosen = choose(frame, Choice(**choice))
    return curves(chosen.frame, chosen.layers)


def test_one_run_has_the_error_over_points() -> None:
    lines = made(table())
    assert [line.layer for line in lines.lines] == ["layer0", "layer1", "layer2"]
    assert list(lines.lines[1].x) == [0, 10, 100, 1000]
    assert lines.lines[1].y[0] == 20
    assert set(lines.lines[1].spread) == {0.5}
    assert lines.band == "± standard error over points"


def test_several_runs_have_mean_and_standard_deviation() -> None:
    lines = made(table(runs=("a", "b", "c")))
    first = lines.lines[0]
    assert first.y[0] == pytest.approx(12)  # 10, 12, 14
    assert first.spread[0] == pytest.approx(np.std([10, 12, 14], ddof=1))
    assert lines.band == "± standard deviation over 3 runs"
    assert lines.notes == ("the lines are means over 3 runs: a, b, c",)


def test_a_mean_is_taken_only_where_all_runs_are() -> None:
    frame = table(runs=("a", "b"))
    frame = frame[~((frame["run"] == "b") & (frame["step"] == 10))]
    lines = made(frame)
    assert list(lines.lines[0].x) == [0, 100, 1000]
    assert "left out 3 (layer, step) pairs that are missing in some runs" in lines.notes


def test_runs_without_a_common_step() -> None:
    frame = table(runs=("a", "b"))
    frame.loc[frame["run"] == "b", "step"] += 1
    with pytest.raises(DataError, match="a, b have no step in common") as caught:
        made(frame)
    assert "--kind compare" in caught.value.advice


def test_final_states_are_joined_into_a_line() -> None:
    frame = table(runs=("a", "b", "c"))
    frame["beta"] = frame["run"].map({"a": 3.0, "b": 1.0, "c": 3.0})
    line = made(frame, x="beta").lines[0]
    assert made(frame, x="beta").band == "± standard deviation over 3 runs"
    frame["own"] = frame["run"].map({"a": 3.0, "b": 1.0, "c": 2.0})
    assert made(frame, x="own").band == "± standard error over points"
    assert list(line.x) == [1, 3]
    base = 10 + np.log10(1001)
    assert line.y == pytest.approx([base + 2, base + 2])  # a and c: + 0 and + 4
    assert line.spread == pytest.approx([0.5, np.std([0, 4], ddof=1)])


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=400), st.integers(4, 40))
def test_a_thinned_line_keeps_ends_and_extremes(values: list[float], most: int) -> None:
    x = np.arange(len(values), dtype=float)
    y = np.array(values)
    line = Curve("a", x, y, np.zeros_like(y))
    few = thin(line, x, most)
    assert few.x[0] == 0
    assert few.x[-1] == x[-1]
    assert (few.y.min(), few.y.max()) == (y.min(), y.max())
    assert len(few.x) <= max(most + 2, 2)
    assert (np.diff(few.x) > 0).all()
    assert (y[few.x.astype(int)] == few.y).all()
