"""The figure of a compression: a line for each method."""

from typing import Any

import numpy as np
import pytest

from localrank_cli.errors import DataError
from localrank_cli.figures import compression
from tests.figures.drawn import assert_readable, lines
from tests.figures.tables import budgets


def test_a_line_for_each_method() -> None:
    figure, notes = compression(budgets())
    (axes,) = figure.axes
    containers: list[Any] = list(axes.containers)
    drawn = {
        container.get_label(): [list(map(float, xy)) for xy in container.lines[0].get_data()]
        for container in containers
    }
    assert drawn == {
        "compress (fisher/logit)": [[0.2, 0.5], [0.4, 0.31]],
        "energy": [[0.2, 0.5], [0.6, 0.34]],
        "uniform": [[0.5], [0.33]],
    }
    (dashed,) = [line for line in axes.get_lines() if line.get_label() == "_original"]
    assert list(np.asarray(dashed.get_ydata())) == [0.3, 0.3]
    # 1.65 standard errors of 0.01 to either side.
    low, high = containers[0].lines[2][0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((0.4 - 0.0165, 0.4 + 0.0165))
    assert notes == ("uniform has no ranks at 0.2 of the weights",)
    assert not lines(axes)
    assert_readable(figure)


def test_a_baseline_that_is_the_result_keeps_its_own_line() -> None:
    frame = budgets()
    first = frame.index[frame["budget"] == 0.2][0]
    frame = frame[(frame["budget"] != 0.2) | (frame["method"] != "energy")]
    frame.loc[first, "method"] = "energy"
    (axes,) = compression(frame)[0].axes
    containers: list[Any] = list(axes.containers)
    drawn = {str(one.get_label()): len(one.lines[0].get_xdata()) for one in containers}
    assert drawn == {"compress (fisher/energy)": 2, "energy": 2, "uniform": 1}


def test_losses_over_decades_have_a_log_axis() -> None:
    frame = budgets()
    assert compression(frame)[0].axes[0].get_yscale() == "linear"
    frame.loc[frame["method"] == "energy", "loss"] = 40.0
    assert compression(frame)[0].axes[0].get_yscale() == "log"


def test_a_table_without_an_original_is_refused() -> None:
    with pytest.raises(DataError, match="no loss for the original"):
        compression(budgets().iloc[1:])
    with pytest.raises(DataError, match="none for any budget"):
        compression(budgets().iloc[:1])
