"""Factors of covariances, and the chain's bound on what rounding adds."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from localrank_cli.jacobian.metric_factor import MetricFactor, covariance_factor


def factor_of(data: Tensor, parts: int = 3) -> Tensor:
    chunks = list(torch.tensor_split(data, parts))
    return covariance_factor(lambda: chunks)


@given(st.integers(2, 40), st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**31))
def test_the_factor_is_one_of_numpys_covariance(
    count: int, n_in: int, parts: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(count, n_in, generator=generator, dtype=torch.float64)
    data = data @ torch.randn(n_in, n_in, generator=generator, dtype=torch.float64) + 100
    factor = factor_of(data, min(parts, count))
    assert factor.shape == (n_in, min(count, n_in))
    expected = np.cov(data.numpy(), rowvar=False).reshape(n_in, n_in)
    # Entries near 100 lose two digits to the mean.
    np.testing.assert_allclose(
        (factor @ factor.mT).numpy(), expected, atol=1e-11 * max(1.0, np.abs(expected).max())
    )


def test_squares_of_small_deviations_are_not_lost() -> None:
    # sd 1 and 1e-10: their squares are 20 digits apart, more than a double holds.
    data = torch.randn(50, 2, dtype=torch.float64) * torch.tensor([1.0, 1e-10])
    sigma = torch.linalg.svdvals(factor_of(data))
    assert sigma[1].item() == pytest.approx(1e-10, rel=0.5)


def test_entries_that_never_vary_have_no_weight() -> None:
    data = torch.randn(9, 4, dtype=torch.float64)
    data[:, 2] = 7
    assert bool((factor_of(data)[2].abs() < 1e-14).all())


@pytest.mark.parametrize("count", [3, 30])
def test_a_value_that_is_not_finite_makes_the_factor_nan(count: int) -> None:
    data = torch.randn(count, 5, dtype=torch.float64)
    data[1, 2] = torch.inf
    factor = factor_of(data)
    assert factor.shape == (5, min(count, 5))
    assert bool(factor.isnan().all())


def test_several_covariances_at_once_are_those_of_each_alone() -> None:
    data = torch.randn(50, 3, 4, dtype=torch.float64)
    data[7, 1, 2] = torch.nan
    for count in (3, 50):
        factors = factor_of(data[-count:])
        assert factors.shape == (3, 4, min(count, 4))
        for index in (0, 2):
            torch.testing.assert_close(factors[index], factor_of(data[-count:, index]))
        assert bool(factors[1].isnan().all()) is (count == 50)


def exact(matrix: Tensor) -> "np.ndarray[tuple[int, int], np.dtype[np.object_]]":
    return np.array([[Fraction(entry) for entry in row] for row in matrix.tolist()])


@pytest.mark.parametrize("factor", [torch.tensor(0.3), torch.randn(9, 9), torch.randn(9, 4)])
def test_the_bound_of_a_weighed_layer(factor: Tensor) -> None:
    weight, factor = torch.randn(6, 9, dtype=torch.float64), factor.double()
    product, bound = MetricFactor(factor).weigh(weight)
    full = factor * torch.eye(9, dtype=torch.float64) if factor.dim() == 0 else factor
    error = exact(product) - exact(weight) @ exact(full)
    size = float(sum(entry * entry for entry in error.flatten())) ** 0.5
    assert 0 < size <= bound
    assert bound < 1e-13


@pytest.mark.parametrize("factor", [torch.tensor(0.3), torch.randn(9, 9), torch.randn(9, 4)])
def test_moved(factor: Tensor) -> None:
    metric = MetricFactor(factor.double())
    width = metric.width(9)
    steps = torch.randn(5, width, dtype=torch.float64)
    full = factor.double() * torch.eye(9, dtype=torch.float64) if factor.dim() == 0 else factor
    torch.testing.assert_close(metric.step(steps, 9), steps @ full.double().mT)
