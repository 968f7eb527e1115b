import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from localrank_cli.figures.axis import number, scale_x, scale_y, spans_decades
from localrank_cli.results.columns import meaning
from tests.figures.drawn import ticks


def axes() -> Axes:
    return Figure().subplots()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 10], False),
        ([0, 1, 100], True),
        ([5, 500], True),
        ([0], False),
        ([0, 0], False),
        ([-1, 1, 1000], False),
        ([1], False),
    ],
)
def test_when_an_axis_is_logarithmic(values: list[float], expected: bool) -> None:
    assert spans_decades(np.array(values, float)) is expected


def test_step_0_is_left_of_a_log_axis() -> None:
    one = axes()
    scale_x(one, np.array([0.0, 20, 100, 10500]), 5)
    assert one.get_xscale() == "symlog"
    assert ticks(one.xaxis) == ["0", "100", "1000", "10000"]
    low, high = one.get_xlim()
    assert low < 0
    assert high > 10500
    # Above the first step every decade has the same width.
    place = one.xaxis.get_transform().transform(np.array([20.0, 200, 2000, 20000]))
    assert np.diff(place) == pytest.approx([np.diff(place)[0]] * 3)
    assert [line.get_label() for line in one.get_lines()] == ["_break", "_break"]


def test_without_step_0_it_is_a_plain_log_axis() -> None:
    one = axes()
    scale_x(one, np.array([1.0, 1e6]), 5)
    assert one.get_xscale() == "log"
    assert ticks(one.xaxis) == ["1", "10¹", "10²", "10³", "10⁴", "10⁵", "10⁶"]
    assert not one.get_lines()


def test_a_narrow_axis_has_fewer_numbers() -> None:
    one = axes()
    scale_x(one, np.array([1.0, 1e6]), 1.5)
    assert ticks(one.xaxis) == ["1", "10³", "10⁶"]


def test_a_linear_axis_has_ticks_inside_only() -> None:
    one = axes()
    scale_x(one, np.array([1.0, 2, 3, 40]), 5)
    assert one.get_xscale() == "linear"
    assert all(1 <= float(tick) <= 40 for tick in ticks(one.xaxis))


def test_one_step_only() -> None:
    one = axes()
    scale_x(one, np.array([700.0]), 5)
    assert ticks(one.xaxis) == ["700"]


def test_a_little_more_than_two_decades_without_powers_between() -> None:
    one = axes()
    scale_x(one, np.array([2.0, 210]), 5)
    assert ticks(one.xaxis) == ["10", "100"]


def test_ranks_start_at_zero() -> None:
    one = axes()
    scale_y(one, meaning("local_rank"), np.array([40.0, 50.0]))
    assert one.get_ylim() == (0, 52.5)


def test_norms_over_decades_are_logarithmic() -> None:
    one = axes()
    scale_y(one, meaning("jacobian_norm"), np.array([0.01, 50.0]))
    assert one.get_yscale() == "log"
    two = axes()
    scale_y(two, meaning("jacobian_norm"), np.array([0.0, 50.0]))
    assert two.get_yscale() == "linear"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1, "1"),
        (0.5, "0.5"),
        (99999, "99999"),
        (1e5, "10⁵"),
        (1e-5, "10⁻⁵"),
        (25e5, "2.5·10⁶"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text
