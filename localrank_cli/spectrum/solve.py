"""Singular values of many Jacobians: Gram eigenvalues where they are certain, else the SVD."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from localrank_cli.jacobian.chain import Chain, Factor
from localrank_cli.jacobian.local import LocalJacobian
from localrank_cli.layers.capture import Call
from localrank_cli.spectrum.certificate import Bound, Shape, certify
from localrank_cli.spectrum.deflation import MIN_DEFLATED_SIZE, gram_pair, small_values
from localrank_cli.spectrum.svd import (
    MAX_STACKED_SIZE,
    gram_eigenvalues,
    singular_values,
    streamed_gram,
    streamed_triangle,
    symmetric_eigenvalues,
    thread_map,
)
from localrank_cli.spectrum.tolerance import Tolerance

# Up to this size a thread for each matrix beats all threads on one matrix.
_MAX_THREADED_SIZE = 512


@dataclass(frozen=True)
class Demand:
    """The purpose of the singular values: counts at tolerances, and measures."""

    tolerances: tuple[Tolerance, ...] | None  # None: unknown, so the SVD for every matrix
    bounds: tuple[Bound, ...] = ()  # on the errors of the measures that are wanted

    def thresholds(self, spectral_norm: Tensor, n_out: int, n_in: int) -> Tensor:
        """Return all values at which counts are wanted: tol, 0.99 tol and 1.01 tol per tolerance.

        sigma_1 has shape (points,), the result (points, 3 * tolerances).
        """
        columns = []
        for tolerance in self.tolerances or ():
            tol = tolerance.threshold(spectral_norm, n_out, n_in)
            columns += [tol, 0.99 * tol, 1.01 * tol]
        return torch.stack(columns, dim=1) if columns else spectral_norm.new_zeros(0, 0)


@dataclass(frozen=True)
class _Solution:
    eigenvalues: Tensor  # (rank of the matrix,), descending
    error: float
    long_side: int


def solve_stack(
    matrices: Tensor,
    demand: Demand,
    n_in: int | None = None,
    error: float = 0.0,
    n_out: int | None = None,
) -> Tensor:
    """Return the singular values of Jacobians that are held: (points, min(n_out, n_in)).

    They are float64, on the CPU, descending.

    Args:
        matrices: Shape (points, n_out or fewer, n_in or fewer), finite.
        demand: Their purpose.
        n_in: Columns of the Jacobians, where `matrices` have fewer.
        error: How far singular values of `matrices` may be from those of the Jacobians.
        n_out: Rows of the Jacobians, where `matrices` have fewer.
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
    if min(rows, columns) >= MIN_DEFLATED_SIZE:
        return _solve_each(matrices, shape, error, demand)
    if min(rows, columns) <= MAX_STACKED_SIZE:
        eigenvalues = gram_eigenvalues(matrices)
    else:
        eigenvalues = torch.stack(thread_map(lambda i: gram_eigenvalues(matrices[i]), range(count)))
    solved = [_Solution(row, error, max(rows, columns)) for row in eigenvalues]

    def svd(indices: Sequence[int]) -> Tensor:
        # One at a time: a copy of all of them would double what is held.
        values = torch.stack([singular_values(matrices[index]) for index in indices])
        return _padded(values, min(shape))

    return _certain_values(solved, shape, demand, svd)


def _solve_each(matrices: Tensor, shape: tuple[int, int], error: float, demand: Demand) -> Tensor:
    def solve(matrix: Tensor) -> Tensor:
        return _solve_one(matrix, shape, error, demand)

    if min(matrices.shape[1:]) <= _MAX_THREADED_SIZE:
        values = torch.stack(thread_map(solve, matrices))
    else:
        values = torch.stack([solve(matrix) for matrix in matrices])
    return _padded(values, min(shape))


def _solve_one(matrix: Tensor, shape: tuple[int, int], error: float, demand: Demand) -> Tensor:
    """Return the singular values of a matrix M, by the cheapest way that is certain.

    `shape` is that of the Jacobian whose singular values are within `error` of M's. As many as the
    shorter side of M, float64, CPU, descending.
    """
    values = None
    if demand.tolerances is not None and min(matrix.shape) >= MIN_DEFLATED_SIZE:
        values = _from_squares(matrix, shape, error, demand)
    return singular_values(matrix) if values is None else values


def _from_squares(
    matrix: Tensor, shape: tuple[int, int], error: float, demand: Demand
) -> Tensor | None:
    """Return all singular values without an SVD of the whole; None where that is not certain."""
    pair = gram_pair(matrix)
    sizes = Shape(*shape, *pair.matrix.shape)
    values = pair.eigenvalues.clamp(min=0).sqrt()
    if bool(torch.isnan(values).any()):
        return None
    thresholds = demand.thresholds(values[:1], *shape)

    def serve(leading: int) -> bool:
        found = pair.eigenvalues.unsqueeze(0)
        errors = found.new_full((1,), error)
        return bool(certify(found, errors, [sizes], thresholds, demand.bounds, leading))

    if serve(len(values)):
        return values
    small = small_values(pair)
    if small is None or not serve(len(values) - len(small)):
        return None
    return torch.cat([values[: -len(small)], small])


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

    def svd(_: Sequence[int]) -> Tensor:
        triangle = streamed_triangle(blocks)
        return _padded(_solve_one(triangle, shape, error, demand).unsqueeze(0), min(shape))

    if demand.tolerances is None:
        return svd([0])
    solved = [_Solution(streamed_gram(blocks()), error, max(shape))]
    return _certain_values(solved, shape, demand, svd)


