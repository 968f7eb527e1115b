"""Singular values of many Jacobians: Gram eigenvalues where they are certain, else the SVD."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from localrank_cli.jacobian.budget import Budget
from localrank_cli.jacobian.chain import Chain, Factor
from localrank_cli.jacobian.local import LocalJacobian
from localrank_cli.layers.capture import Call
from localrank_cli.spectrum.certificate import Apart, Bound, Shape, certify
from localrank_cli.spectrum.deflation import (
    MIN_DEFLATED_SIZE,
    GramPair,
    gram_pair,
    has_small_values,
    small_values,
)
from localrank_cli.spectrum.lowest import Lowest, lowest_values
from localrank_cli.spectrum.split import split_values
from localrank_cli.spectrum.svd import (
    MAX_STACKED_SIZE,
    gram_eigenvalues,
    rounding,
    singular_values,
    streamed_gram,
    streamed_triangle,
    symmetric_eigenvalues,
    thread_map,
)
from localrank_cli.spectrum.tolerance import Tolerance
from localrank_cli.threads import one_thread

_Item = TypeVar("_Item")

# Up to this size a thread for each matrix beats all threads on one matrix.
_MAX_THREADED_SIZE = 512


@dataclass(frozen=True)
class Demand:
    """The purpose of the singular values: counts at tolerances, and measures."""

    tolerances: tuple[Tolerance, ...] | None  # None: unknown, so the SVD for every matrix
    bounds: tuple[Bound, ...] = ()  # on the errors of the measures that are wanted
    needs_every_value: bool = True  # whether one of them depends on each small value

    def thresholds(self, spectral_norm: Tensor, n_out: int, n_in: int) -> Tensor:
        """Return all values at which counts are wanted, three for each tolerance.

        sigma_1 has shape (points,), the result (points, 3 * tolerances).
        """
        columns = []
        for tolerance in self.tolerances or ():
            tol = tolerance.threshold(spectral_norm, n_out, n_in)
            columns += [factor * tol for factor in tolerance.COUNTED_AT]
        return torch.stack(columns, dim=1) if columns else spectral_norm.new_zeros(0, 0)


@dataclass(frozen=True)
class _Solution:
    eigenvalues: Tensor  # (rank of the matrix,), descending
    error: float
    long_side: int
    lowest: Lowest | None = None  # the last singular values, if they were computed apart


def solve_stack(
    matrices: Tensor,
    demand: Demand,
    n_in: int | None = None,
    error: float = 0.0,
    n_out: int | None = None,
    memory: int = 0,
) -> Tensor:
    """Return the singular values of Jacobians that are held: (points, min(n_out, n_in)).

    They are float64, on the CPU, descending.

    Args:
        matrices: Shape (points, n_out or fewer, n_in or fewer), finite.
        demand: Their purpose.
        n_in: Columns of the Jacobians, where `matrices` have fewer.
        error: How far singular values of `matrices` may be from those of the Jacobians.
        n_out: Rows of the Jacobians, where `matrices` have fewer.
        memory: As in `solve_local`.
    """
    count, rows, columns = matrices.shape
    shape = (rows if n_out is None else n_out, columns if n_in is None else n_in)
    if count == 0:
        return torch.empty(0, min(shape), dtype=torch.float64, device="cpu")
    if count > 1 and all(torch.equal(matrices[0], matrix) for matrix in matrices[1:]):
        # A first layer: its Jacobian is its weight at every point.
        return solve_stack(matrices[:1], demand, n_in, error, n_out).expand(count, -1)
    if demand.tolerances is None:
        return _padded(singular_values(matrices), min(shape))
    if min(rows, columns) <= MAX_STACKED_SIZE:
        eigenvalues = gram_eigenvalues(matrices)
        solved = [_Solution(row, error, max(rows, columns)) for row in eigenvalues]
    else:
        size = min(rows, columns)
        is_small = size <= _MAX_THREADED_SIZE
        at_once = None if is_small else _side_by_side(size, memory, [matrices])

        def squared(index: int) -> _Solution:
            """Return what the Gram matrix of one Jacobian gives."""
            return _squared(matrices[index], error, demand)

        solved = thread_map(squared, range(count), are_small=is_small, at_once=at_once)

    return _certain_values(
        solved,
        shape,
        demand,
        _solver(lambda index: (matrices[index], error), solved, shape, demand),
    )


def _squared(matrix: Tensor, error: float, demand: Demand) -> _Solution:
    """Return the eigenvalues of a matrix's Gram matrix, and apart what they do not resolve."""
    return _resolved(gram_pair(matrix), error, demand)


