import time

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from localrank_cli.errors import DataError, SettingsError
from localrank_cli.figures import Choice, Look, Metric, compare, ranks, styled
from tests.drawing import one_in
from tests.figures.drawn import assert_readable, bands, lines, texts, ticks
from tests.figures.tables import many, table


def test_every_value_is_drawn() -> None:
    frame = table()
    figure, notes = ranks(frame)
    assert notes == ()
    (axes,) = figure.axes
    drawn = lines(axes)
    assert list(drawn) == ["layer0", "layer1", "layer2"]
    for name, (x, y) in drawn.items():
        rows = frame[frame["layer"] == name]
        assert x == rows["step"].tolist() == [0, 10, 100, 1000]
        assert y == rows["local_rank"].tolist()
    for (low, high), start in zip(bands(axes), (10, 20, 30), strict=True):
        assert low == start - 0.5
        assert high == pytest.approx(start + 3.5, abs=1e-3)
    assert axes.get_xscale() == "symlog"
    assert ticks(axes.xaxis) == ["0", "10", "100", "1000"]
    assert axes.get_ylim()[0] == 0
    labels = texts(figure)
    for text in (
        "run: local rank at atol=0.01 (64 points)",
        "local rank (atol=0.01)",
        "training step",
        "mean ± standard error over points",
        "layer0",
        "layer2",
    ):
        assert text in labels
    assert_readable(figure)


def test_lines_go_from_light_to_dark() -> None:
    (axes,) = ranks(table())[0].axes
    colours = [line.get_color() for line in axes.get_lines() if line.get_label() in lines(axes)]
    shades = [sum(to_rgb(colour)) for colour in colours]
    assert shades == sorted(shades, reverse=True)


@pytest.mark.parametrize("steps", [(0, 10, 100), tuple(range(500))])
def test_a_name_has_the_marker_of_its_line(steps: tuple[int, ...]) -> None:
    (axes,) = ranks(table(steps=steps))[0].axes
    drawn = [line for line in axes.get_lines() if line.get_label() in lines(axes)]
    keys = [line for line in axes.get_lines() if line.get_label() == "_name"]
    looks = [(line.get_marker(), line.get_color()) for line in drawn]
    assert [(key.get_marker(), key.get_color()) for key in keys] == looks
    assert len({marker for marker, _ in looks}) == 3
    assert {line.get_linestyle() for line in drawn} == {"-"}


def test_bands_over_runs() -> None:
    figure, notes = ranks(table(layers=1, runs=("a", "b", "c")))
    (low, high) = bands(figure.axes[0])[0]
    assert low == pytest.approx(10)  # mean 12, deviation 2
    assert high == pytest.approx(17, abs=1e-3)
    assert "mean ± standard deviation over 3 runs" in texts(figure)
    assert "3 runs: local rank at atol=0.01 (64 points)" in texts(figure)
    assert notes == ("the lines are means over 3 runs: a, b, c",)


def test_any_measure_and_any_axis() -> None:
    frame = table()
    frame["beta"] = frame["step"] / 100
    figure, _ = ranks(frame, Choice(y="jacobian_norm", x="beta"))
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    assert axes.get_ylabel() == "Jacobian norm"
    assert axes.get_xlabel() == "beta"
    assert lines(axes)["layer0"] == ([0, 0.1, 1, 10], [0.1] * 4)


@pytest.mark.parametrize(
    "steps", one_in(2, [((0,),), ((700,),), ((0, 1),), ((5, 6, 7),), ((0, 1, 10**7),)])
)
def test_few_steps(steps: tuple[int, ...]) -> None:
    figure, _ = ranks(table(steps=steps))
    assert lines(figure.axes[0])["layer0"][0] == list(steps)
    assert_readable(figure)


def test_one_point_has_no_band() -> None:
    figure, _ = ranks(table().assign(local_rank_se=np.nan, n_points=1))
    assert bands(figure.axes[0]) == []
    assert "run: local rank at atol=0.01 (1 point)" in texts(figure)
    assert not any("standard error" in text for text in texts(figure))


