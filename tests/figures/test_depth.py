import numpy as np
import pytest
from matplotlib.text import Annotation

from localrank_cli.errors import SettingsError
from localrank_cli.figures import depth
from tests.drawing import one_in
from tests.figures.drawn import assert_readable, lines, texts, ticks
from tests.figures.tables import many, table


def test_a_line_for_each_step() -> None:
    frame = table()
    figure, notes = depth(frame)
    axes, bar = figure.axes
    drawn = lines(axes)
    assert list(drawn) == ["0", "10", "100", "1000"]
    for step, (x, y) in drawn.items():
        assert x == [0, 1, 2]
        assert y == frame[frame["step"] == int(step)]["local_rank"].tolist()
    assert ticks(axes.xaxis) == ["layer0", "layer1", "layer2"]
    assert bar.get_ylabel() == "training step"
    assert ticks(bar.yaxis) == ["0", "10", "100", "1000"]
    assert axes.get_ylabel() == "local rank (atol=0.01)"
    assert notes == ()
    assert_readable(figure)


def test_the_largest_rank_is_shown_where_it_fits() -> None:
    axes = depth(table())[0].axes[0]
    (ceiling,) = [line for line in axes.get_lines() if line.get_label() == "_max_rank"]
    assert np.asarray(ceiling.get_ydata()).tolist() == [40, 40, 40]
    assert axes.get_ylim()[1] >= 40
    (name,) = axes.findobj(Annotation)
    assert (name.get_text(), name.xy) == ("largest possible rank", (1, 40))
    high = depth(table().assign(max_rank=4000))[0]
    assert high.axes[0].get_ylim()[1] < 50
    assert not any("largest possible" in text for text in texts(high))


@pytest.mark.parametrize(
    ("bounds", "place"),
    one_in(2, [([40, 30, 20], (0, 40)), ([20, 30, 40], (2, 40)), ([40, 40, 20], (0.5, 40)),
               ([20, 40, 20], (1, 40)), ([40, 20, 40], (0, 40))]),
)  # fmt: skip
def test_the_largest_rank_is_named_above_its_highest_stretch(
    bounds: list[int], place: tuple[float, float]
) -> None:
    frame = table(runs=("a", "b"))
    frame["max_rank"] = frame["layer"].str.removeprefix("layer").astype(int).map(bounds.__getitem__)
    figure, _ = depth(frame)
    for axes in figure.axes[:2]:
        assert [text.xy for text in axes.findobj(Annotation)] == [place]
    assert_readable(figure)


def test_steps_are_selected_evenly_or_by_the_user() -> None:
    figure, notes = depth(many(3, 3000))
    shown = [int(step) for step in lines(figure.axes[0])]
    assert len(shown) <= 25
    assert (shown[0], shown[-1]) == (0, 2999)
    assert notes == (f"drew {len(shown)} of 3000 steps; choose others with --step",)
    figure, notes = depth(many(3, 3000), steps=(7, 5))
    assert list(lines(figure.axes[0])) == ["5", "7"]
    assert notes == ()
    with pytest.raises(SettingsError, match="--step 9000: no such step"):
        depth(many(3, 3000), steps=(9000,))


@pytest.mark.parametrize("layers", one_in(2, [1, 2, 16, 200, 17]))
def test_any_number_of_layers(layers: int) -> None:
    figure, _ = depth(many(layers, 4))
    assert len(lines(figure.axes[0])["0"][0]) == layers
    assert_readable(figure)


def test_long_names_are_turned() -> None:
    frame = table(layers=8)
    frame["layer"] = "encoder.layers." + frame["layer"] + ".out_proj"
    assert_readable(depth(frame)[0])


def test_runs_side_by_side() -> None:
    figure, _ = depth(table(runs=("a", "b")))
    left, right = figure.axes[:2]
    assert left.get_ylim() == right.get_ylim()
    assert lines(right)["0"][1][0] == 12
    assert_readable(figure)


def test_one_step() -> None:
    figure, _ = depth(table(steps=(500,)))
    assert ticks(figure.axes[1].yaxis) == ["500"]
    assert_readable(figure)
