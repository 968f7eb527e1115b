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
    # 48 + 60 + 49 weights: of 110, 61 are left for 108, ranks of 1.94 and 2.12. One rank more takes
    # 14 or 16, and 61 - 14 - 2 * 16 = 15 are left.
    assert uniform(SHAPES, 110) == [2, 2, None]
    assert uniform(SHAPES, 157) == [None, None, None]
    assert uniform(SHAPES, 60) is None


def test_uniform_has_one_ratio_for_all_where_the_last_layer_is_not_among_them() -> None:
    # Ranks of 2.40, 2.63 and 2.45: of 110, rounded down, 22 are left.
    assert uniform(SHAPES, 110, keeps_last=False) == [2, 3, 2]
    assert uniform(SHAPES[:1], 30, keeps_last=False) == [2]
    assert uniform(SHAPES[:1], 30) is None


@pytest.mark.parametrize("keeps_last", [True, False])
def test_uniform_spends_the_budget_and_stays_at_one_ratio(*, keeps_last: bool) -> None:
    """Whatever the shapes: no layer below its share could have another rank."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        shapes = [Shape(*map(int, generator.integers(6, 60, 2))) for _ in range(5)]
        total = sum(shape.n_out * shape.n_in for shape in shapes)
        budget = int(generator.uniform(0.2, 0.99) * total)
        found = uniform(shapes, budget, keeps_last=keeps_last)
        if found is None:
            continue
        last = shapes[-1].n_out * shapes[-1].n_in if keeps_last else 0
        ranks = [rank for rank in found if rank is not None]
        assert len(ranks) == (4 if keeps_last else 5)
        pairs = list(zip(shapes, ranks, strict=False))  # the last one may be dense
        left = budget - last - sum((shape.n_out + shape.n_in) * rank for shape, rank in pairs)
        assert left >= 0
        for shape, rank in pairs:
            sides, weights = shape.n_out + shape.n_in, shape.n_out * shape.n_in
            exact = (budget - last) / (total - last) * weights / sides
            assert abs(rank - exact) <= 1
            assert rank * sides < weights  # of more the layer would be smaller dense
            assert left < sides or rank > exact or (rank + 1) * sides >= weights
