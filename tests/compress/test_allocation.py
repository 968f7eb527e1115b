"""The division of a budget against trying every division."""

import itertools

import numpy as np
import pytest
import torch

from localrank_cli.compress.allocation import Choice, allocate, least, uniform
from localrank_cli.compress.matrix import Shape

SHAPES = (Shape(6, 8), Shape(10, 6), Shape(7, 7))


def choices(seed: int) -> list[Choice]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for shape in SHAPES:
        values = torch.rand(min(shape.n_out, shape.n_in), generator=generator).double() ** 3
        tails = values.sort(descending=True).values.square().flip(0).cumsum(0).flip(0)
        found.append(Choice(shape, tails[1 : shape.most + 1].numpy()))
    return found


def brute_force(problem: list[Choice], budget: int) -> float:
    best = np.inf
    states = (range(len(choice.costs)) for choice in problem)
    for combination in itertools.product(*states):
        pairs = list(zip(problem, combination, strict=True))
        if sum(choice.costs[state] for choice, state in pairs) <= budget:
            best = min(best, sum(choice.losses[state] for choice, state in pairs))
    return float(best)


def result(problem: list[Choice], ranks: list[int | None]) -> tuple[int, float]:
    cost = sum(choice.shape.cost(rank) for choice, rank in zip(problem, ranks, strict=True))
    error = sum(
        0.0 if rank is None else float(choice.errors[rank - 1])
        for choice, rank in zip(problem, ranks, strict=True)
    )
    return cost, error


def largest_step(problem: list[Choice]) -> float:
    """The largest difference of neighbours on the lower convex hull of a layer's states."""
    steps = []
    for choice in problem:
        points = list(zip(choice.costs.tolist(), choice.losses.tolist(), strict=True))
        hull: list[tuple[float, float]] = []
        for x, y in points:
            while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (x - hull[-2][0]) >= (
                y - hull[-2][1]
            ) * (hull[-1][0] - hull[-2][0]):
                hull.pop()
            hull.append((x, y))
        steps += [a[1] - b[1] for a, b in itertools.pairwise(hull)]
    return max(steps)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.35, 0.5, 0.7, 0.9, 1.0])
def test_the_error_is_within_one_step_of_the_least(seed: int, share: float) -> None:
    problem = choices(seed)
    budget = int(share * sum(shape.weights for shape in SHAPES))
    cost, error = result(problem, allocate(problem, budget))
    optimum = brute_force(problem, budget)
    assert cost <= budget
    # The bound of a Lagrange relaxation; 1e-12 for the order of the sums.
    assert optimum - 1e-12 <= error <= optimum + largest_step(problem) + 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_what_an_optimum_costs_is_divided_as_the_optimum_is(seed: int) -> None:
    """At the cost of a Lagrange solution, that solution is the best of all."""
    problem = choices(seed)
    for price in (1e-4, 1e-3, 1e-2):
        states = [int(np.argmin(c.losses + price * c.costs)) for c in problem]
        budget = int(sum(c.costs[s] for c, s in zip(problem, states, strict=True)))
        _, error = result(problem, allocate(problem, budget))
        assert error == pytest.approx(brute_force(problem, budget), rel=1e-12, abs=1e-15)


def test_all_weights_leave_every_layer_dense() -> None:
    problem = choices(0)
    assert allocate(problem, sum(shape.weights for shape in SHAPES)) == [None] * 3


def test_the_least_budget_is_rank_one_everywhere() -> None:
    problem = choices(0)
    assert least(SHAPES) == 14 + 16 + 14
    assert allocate(problem, least(SHAPES)) == [1, 1, 1]


def test_uniform_keeps_the_last_layer_and_one_ratio() -> None:
    # 48 + 60 + 49 weights: of 110, 61 are left for 108.
    assert uniform(SHAPES, 110) == [int(61 / 108 * 48 / 14), int(61 / 108 * 60 / 16), None]
    assert uniform(SHAPES, 157) == [None, None, None]
    assert uniform(SHAPES, 60) is None


def test_uniform_has_one_ratio_for_all_where_the_last_layer_is_not_among_them() -> None:
    expected = [
        int(110 / 157 * weights / sides) for weights, sides in ((48, 14), (60, 16), (49, 14))
    ]
    assert uniform(SHAPES, 110, keeps_last=False) == expected
    assert uniform(SHAPES[:1], 30, keeps_last=False) == [2]
    assert uniform(SHAPES[:1], 30) is None