def _resolved(pair: GramPair, error: float, demand: Demand) -> _Solution:
    lowest = lowest_values(pair) if demand.needs_every_value else None
    return _Solution(pair.eigenvalues, error, pair.matrix.shape[0], lowest)


def _solve_one(matrix: Tensor, shape: tuple[int, int], error: float, demand: Demand) -> Tensor:
    """Return the singular values of a matrix M, by the cheapest way that is certain.

    `shape` is that of the Jacobian whose singular values are within `error` of M's. The result has
    shape (1, min(n_out, n_in)), float64, CPU, descending.
    """
    if demand.tolerances is None or min(matrix.shape) < MIN_DEFLATED_SIZE:
        return _padded(singular_values(matrix).unsqueeze(0), min(shape))
    return _solve_pair(gram_pair(matrix), shape, error, demand)


def _solve_pair(pair: GramPair, shape: tuple[int, int], error: float, demand: Demand) -> Tensor:
    """Do what `_solve_one` does, for a matrix whose Gram matrix is known."""
    solution = _resolved(pair, error, demand)

    def surely(_: Sequence[int]) -> Tensor:
        """Compute the singular values by the SVD."""
        return _padded(_refined(pair, shape, error, demand).unsqueeze(0), min(shape))

    return _certain_values([solution], shape, demand, surely)


def _solve_surely(
    found: tuple[Tensor, float], shape: tuple[int, int], eigenvalues: Tensor, demand: Demand
) -> Tensor:
    """Return the singular values of a matrix whose `eigenvalues` were not certain.

    `found` is the matrix and its error; the result has shape (its short side,).

    Small values that a gap sets apart are refined until they are as good as the SVD's; otherwise it
    is the SVD.
    """
    matrix, error = found
    if len(eigenvalues) < MIN_DEFLATED_SIZE or not has_small_values(eigenvalues):
        return singular_values(matrix)
    return _refined(gram_pair(matrix), shape, error, demand)


def _refined(pair: GramPair, shape: tuple[int, int], error: float, demand: Demand) -> Tensor:
    """Return the singular values of a matrix with those that a gap sets apart refined, or its SVD.

    `shape` and `error` are as in `_solve_one`; the result has shape (short side,).
    """
    small = small_values(pair)
    if small is not None:
        refined = _Solution(pair.eigenvalues, error, pair.matrix.shape[0], Lowest(small, 0.0))
        values, holds = _certified([refined], shape, demand)
        if bool(holds.all()):
            return values[0, : len(pair.eigenvalues)]
    return singular_values(pair.matrix)


def solve_blocks(
    blocks: Callable[[], Iterator[Tensor]],
    shape: tuple[int, int],
    demand: Demand,
    error: float = 0.0,
) -> Tensor:
    """Return the singular values of a Jacobian in blocks: (1, min(n_out, n_in)).

    They are float64, on the CPU, descending.

    Args:
        blocks: Starts a walk: each block is (some of the longer side, shorter side).
        shape: n_out and n_in of the Jacobian, of which the blocks may have fewer columns.
        demand: Their purpose.
        error: How far singular values of the blocks may be from those of the Jacobian.
    """

    def surely(_: Sequence[int]) -> Tensor:
        """Compute the singular values from the triangle of all blocks."""
        return _solve_one(streamed_triangle(blocks), shape, error, demand)

    if demand.tolerances is None:
        return surely([0])
    solved = [_Solution(streamed_gram(blocks()), error, max(shape))]
    return _certain_values(solved, shape, demand, surely)


