"""The narrowest place of a graph, against the rank of the Jacobian by autograd."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from localrank_cli.jacobian.cuts import rank_bound

N = 12


def weight(rows: int, columns: int, seed: int = 0) -> Tensor:
    random = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(rows, columns, generator=random, dtype=torch.float64)


WIDE, DOWN, UP = weight(15, N, 1), weight(4, 15, 2), weight(20, 4, 3)
BESIDE = weight(20, 2, 4) @ weight(2, N, 5)


def bottleneck(x: Tensor) -> Tensor:
    return UP @ torch.tanh(DOWN @ torch.tanh(WIDE @ x))


def around(x: Tensor) -> Tensor:
    """A second path: the narrow place is not passed by everything."""
    return bottleneck(x) + weight(20, N, 6) @ x.sin()


def halves(x: Tensor) -> Tensor:
    """Both parts of what an operation with several results gives."""
    first, second = torch.tanh(DOWN @ x.repeat(2)[:15]).chunk(2)
    return UP @ torch.cat([first * second, second])


def few_active(x: Tensor) -> Tensor:
    """Of 15 units 5 are active, and the graph forks again behind them."""
    bias = torch.where(torch.arange(15) < 5, 100.0, -100.0).double()
    hidden = torch.relu(WIDE @ x + bias)
    return weight(20, 15, 7) @ hidden + weight(20, 15, 8) @ torch.tanh(hidden / 100)


def few_inputs(x: Tensor) -> Tensor:
    return weight(20, 3, 9) @ torch.cat([x[1:3], x[7:8]])


def split_in_two(x: Tensor) -> Tensor:
    """Two paths, each narrower than both together."""
    return torch.cat([UP @ torch.tanh(DOWN @ (WIDE @ x)), BESIDE @ x])


def complex_parts(x: Tensor) -> Tensor:
    z = torch.complex(DOWN[:3] @ x.repeat(2)[:15], DOWN[1:] @ x.repeat(2)[:15].cos())
    return UP @ torch.cat([torch.view_as_real(z * z).flatten()[:4]])


CASES: list[tuple[Callable[[Tensor], Tensor], int]] = [
    (bottleneck, 4), (around, N), (halves, 4), (few_active, 5), (few_inputs, 3),
    (split_in_two, N), (complex_parts, 4), (lambda x: 2 * x, N), (lambda x: torch.relu(x + 100), N),
    (lambda x: x[:1] + x[1:2], 1), (lambda x: (weight(20, N) @ x) * 1e-200, N),
]  # fmt: skip


@pytest.mark.parametrize(("function", "bound"), CASES)
def test_the_rank_is_at_most_the_narrowest_place(
    function: Callable[[Tensor], Tensor], bound: int
) -> None:
    varied = weight(1, N, 11)[0].requires_grad_(True)
    output = function(varied)
    found = rank_bound(output, varied, weight(1, output.numel(), 12)[0])
    whole = torch.func.jacrev(function)(varied.detach())
    assert torch.linalg.matrix_rank(whole) <= found == bound


def test_gradients_that_may_have_vanished_count() -> None:
    """Half of the entries at the second product would be below the smallest number."""
    varied = weight(1, N, 11)[0].requires_grad_(True)
    scales = torch.where(torch.arange(N) < N // 2, 1e-160, 1.0).double()
    output = 1e-160 * ((varied * 1e-160) * scales)
    assert rank_bound(output, varied, torch.ones(N).double()) == N


def test_hooks_are_taken_away() -> None:
    varied = weight(1, N, 11)[0].requires_grad_(True)
    output = bottleneck(varied)
    u = weight(1, output.numel(), 12)[0]
    first = rank_bound(output, varied, u)
    assert rank_bound(output, varied, 0 * u) == 0
    assert rank_bound(output, varied, u) == first
