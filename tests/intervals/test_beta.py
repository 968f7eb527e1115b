"""Quantiles of the Beta distribution, against closed forms and binomial sums."""

import math

import pytest

from localrank_cli.intervals.beta import (
    cumulative,
    largest_count,
    outward,
    rare_share,
    smallest_count,
)

X = [1e-9, 1e-3, 0.2, 0.5, 0.7, 0.999]


@pytest.mark.parametrize("x", X)
def test_closed_forms(x: float) -> None:
    # The continued fraction stops at 1e-15; lgamma adds a few units of rounding.
    assert cumulative(x, 1, 7) == pytest.approx(-math.expm1(7 * math.log1p(-x)), rel=1e-12)
    assert cumulative(x, 7, 1) == pytest.approx(x**7, rel=1e-12)
    assert cumulative(x, 0.5, 0.5) == pytest.approx(
        2 / math.pi * math.asin(math.sqrt(x)), rel=1e-12
    )


@pytest.mark.parametrize(("a", "b"), [(3, 5), (40, 400), (500, 700), (20_000, 30_000)])
@pytest.mark.parametrize("shift", [-2.0, -0.3, 0.0, 1.5])
def test_binomial_sums(a: int, b: int, shift: float) -> None:
    """P(Beta(a, b) <= x) = P(Binomial(a + b - 1, x) >= a)."""
    n = a + b - 1
    x = a / (a + b) + shift * math.sqrt(a * b / (a + b) ** 3)
    logs = [
        math.lgamma(n + 1) - math.lgamma(j + 1) - math.lgamma(n - j + 1)
        + j * math.log(x) + (n - j) * math.log1p(-x)
        for j in range(a, n + 1)
    ]  # fmt: skip
    # Logarithms of factorials near 5e5 are rounded to 6e-11.
    assert cumulative(x, a, b) == pytest.approx(math.fsum(map(math.exp, logs)), rel=1e-8)


def test_counts_are_the_last_that_are_not_ruled_out() -> None:
    """With two probes, R for N = 1 of d has P(R <= x) = 1 - (1 - x)^(d - 1)."""
    d, delta = 50, 0.01
    edge = -math.expm1(math.log1p(-delta) / (d - 1))
    assert largest_count(edge * (1 - 1e-6), delta, 2, d) == 0
    assert largest_count(edge * (1 + 1e-6), delta, 2, d) >= 1
    assert smallest_count(0.0, delta, 2, d) == 0
    assert smallest_count(1.0, delta, 2, d) == d
    assert rare_share(delta, 2, d) == pytest.approx(edge, rel=1e-9)


def test_one_probe_of_a_large_matrix_is_rare_below_the_padding() -> None:
    """As measured: 1.9e-13 with one probe of 64 points, and 1.6e-9 with two."""
    assert rare_share(0.05 / 640, 1, 50_176) == pytest.approx(1.9e-13, rel=0.05)
    assert rare_share(0.05 / 640, 2, 50_176) == pytest.approx(1.6e-9, rel=0.05)


def test_a_full_rank_loses_none_to_a_rounded_share() -> None:
    """F1: without rounding outward a share of 1 - 2e-16 rules full rank out."""
    share, d = 1 - 2e-16, 100
    assert largest_count(share, 0.01, 2, d) == d - 1
    assert largest_count(outward(0.5, share)[1], 0.01, 2, d) == d
    assert outward(2e-16, 0.5)[0] == 0