@dataclass(frozen=True)
class LocalCall:
    """Some points' Jacobians of one call, which are tall and have many zeros."""

    jacobians: Sequence[LocalJacobian]
    shape: tuple[int, int]  # n_out and n_in
    error: float = 0.0  # how far their singular values may be from those of the network's Jacobians


def solve_local(calls: Sequence[LocalCall], demand: Demand, memory: int = 0) -> list[Tensor]:
    """Return the singular values of tall Jacobians with many zeros: (points, n_in) for each call.

    They are float64, on the CPU, descending.

    Args:
        calls: Their Jacobians.
        demand: Their purpose.
        memory: Bytes for all of it, which decides how many matrices are solved side by side.
    """
    if demand.tolerances is None:
        return [_local_svd(one) for one in calls]
    jacobians = [jacobian for one in calls for jacobian in one.jacobians]
    if not jacobians:
        return [_local_svd(one) for one in calls]
    widest = max(one.shape[1] for one in calls)
    outputs = [jacobian.outputs for jacobian in jacobians]
    # A sum without the terms that are exactly zero: the bound of the whole product holds.
    squares = thread_map(
        lambda jacobian: symmetric_eigenvalues(jacobian.gram()),
        jacobians,
        are_small=widest <= _MAX_THREADED_SIZE,
        at_once=_side_by_side(widest, memory, outputs),
    )
    found, start = [], 0
    for one in calls:
        stop = start + len(one.jacobians)
        found.append(_local_values(one, squares[start:stop], demand))
        start = stop
    return found


def _local_svd(call: LocalCall) -> Tensor:
    width = min(call.shape)
    if not call.jacobians:
        return torch.empty(0, width, dtype=torch.float64, device="cpu")
    return _padded(torch.stack([singular_values(one.dense()) for one in call.jacobians]), width)


def _local_values(call: LocalCall, squares: Sequence[Tensor], demand: Demand) -> Tensor:
    """Return the singular values of one call's Jacobians, whose squares are known."""
    jacobians, shape, error = call.jacobians, call.shape, call.error
    if not jacobians:
        return torch.empty(0, min(shape), dtype=torch.float64, device="cpu")

    def surely(indices: Sequence[int]) -> Tensor:
        """Compute those whose squares leave a count uncertain from the Jacobians themselves."""
        found = []
        for index in indices:
            whole = jacobians[index].dense()
            if min(shape) < MIN_DEFLATED_SIZE:
                found.append(_padded(singular_values(whole).unsqueeze(0), min(shape)))
                continue
            # Its zeros are left out again, and no eigenvalue is computed twice.
            pair = GramPair(whole, jacobians[index].gram(), squares[index])
            found.append(_solve_pair(pair, shape, error, demand))
        return torch.cat(found)

    solved = [_Solution(row, error, max(shape)) for row in squares]
    return _certain_values(solved, shape, demand, surely)


def _side_by_side(size: int, memory: int, held: Sequence[Tensor]) -> int:
    """Return how many matrices are solved at once: on a GPU one, which it fills."""
    n_bytes = sum(one.numel() * one.element_size() for one in held)
    return Budget(memory).squares(size, n_bytes) if held[0].device.type == "cpu" else 1