@pytest.mark.parametrize("value", one_in(2, [np.inf, -np.inf, np.nan, -1.79e308, 1.79e308]))
def test_a_value_that_no_axis_holds_is_left_out_and_said(value: float) -> None:
    frame = table()
    frame.loc[4, "local_rank"] = value
    figure, notes = ranks(frame)
    assert notes == ("1 of 12 rows have no local_rank",)
    drawn = [y for _, ys in lines(figure.axes[0]).values() for y in ys]
    assert len(drawn) == 11
    assert_readable(figure)
    with pytest.raises(DataError, match="no row has a finite local_rank"):
        ranks(frame.assign(local_rank=value))


@pytest.mark.parametrize("error", [-np.inf, -1.0, np.inf])
def test_a_standard_error_that_is_none_has_no_band(error: float) -> None:
    figure, _ = ranks(table().assign(local_rank_se=error))
    largest = table()["local_rank"].max()
    assert figure.axes[0].get_ylim() == pytest.approx((0, largest * 1.05))
    assert bands(figure.axes[0]) == []


def test_names_that_end_together_do_not_overlap() -> None:
    figure, _ = ranks(table(layers=12).assign(local_rank=5.0))
    assert_readable(figure)
    assert {f"layer{index}" for index in range(12)} <= set(texts(figure))


@pytest.mark.parametrize(
    "name",
    one_in(
        2, ["$", "a_b^c", "encoder.layers.11.self_attn.out_proj.base_layer", "$x$", "[bold]", "é"]
    ),
)
def test_names_are_shown_as_they_are(name: str) -> None:
    figure, _ = ranks(table(layers=1).assign(layer=name, run=name))
    with styled():
        styled_figure, _ = ranks(table(layers=1).assign(layer=name, run=name))
    labels = texts(styled_figure)
    if len(name) < 20:
        assert name in labels
    assert any(text.startswith(f"{name}: local rank") for text in map(_joined, labels))
    assert_readable(styled_figure)
    del figure


def _joined(text: str) -> str:
    return " ".join(text.split())


def test_many_layers_have_a_colour_bar_instead_of_names() -> None:
    figure, _ = ranks(many(200, 5))
    axes, bar = figure.axes
    assert len(lines(axes)) == 200
    assert bar.get_ylabel() == "layer, in order of depth (200)"
    names = ticks(bar.yaxis)
    assert len(names) == 8
    assert names[0] == "0: blocks.0.mlp"
    assert names[-1] == "199: blocks.199.mlp"
    assert bar.yaxis_inverted()
    assert_readable(figure)


def test_many_steps_stay_quick_and_keep_their_extremes() -> None:
    frame = many(8, 10_000)
    started = time.perf_counter()
    figure, _ = ranks(frame)
    texts(figure)
    assert time.perf_counter() - started < 30  # a mistake of order, not of the machine's mood
    for name, (x, y) in lines(figure.axes[0]).items():
        rows = frame[frame["layer"] == name]
        assert len(x) <= 1502
        assert (x[0], x[-1]) == (0, 9999)
        assert (min(y), max(y)) == (rows["local_rank"].min(), rows["local_rank"].max())


