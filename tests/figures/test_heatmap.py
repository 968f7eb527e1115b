import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh

from localrank_cli.errors import DataError, SettingsError
from localrank_cli.figures import Choice, heatmap
from tests.figures.drawn import assert_readable, texts, ticks
from tests.figures.tables import many, table


def mesh(axes: Axes) -> QuadMesh:
    (found,) = [one for one in axes.collections if isinstance(one, QuadMesh)]
    return found


def values(axes: Axes) -> np.ma.MaskedArray:
    return np.ma.asarray(mesh(axes).get_array())


def test_cells_are_shares_of_the_largest_rank() -> None:
    frame = table()
    figure, notes = heatmap(frame)
    axes, bar = figure.axes
    shown = values(axes)
    assert shown.shape == (3, 4)
    expected = frame.pivot(index="layer", columns="step", values="local_rank").to_numpy() / 40
    assert np.ma.getdata(shown) == pytest.approx(expected)
    assert not np.ma.getmaskarray(shown).any()
    assert mesh(axes).get_clim() == (0, 1)
    assert ticks(axes.yaxis) == ["layer0", "layer1", "layer2"]
    assert axes.yaxis_inverted()  # the first on top
    assert bar.get_ylabel() == "share of the largest possible rank"
    assert "run: local rank at atol=0.01 (64 points)" in texts(figure)
    assert notes == ()
    assert_readable(figure)


def test_missing_cells_are_not_zero() -> None:
    frame = table()
    frame = frame[~((frame["layer"] == "layer1") & (frame["step"] == 10))]
    shown = values(heatmap(frame)[0].axes[0])
    assert np.ma.getmaskarray(shown).sum() == 1
    assert np.ma.getmaskarray(shown)[1, 1]


def test_each_cell_holds_its_step() -> None:
    axes = heatmap(table())[0].axes[0]
    edges = np.asarray(mesh(axes).get_coordinates())[0, :, 0]
    for step, low, high in zip((0, 10, 100, 1000), edges[:-1], edges[1:], strict=True):
        assert low < step < high


def test_runs_share_the_scale() -> None:
    figure, _ = heatmap(table(runs=("a", "b")))
    left, right = figure.axes[:2]
    assert left.get_xlim() == right.get_xlim()
    assert {"a", "b"} <= set(texts(figure))
    assert_readable(figure)
    with pytest.raises(SettingsError, match="7 runs, but at most 6"):
        heatmap(table(runs=list("abcdefg")))


@pytest.mark.parametrize("steps", [(0,), (5, 6), (0, 1, 10**6)])
def test_few_steps(steps: tuple[int, ...]) -> None:
    assert_readable(heatmap(table(steps=steps))[0])


def test_many_layers_and_steps() -> None:
    figure, _ = heatmap(many(80, 1400))
    axes = figure.axes[0]
    assert values(axes).shape[0] == 80
    assert values(axes).shape[1] <= 1201
    assert mesh(axes).get_rasterized()
    assert len(ticks(axes.yaxis)) == 16
    assert_readable(figure)


def test_measures_other_than_ranks_are_refused() -> None:
    with pytest.raises(SettingsError, match="--y jacobian_norm: a heat map shows a rank"):
        heatmap(table(), Choice(y="jacobian_norm"))
    with pytest.raises(DataError, match="no column max_rank"):
        heatmap(table().drop(columns="max_rank"))
