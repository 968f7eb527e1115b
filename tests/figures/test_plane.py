import math

import numpy as np
import pandas as pd
import pytest

from localrank_cli.errors import DataError, SettingsError
from localrank_cli.figures import Choice, information_plane
from tests.figures.drawn import assert_readable, lines, texts
from tests.figures.tables import table


def with_bounds(frame: pd.DataFrame, ceiling: float = math.log(1000)) -> pd.DataFrame:
    """I(X;T) = 3 - layer - step / 2000 and I(T;Y) = 1 + step / 2000; upper bounds 0.5 higher."""
    share = frame["step"] / 2000
    return frame.assign(
        information_xt_lower_nats=3 - frame["layer_index"] - share,
        information_xt_upper_nats=3.5 - frame["layer_index"] - share,
        information_ty_lower_nats=1 + share,
        information_ty_upper_nats=1.5 + share,
        information_ceiling_nats=ceiling,
    )


def test_a_path_for_each_layer() -> None:
    figure, notes = information_plane(with_bounds(table(tolerances=("atol=0.01", "rtol=0.1"))))
    (axes,) = figure.axes
    drawn = {name: path for name, path in lines(axes).items() if not name.startswith("_")}
    assert list(drawn) == ["layer0", "layer1", "layer2"]
    for index, (x, y) in enumerate(drawn.values()):
        assert x == [3 - index - step / 2000 for step in (0, 10, 100, 1000)]
        assert y == [1 + step / 2000 for step in (0, 10, 100, 1000)]
    assert axes.get_xlabel() == "I(X;T) in nats"
    assert axes.get_ylabel() == "I(T;Y) in nats"
    assert notes == ()
    assert_readable(figure)


def test_upper_bounds_at_the_last_step() -> None:
    (axes,) = information_plane(with_bounds(table(layers=1)))[0].axes
    ends = {str(line.get_label()): np.asarray(line.get_xydata())[-1] for line in axes.get_lines()}
    assert ends["_upper x"].tolist() == [3.0, 1.5]
    assert ends["_upper y"].tolist() == [2.5, 2.0]


def test_the_ceiling_is_shown_where_it_matters() -> None:
    far = information_plane(with_bounds(table()))[0]
    assert not any("ceiling" in text for text in texts(far))
    near = information_plane(with_bounds(table(), ceiling=3.6))[0]
    assert any("ceiling log N" in text.replace("\n", " ") for text in texts(near))
    marks = [line for line in near.axes[0].get_lines() if line.get_label() == "_ceiling"]
    assert [np.asarray(line.get_xdata()).tolist() for line in marks] == [[3.6, 3.6]]


def test_runs_side_by_side() -> None:
    figure, _ = information_plane(with_bounds(table(runs=("a", "b"))))
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    assert_readable(figure)


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(DataError, match="no column information_xt_lower_nats") as caught:
        information_plane(table())
    assert "--labels-key" in caught.value.advice
    with pytest.raises(SettingsError, match="13 layers") as usage:
        information_plane(with_bounds(table(layers=13)))
    assert "--layers" in usage.value.advice
    assert information_plane(with_bounds(table(layers=13)), Choice(layers=("layer1*",)))
    with pytest.raises(SettingsError, match="7 runs"):
        information_plane(with_bounds(table(runs=tuple("abcdefg"))))