class TestMetrics:
    METRICS = pd.DataFrame({"step": [0, 10, 50, 1000], "accuracy": [0.1, 0.5, 0.7, 0.9]})

    def test_the_panel_below_is_joined_by_step(self) -> None:
        figure, _ = ranks(table(), metrics=[Metric(self.METRICS, "accuracy")])
        above, below = figure.axes
        assert lines(below) == {"accuracy": ([0, 10, 1000], [0.1, 0.5, 0.9])}
        assert below.get_ylabel() == "accuracy"
        assert below.get_xlim() == above.get_xlim()
        assert (above.get_xlabel(), below.get_xlabel()) == ("", "training step")
        assert_readable(figure)

    def test_two_metrics_have_a_legend(self) -> None:
        other = self.METRICS.rename(columns={"accuracy": "loss"})
        figure, _ = ranks(
            table(), metrics=[Metric(self.METRICS, "accuracy"), Metric(other, "loss")]
        )
        assert set(lines(figure.axes[1])) == {"accuracy", "loss"}
        assert {"accuracy", "loss"} <= set(texts(figure))

    def test_no_step_in_common(self) -> None:
        with pytest.raises(DataError, match="no step in common"):
            ranks(table(), metrics=[Metric(self.METRICS.assign(step=-1), "accuracy")])

    def test_metrics_that_know_their_run(self) -> None:
        both = pd.concat([self.METRICS.assign(run="a"), self.METRICS.assign(run="b", accuracy=0)])
        figure, _ = compare(table(runs=("a", "b")), metrics=[Metric(both, "accuracy")])
        _, _, left, right = figure.axes
        assert lines(left)["accuracy"][1] == [0.1, 0.5, 0.9]
        assert lines(right)["accuracy"][1] == [0, 0, 0]

    def test_one_for_each_panel(self) -> None:
        ones = self.METRICS.assign(accuracy=1)
        metrics = [Metric(self.METRICS, "accuracy"), Metric(ones, "accuracy")]
        figure, _ = compare(table(runs=("a", "b")), metrics=metrics)
        assert lines(figure.axes[3])["accuracy"][1] == [1, 1, 1]
        with pytest.raises(SettingsError, match="3 metrics for 2 panels"):
            compare(table(runs=("a", "b")), metrics=[*metrics, metrics[0]])


class TestCompare:
    def test_runs_are_side_by_side_on_one_scale(self) -> None:
        figure, notes = compare(table(runs=("decay", "none")))
        left, right = figure.axes
        assert {"decay", "none"} <= set(texts(figure))
        assert left.get_ylim() == right.get_ylim()
        assert left.get_xlim() == right.get_xlim()
        assert lines(right)["layer0"][1][0] == lines(left)["layer0"][1][0] + 2
        assert notes == ()
        assert_readable(figure)

    def test_tables_are_side_by_side_and_their_runs_are_averaged(self) -> None:
        frame = table(runs=("a", "b", "c", "d"))
        frame["table"] = frame["run"].map({"a": "one", "b": "one", "c": "two", "d": "two"})
        figure, _ = compare(frame)
        assert [lines(axes)["layer0"][1][0] for axes in figure.axes] == [11, 15]
        assert "mean ± standard deviation over 2 runs" in texts(figure)

    def test_by_a_column(self) -> None:
        frame = table(runs=("a", "b", "c"))
        frame["beta"] = frame["run"].map({"a": 0.5, "b": 2.0, "c": 2.0})
        figure, _ = compare(frame, by="beta")
        assert {"beta = 0.5", "beta = 2"} <= set(texts(figure))
        with pytest.raises(SettingsError, match="--by gamma: no such column"):
            compare(frame, by="gamma")

    @pytest.mark.parametrize("runs", [1, 13])
    def test_one_or_too_many(self, runs: int) -> None:
        with pytest.raises(SettingsError, match="needs 2 to 12 values of run"):
            compare(table(runs=[f"r{index}" for index in range(runs)]))


def test_title_size_and_model_are_the_users() -> None:
    figure, _ = ranks(table(), look=Look("My title", (5, 3), "an MLP"))
    assert "My title" in texts(figure)
    assert "an MLP · mean ± standard error over points" in texts(figure)
    assert list(figure.get_size_inches()) == [5, 3]


def test_matplotlib_is_left_as_it_was() -> None:
    import matplotlib as mpl
    from matplotlib import _pylab_helpers

    before = dict(mpl.rcParams)
    with styled("grayscale"):
        ranks(table())
    assert dict(mpl.rcParams) == before
    assert not _pylab_helpers.Gcf.figs