def solve_chain(
    chain: Chain, points: Sequence[int], shapes: dict[Call, tuple[int, int]], demand: Demand
) -> dict[Call, Tensor]:
    """Return the singular values of all Jacobians of a chain, by call.

    Each has shape (len(points), min(n_out, n_in)), float64, CPU, descending. `points` are those
    that count, and `shapes` holds n_out and n_in of each wanted call.
    """
    weights = chain.first_layers()
    rest = [call for call in shapes if call not in weights]
    are_small = max(min(shape) for shape in shapes.values()) <= _MAX_THREADED_SIZE

    def prepared(weight: Tensor | None) -> Tensor:
        """Return the singular values of a first layer; of None, reduce all for what is behind."""
        if weight is not None:
            return solve_stack(weight.unsqueeze(0), demand)
        if rest and points:
            chain.prepare()
        return torch.empty(0, device="cpu")

    # The Jacobians of first layers are the same at every point.
    _, *first = _each(prepared, [None, *weights.values()], are_small=are_small)
    found = {call: one.expand(len(points), -1) for call, one in zip(weights, first, strict=True)}
    if not rest or not points or demand.tolerances is None:
        return found | {call: _svd(chain, points, call, min(shapes[call])) for call in rest}

    def squared(point: int) -> dict[Call, _Solution]:
        """Return what the Gram matrices of all factors give at one point."""
        factors = chain.factors(point, frozenset(rest))
        return {factor.call: _of_factor(factor, demand) for factor in factors}

    def certified(call: Call) -> tuple[Tensor, Tensor]:
        """Return a call's values by squares, and for which of them to use these."""
        return _certified([one[call] for one in by_point], shapes[call], demand)

    def surely(doubtful: tuple[Call, int]) -> Tensor:
        """Return a call's values at one point, from the matrix itself."""
        call, index = doubtful
        matrix = _factors(chain, points, call)(index)
        return _solve_surely(matrix, shapes[call], by_point[index][call].eigenvalues, demand)

    by_point = thread_map(squared, points, are_small=are_small)
    certain = dict(zip(rest, thread_map(certified, rest, are_small=True), strict=True))
    found |= {call: values for call, (values, _) in certain.items()}
    doubtful = [(call, index) for call, (_, holds) in certain.items() for index in _doubtful(holds)]
    is_narrow = {call: min(shapes[call]) <= _MAX_THREADED_SIZE for call in rest}
    for are_narrow in (True, False):
        some = [(call, index) for call, index in doubtful if is_narrow[call] == are_narrow]
        for (call, index), row in zip(some, _each(surely, some, are_small=are_narrow), strict=True):
            found[call][index] = _padded(row, min(shapes[call]))
    return found


def _of_factor(factor: Factor, demand: Demand) -> _Solution:
    """Return the squares of a factor's singular values, in two parts where they are known."""
    matrix = factor.matrix
    if factor.large is not None and demand.needs_every_value:
        split = split_values(matrix, factor.large)
        if split is not None:
            error = factor.error + split.error
            return _Solution(split.eigenvalues, error, max(matrix.shape), split.lowest)
    found = _squared(matrix, factor.error, demand)
    if found.lowest is None or found.lowest.slack > 0:
        return found
    # These are the SVD's, but of a matrix that squares may be in: counts heed its error.
    norm = max(float(found.eigenvalues[0]), 0.0) ** 0.5
    slack = rounding(norm, max(matrix.shape), torch.float64)
    return replace(found, lowest=replace(found.lowest, slack=slack))


def _svd(chain: Chain, points: Sequence[int], call: Call, width: int) -> Tensor:
    factor = _factors(chain, points, call)

    def values(index: int) -> Tensor:
        """Return the singular values of one matrix by the SVD."""
        return _padded(singular_values(factor(index)[0]), width)

    if not points:
        return torch.empty(0, width, dtype=torch.float64, device="cpu")
    are_small = width <= _MAX_THREADED_SIZE
    return torch.stack(thread_map(values, range(len(points)), are_small=are_small))


def _factors(
    chain: Chain, points: Sequence[int], call: Call
) -> Callable[[int], tuple[Tensor, float]]:
    """Return a function of an index among the points that computes a call's matrix anew.

    What the SVD makes of it is taken as it is, so that no squares are in it.
    """

    def factor(index: int) -> tuple[Tensor, float]:
        """Compute the matrix at one point, and its error."""
        (only,) = chain.factors(points[index], frozenset([call]), squares=False)
        return only.matrix, only.error

    return factor


