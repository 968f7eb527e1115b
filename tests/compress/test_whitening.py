"""Truncated factors against a direct solution of the weighted problem."""

import pytest
import torch
from torch import Tensor

from localrank_cli.compress.whitening import DAMPING, factorize
from tests.compress.cases import low_rank, normal, positive

# Float64 roundoff of a few products of side 8, with condition numbers below 1e3.
ROUNDING = 1e-10


def damped(metric: Tensor) -> Tensor:
    length = metric.shape[0]
    return metric + DAMPING * metric.trace() / length * torch.eye(length, dtype=torch.float64)


def weighted_error(difference: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return (left @ difference @ right @ difference.T).trace()


def solved(matrix: Tensor, rank: int, left: Tensor, right: Tensor) -> Tensor:
    """The least weighted error of a rank, by alternating least squares from several starts."""
    best = torch.tensor(torch.inf, dtype=torch.float64)
    for seed in range(4):
        a = normal(matrix.shape[0], rank, seed=seed)
        for _ in range(3000):
            # Each factor solves its normal equations exactly while the other one is fixed.
            b = torch.linalg.solve(a.T @ left @ a, a.T @ left @ matrix)
            a = matrix @ right @ b.T @ torch.linalg.inv(b @ right @ b.T)
        best = torch.minimum(best, weighted_error(matrix - a @ b, left, right))
    return best


@pytest.mark.parametrize("rank", [2, *(pytest.param(r, marks=pytest.mark.long) for r in (1, 4))])
def test_factors_solve_the_weighted_problem(rank: int) -> None:
    matrix, left, right = normal(5, 7), positive(5, seed=1), positive(7, seed=2)
    found = factorize(matrix, 5, left=left, right=right)
    a, b = found.at(rank)
    left, right = damped(left), damped(right)
    error = weighted_error(matrix - a @ b, left, right)
    torch.testing.assert_close(error, found.errors[rank], rtol=ROUNDING, atol=0)
    # Alternating steps converge linearly; 3000 of them leave less than this.
    torch.testing.assert_close(error, solved(matrix, rank, left, right), rtol=1e-6, atol=0)


def test_a_diagonal_metric_is_the_same_as_its_matrix() -> None:
    matrix, weights = normal(5, 7), normal(5, seed=1).square() + 0.1
    one = factorize(matrix, 5, left=weights)
    other = factorize(matrix, 5, left=weights.diag())
    torch.testing.assert_close(one.values, other.values, rtol=ROUNDING, atol=0)
    for rank in (1, 3):
        a, b = one.at(rank)
        c, d = other.at(rank)
        torch.testing.assert_close(a @ b, c @ d, rtol=0, atol=ROUNDING * 10)


def test_without_metrics_it_is_the_truncated_svd() -> None:
    matrix = normal(6, 4)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    a, b = factorize(matrix, 4).at(2)
    torch.testing.assert_close(a @ b, (u[:, :2] * s[:2]) @ v[:2], rtol=0, atol=ROUNDING)


def test_a_matrix_of_low_rank_comes_back_at_its_rank() -> None:
    matrix = low_rank(6, 9, 3)
    a, b = factorize(matrix, 3, left=positive(6, seed=3), right=positive(9, seed=4)).at(3)
    torch.testing.assert_close(a @ b, matrix, rtol=0, atol=ROUNDING * 10)


@pytest.mark.parametrize("scale", [0.0, 1e-40])
def test_a_metric_that_vanishes_leaves_finite_factors(scale: float) -> None:
    """Of a saturated network, whose gradients underflow, or inputs that never change."""
    matrix = low_rank(6, 9, 2)
    found = factorize(matrix, 2, left=scale * positive(6), right=scale * positive(9))
    a, b = found.at(2)
    torch.testing.assert_close(a @ b, matrix, rtol=0, atol=ROUNDING * 10)


def test_sums_of_squares_that_rounding_leaves_below_zero_are_zero() -> None:
    matrix = normal(5, 6, seed=3)
    metric = torch.tensor([0.0, 1e-30, -1e-30, 0.0, -3e-33], dtype=torch.float64)
    found = factorize(matrix, 3, left=metric)
    expected = factorize(matrix, 3, left=metric.clamp(min=0))
    assert torch.equal(found.values, expected.values)
    assert bool(torch.isfinite(found.values).all())
