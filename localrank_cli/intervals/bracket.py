"""Certain brackets of x^T P x / |x|^2, P projecting on the eigenspace of A above a threshold.

The Lanczos matrix of x knows the moments of the spectral measure of x. Of the quadrature rules with
these moments, the one with a node at t bounds the measure above t (Chebyshev, Markov, Stieltjes):
the weight of its nodes above t is at most the measure above t, and with that of the node t it is at
least the measure.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from localrank_cli.intervals.beta import PADDING, outward, rare_share
from localrank_cli.intervals.lanczos import Runs, tridiagonal

_EPS = torch.finfo(torch.float64).eps
# The last entry of the matrix with a node at t may be this much larger than all others; its
# eigenvalues are off in proportion.
_LARGEST = 16.0
# How far an eigenvalue of a Lanczos matrix, or of one with a further node, may be off over the
# largest one: c n eps with n up to a few hundred, as eigensolvers do far better than that.
SLACK = 1024 * _EPS


def share_above(
    diagonal: Sequence[float], following: Sequence[float], at: float, top: float
) -> tuple[float, float]:
    """Return bounds of the share of x above a threshold `at` on eigenvalues, without padding.

    `diagonal` and `following` are those of a run; `top` is the largest eigenvalue or more.
    """
    if at < 0:
        return 1.0, 1.0
    if not diagonal:
        return 0.0, 1.0  # no step was taken
    matrix = tridiagonal(diagonal, following[:-1])
    near = SLACK * top
    last = following[-1]
    if last > 0:
        omega = _last_entry(diagonal, following, at)
        if abs(omega) <= _LARGEST * top:
            larger = torch.zeros(len(diagonal) + 1, len(diagonal) + 1, dtype=torch.float64)
            larger[:-1, :-1] = matrix
            larger[-1, -2] = larger[-2, -1] = last
            larger[-1, -1] = omega
            nodes, weights = _rule(larger)
            return _sum(weights, nodes > at + near), _sum(weights, nodes >= at - near)
    nodes, weights = _rule(matrix)
    if last == 0:  # the measure itself
        return _sum(weights, nodes > at + near), _sum(weights, nodes >= at - near)
    above, below = nodes[nodes >= at - near], nodes[nodes <= at + near]
    if not len(above):  # t is far above them, where the last entry grows with t
        return 0.0, _above_all(diagonal, following, at - near)
    # t is nearly a node of the rule without a further one, which bounds the measure at its nodes.
    first = float(above[0])
    low = _sum(weights, nodes > first + near)
    high = _sum(weights, nodes >= float(below[-1]) - near) if len(below) else 1.0
    return low, high


def _rule(matrix: Tensor) -> tuple[Tensor, Tensor]:
    nodes, vectors = torch.linalg.eigh(matrix)
    return nodes, vectors[0].square()


def _sum(weights: Tensor, which: Tensor) -> float:
    return float(weights[which].sum())


def _last_entry(diagonal: Sequence[float], following: Sequence[float], at: float) -> float:
    """Return the last entry of the matrix that has an eigenvalue `at`; inf if there is none."""
    pivot = diagonal[0] - at
    for entry, beside in zip(diagonal[1:], following[:-1], strict=True):
        if pivot == 0:
            pivot = 1e-300
        pivot = entry - at - beside * beside / pivot
    return at + following[-1] ** 2 / pivot if pivot else math.inf


def bracket(runs: Runs, lanes: Sequence[int], at: float, top: float) -> tuple[float, float]:
    """Return bounds of the share of all probes together above a threshold, rounded outward."""
    total = math.fsum(runs.squares[lane] for lane in lanes)
    if total == 0:
        return 0.0, 0.0
    ends = [share_above(runs.diagonals[lane], runs.next[lane], at, top) for lane in lanes]
    low, high = (
        math.fsum(runs.squares[lane] * pair[end] for lane, pair in zip(lanes, ends, strict=True))
        for end in (0, 1)
    )
    return outward(low / total, high / total)


def largest_eigenvalue(runs: Runs, lanes: Sequence[int], delta: float, size: int) -> float:
    """Return a bound on the largest eigenvalue of A that fails with probability delta at most.

    Were there one above t, a share of the probes under `rare_share` would be that rare; t is the
    smallest at which the bracket shows such a share.
    """
    rare = rare_share(delta, len(lanes), size) - PADDING
    total = math.fsum(runs.squares[lane] for lane in lanes)
    start = max(runs.largest, 0.0)
    if not runs.n_steps and total > 0:
        return math.inf

    def share(at: float) -> float:
        """Return the mass of the starting vectors above a value, as far as the runs show it."""
        return math.fsum(
            runs.squares[lane] * _above_all(runs.diagonals[lane], runs.next[lane], at) / total
            for lane in lanes
        )

    if start == 0 or rare <= 0:
        return math.inf if start else 0.0
    low, high = start, start * 1.001
    while share(high) >= rare:
        low, high = high, high * 2
        if not math.isfinite(high):
            return math.inf
    for _ in range(60):
        middle = (low + high) / 2
        if share(middle) >= rare:
            low = middle
        else:
            high = middle
    return high * (1 + SLACK) + SLACK * start


def _above_all(diagonal: Sequence[float], following: Sequence[float], at: float) -> float:
    """Return the largest share at or above t, for t above all Ritz values: 1 / sum p_k(t)^2.

    p_0, ..., p_nu are the orthonormal polynomials of the measure.
    """
    if not diagonal or following[-1] == 0:
        return 0.0
    before, current, total, beta = 0.0, 1.0, 1.0, 0.0
    for entry, beside in zip(diagonal, following, strict=True):
        before, current = current, ((at - entry) * current - beta * before) / beside
        beta = beside
        total += current * current
        if total > 1e280:
            return 0.0
    return 1 / total