def _solver(
    matrix: Callable[[int], tuple[Tensor, float]],
    solved: Sequence[_Solution],
    shape: tuple[int, int],
    demand: Demand,
) -> Callable[[Sequence[int]], Tensor]:
    """Return a function that solves, in any case, the matrices with given indices.

    `matrix` gives that of an index, and its error.
    """

    def values(index: int) -> Tensor:
        """Solve the matrix of one index."""
        return _solve_surely(matrix(index), shape, solved[index].eigenvalues, demand)

    def surely(indices: Sequence[int]) -> Tensor:
        """Solve the matrices of some indices, small ones in several threads."""
        found = _each(values, indices, are_small=min(shape) <= _MAX_THREADED_SIZE)
        return torch.stack([_padded(row, min(shape)) for row in found])

    return surely


def _each(
    work: Callable[[_Item], Tensor], items: Sequence[_Item], *, are_small: bool
) -> list[Tensor]:
    """Return the results for all items: of small ones side by side, else with all threads each."""
    if are_small:
        return thread_map(work, items, are_small=True)
    return [work(item) for item in items]


def _certain_values(
    solved: Sequence[_Solution],
    shape: tuple[int, int],
    demand: Demand,
    surely: Callable[[Sequence[int]], Tensor],
) -> Tensor:
    """Return square roots where the certificate holds; elsewhere what `surely` returns."""
    return _settled(*_certified(solved, shape, demand), surely)


def _settled(values: Tensor, holds: Tensor, surely: Callable[[Sequence[int]], Tensor]) -> Tensor:
    """Return values with those that do not hold replaced by what `surely` returns."""
    doubtful = _doubtful(holds)
    if doubtful:
        values[doubtful] = surely(doubtful)
    return values


def _doubtful(holds: Tensor) -> list[int]:
    """Return which matrices were not certified."""
    # A comparison with NaN is false: what is not finite or out of range never is.
    found: list[int] = (~holds).nonzero().squeeze(1).tolist()
    return found


@one_thread()  # a few numbers for each value
def _certified(
    solved: Sequence[_Solution], shape: tuple[int, int], demand: Demand
) -> tuple[Tensor, Tensor]:
    """Return singular values, (matrices, min(n_out, n_in)), and for which of them to use these."""
    n_out, n_in = shape
    eigenvalues = torch.stack([_padded(one.eigenvalues, min(shape)) for one in solved])
    values = eigenvalues.clamp(min=0).sqrt()
    apart = None
    if any(one.lowest is not None for one in solved):
        apart = _put_lowest(solved, eigenvalues, values)
    holds = certify(
        eigenvalues,
        torch.tensor([one.error for one in solved], dtype=torch.float64, device="cpu"),
        [Shape(n_out, n_in, one.long_side, len(one.eigenvalues)) for one in solved],
        demand.thresholds(values[:, 0], n_out, n_in),
        demand.bounds,
        apart,
    )
    return values, holds


def _put_lowest(solved: Sequence[_Solution], eigenvalues: Tensor, values: Tensor) -> Apart:
    """Write the values that were computed apart, and their squares, into the rows of the others."""
    for row, one in enumerate(solved):
        if one.lowest is not None:
            last = len(one.eigenvalues)
            start = last - len(one.lowest.values)
            values[row, start:last] = one.lowest.values
            eigenvalues[row, start:last] = one.lowest.values.square()
            # Next to each other, one from either way may be out of order by its error.
            values[row] = values[row].sort(descending=True).values
    lowest = [
        (0, 0.0) if one.lowest is None else (len(one.lowest.values), one.lowest.slack)
        for one in solved
    ]
    counts, slack = zip(*lowest, strict=True)
    return Apart(
        torch.tensor(counts, dtype=torch.int64, device="cpu"),
        torch.tensor(slack, dtype=torch.float64, device="cpu"),
    )


def _padded(values: Tensor, width: int) -> Tensor:
    """Return values of shape (..., any) as (..., width), with zeros added or dropped at the end."""
    missing = width - values.shape[-1]
    return functional.pad(values, (0, missing)) if missing > 0 else values[..., :width]
