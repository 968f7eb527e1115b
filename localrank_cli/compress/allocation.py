"""The division of a budget of weights among layers, each at some rank or dense."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from localrank_cli.compress.matrix import Shape

# Halvings of the multiplier's logarithm: the interval of 600 orders shrinks below rounding.
_HALVINGS = 80


@dataclass(frozen=True)
class Choice:
    """The states that a layer may take, by cost: ranks from 1 on, then dense."""

    shape: Shape
    errors: np.ndarray  # (most,), of ranks 1 to most

    @property
    def costs(self) -> np.ndarray:
        """The weights of each state, ascending."""
        ranks = np.arange(1, len(self.errors) + 1)
        return np.append(ranks * (self.shape.n_out + self.shape.n_in), self.shape.weights)

    @property
    def losses(self) -> np.ndarray:
        """The error of each state; a dense layer has none."""
        return np.append(self.errors, 0.0)

    def rank(self, state: int) -> int | None:
        """Return the rank of a state; None is dense."""
        return None if state == len(self.errors) else state + 1


def least(shapes: Sequence[Shape]) -> int:
    """Return the weights of all layers at rank 1: no budget below can be reached."""
    return sum(min(shape.cost(1), shape.weights) for shape in shapes)


def allocate(choices: Sequence[Choice], budget: int) -> list[int | None]:
    """Return the rank of each layer, None where dense, of little total error within a budget.

    A Lagrange multiplier prices weights; its choices are optimal for what they cost (Everett 1963).
    What the budget leaves is spent step by step, the best error per weight first. The total error
    exceeds the least possible by no more than one layer's step between neighbours on the convex
    hull of its states.
    """
    costs = [choice.costs for choice in choices]
    losses = [choice.losses for choice in choices]

    def states_at(log_price: float) -> list[int]:
        """Return the best state of each layer where a weight costs 10 ** log_price of error."""
        price = 10.0**log_price
        return [
            int(np.argmin(loss + price * cost)) for loss, cost in zip(losses, costs, strict=True)
        ]

    def total(states: Sequence[int]) -> int:
        """Return the number of weights of all layers."""
        return sum(int(cost[state]) for cost, state in zip(costs, states, strict=True))

    low, high = -300.0, 300.0
    states = [0] * len(choices)  # the cheapest of each
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        tried = states_at(middle)
        if total(tried) <= budget:
            states, high = tried, middle
        else:
            low = middle
    _spend(states, costs, losses, budget - total(states))
    return [choice.rank(state) for choice, state in zip(choices, states, strict=True)]


def _spend(states: list[int], costs: list[np.ndarray], losses: list[np.ndarray], left: int) -> None:
    """Move layers to costlier states while the budget allows, the best gain per weight first."""
    while True:
        best = (0.0, 0, 0)
        for index, state in enumerate(states):
            more = costs[index][state + 1 :] - costs[index][state]
            gains = losses[index][state] - losses[index][state + 1 :]
            fits = (more <= left) & (gains > 0)
            if not fits.any():
                continue
            rates = np.where(fits, gains / np.maximum(more, 1), 0.0)
            step = int(np.argmax(rates))
            best = max(best, (float(rates[step]), index, state + 1 + step))
        rate, index, state = best
        if rate == 0:
            return
        left -= int(costs[index][state] - costs[index][states[index]])
        states[index] = state


def uniform(
    shapes: Sequence[Shape], budget: int, *, keeps_last: bool = True
) -> list[int | None] | None:
    """Return ranks of one ratio for all layers; with `keeps_last` the last one stays dense.

    Ranks are rounded down, then up, the largest remainder first, where the budget allows: rounding
    down alone left up to a tenth of it, and a baseline is to have as many weights as the result.

    Returns:
        None where the budget leaves nothing beside the last layer, or a layer without a rank.
    """
    others, kept = (shapes[:-1], shapes[-1:]) if keeps_last else (shapes, ())
    if not others:
        return None
    left = budget - sum(shape.weights for shape in kept)
    ratio = left / sum(shape.weights for shape in others)
    if ratio >= 1:
        return [None] * len(shapes)
    exact = [ratio * shape.weights / shape.cost(1) for shape in others]
    ranks = [int(rank) for rank in exact]
    left -= sum(shape.cost(rank) for shape, rank in zip(others, ranks, strict=True))
    for index in sorted(range(len(others)), key=lambda one: ranks[one] - exact[one]):
        shape = others[index]
        if shape.cost(1) <= left and ranks[index] < shape.most:
            ranks[index] += 1
            left -= shape.cost(1)
    return None if min(ranks) < 1 else [*ranks, *(None for _ in kept)]