def solve_local(
    jacobians: Sequence[LocalJacobian],
    shape: tuple[int, int],
    demand: Demand,
    error: float = 0.0,
) -> Tensor:
    """Return the singular values of tall Jacobians with many zeros: (len(jacobians), n_in).

    They are float64, on the CPU, descending.

    Args:
        jacobians: Some points' of one call.
        shape: n_out and n_in.
        demand: Their purpose.
        error: How far their singular values may be from those of the network's Jacobians.
    """

    def svd(indices: Sequence[int]) -> Tensor:
        rows = [_solve_one(jacobians[index].dense(), shape, error, demand) for index in indices]
        return _padded(torch.stack(rows), min(shape))

    if not jacobians:
        return torch.empty(0, min(shape), dtype=torch.float64, device="cpu")
    if demand.tolerances is None:
        return svd(range(len(jacobians)))
    # A sum without the terms that are exactly zero: the bound of the whole product holds.
    squares = [symmetric_eigenvalues(jacobian.gram()) for jacobian in jacobians]
    solved = [_Solution(row, error, max(shape)) for row in squares]
    return _certain_values(solved, shape, demand, svd)


def solve_chain(
    chain: Chain, points: Sequence[int], shapes: dict[Call, tuple[int, int]], demand: Demand
) -> dict[Call, Tensor]:
    """Return the singular values of all Jacobians of a chain, by call.

    Each has shape (len(points), min(n_out, n_in)), float64, CPU, descending.

    Args:
        chain: The network at a batch of points.
        points: The points that count.
        shapes: n_out and n_in of each wanted call.
        demand: The purpose of the singular values.
    """
    found: dict[Call, Tensor] = {}
    for call, weight in chain.first_layers().items():
        values = solve_stack(weight.unsqueeze(0), demand)
        found[call] = values.expand(len(points), -1)
    rest = frozenset(shapes) - set(found)
    if not rest or not points:
        empty = {
            call: torch.empty(0, min(shapes[call]), dtype=torch.float64, device="cpu")
            for call in rest
        }
        return found | empty

    def eigenvalues(point: int) -> dict[Call, _Solution]:
        return {
            factor.call: _Solution(
                gram_eigenvalues(factor.matrix), factor.error, max(factor.matrix.shape)
            )
            for factor in chain.factors(point, rest)
        }

    by_point = thread_map(eigenvalues, points)
    for call in rest:
        svd = _chain_svd(chain, points, call, shapes[call], demand)
        found[call] = _certain_values(
            [solved[call] for solved in by_point], shapes[call], demand, svd
        )
    return found


def _chain_svd(
    chain: Chain, points: Sequence[int], call: Call, shape: tuple[int, int], demand: Demand
) -> Callable[[Sequence[int]], Tensor]:
    def values(index: int) -> Tensor:
        (factor,) = _factors(chain, points[index], call)
        return _padded(_solve_one(factor.matrix, shape, factor.error, demand), min(shape))

    def svd(indices: Sequence[int]) -> Tensor:
        return torch.stack(thread_map(values, indices))

    return svd


def _factors(chain: Chain, point: int, call: Call) -> list[Factor]:
    return list(chain.factors(point, frozenset([call])))


def _certain_values(
    solved: Sequence[_Solution],
    shape: tuple[int, int],
    demand: Demand,
    svd: Callable[[Sequence[int]], Tensor],
) -> Tensor:
    """Return square roots where the certificate holds, and the SVD of the matrix elsewhere."""
    n_out, n_in = shape
    width = min(shape)
    eigenvalues = torch.stack([_padded(one.eigenvalues, width) for one in solved])
    values = eigenvalues.clamp(min=0).sqrt()
    if demand.tolerances is None:
        holds = torch.zeros(len(solved), dtype=torch.bool, device="cpu")
    else:
        holds = certify(
            eigenvalues,
            torch.tensor([one.error for one in solved], dtype=torch.float64, device="cpu"),
            [Shape(n_out, n_in, one.long_side, len(one.eigenvalues)) for one in solved],
            demand.thresholds(values[:, 0], n_out, n_in),
            demand.bounds,
        )
    # A comparison with NaN is false: what is not finite or out of range is never certified.
    doubtful = (~holds).nonzero().squeeze(1).tolist()
    if doubtful:
        values[doubtful] = svd(doubtful)
    return values


def _padded(values: Tensor, width: int) -> Tensor:
    """Return values of shape (..., any) as (..., width), with zeros added or dropped at the end."""
    missing = width - values.shape[-1]
    return functional.pad(values, (0, missing)) if missing > 0 else values[..., :width]
