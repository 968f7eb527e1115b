"""Means and standard errors over points."""

import math
import statistics
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localrank_cli.measures.layer import Average, average

numbers = st.floats(-1e6, 1e6)
U = 2.0**-53


def test_no_points() -> None:
    assert average([]) == Average(None, None)


@given(value=st.floats(0, 1e308))
def test_one_point_has_no_error(value: float) -> None:
    assert average([value]) == Average(value, None)


def test_by_hand() -> None:
    # Deviations -2, 0, 2: variance 8 / 2 = 4, error 2 / sqrt(3).
    found = average([1, 3, 5])
    assert found.mean == 3
    assert found.error == pytest.approx(2 / math.sqrt(3), rel=4 * U)


@given(values=st.lists(numbers, min_size=2, max_size=50))
def test_mean_is_exact_to_two_roundings(values: list[float]) -> None:
    exact = sum(map(Fraction, values), Fraction()) / len(values)
    found = average(values).mean
    assert found is not None
    assert abs(Fraction(found) - exact) <= abs(exact) * Fraction(3 * U) + Fraction(5e-324)


@given(values=st.lists(numbers, min_size=2, max_size=50))
def test_error_is_sample_deviation_over_root_n(values: list[float]) -> None:
    expected = statistics.stdev(map(Fraction, values)) / math.sqrt(len(values))
    # The mean's rounding moves every deviation by 2 u |mean|.
    off = 4 * U * max(map(abs, values)) + 20 * U * float(expected)
    assert average(values).error == pytest.approx(float(expected), rel=0, abs=off)


@given(values=st.lists(numbers, min_size=2, max_size=30), data=st.data())
def test_order_does_not_matter_to_the_last_bit(values: list[float], data: st.DataObject) -> None:
    assert average(values) == average(data.draw(st.permutations(values)))


@given(value=st.floats(1e-300, 1e300), n=st.integers(2, 40))
def test_equal_values_have_no_spread(value: float, n: int) -> None:
    found = average([value] * n)
    assert found.mean == pytest.approx(value, rel=2 * U, abs=0)
    assert found.error is not None
    assert 0 <= found.error <= 4 * U * value


def test_cancellation_in_a_plain_sum() -> None:
    assert average([1e16, 1.0, -1e16]).mean == pytest.approx(1 / 3, rel=2 * U)


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-160, 1e160, 1e200, 8e307])
def test_extreme_scales(scale: float) -> None:
    # Neither the sum of two 1.6e308 nor a square of a deviation may overflow or vanish.
    found = average([scale, 2 * scale])
    assert found.mean == pytest.approx(1.5 * scale, rel=4 * U, abs=0)
    assert found.error == pytest.approx(0.5 * scale, rel=8 * U, abs=0)
