"""Singular values of many Jacobians: Gram eigenvalues where they are certain, else the SVD."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from localrank_cli.jacobian.chain import Chain, Factor
from localrank_cli.layers.capture import Call
from localrank_cli.spectrum.certificate import Bound, Shape, certified
from localrank_cli.spectrum.deflation import DEFLATED, small_values, squares
from localrank_cli.spectrum.svd import (
    TINY,
    gram_eigenvalues,
    singular_values,
    streamed_gram,
    streamed_triangle,
    thread_map,
)
from localrank_cli.spectrum.tolerance import Tolerance

# Up to this size a thread for each matrix beats all threads on one matrix.
_THREADED = 512


@dataclass(frozen=True)
class Demand:
    """What the singular values are wanted for."""

    tolerances: tuple[Tolerance, ...] | None  # None: unknown, so the SVD for every matrix
    bounds: tuple[Bound, ...] = ()  # on the errors of the measures that are wanted

    def thresholds(self, spectral_norm: Tensor, n_out: int, n_in: int) -> Tensor:
        """All values at which counts are asked for: tol, 0.99 tol and 1.01 tol of each tolerance.

        Args:
            spectral_norm: sigma_1, shape (points,).
            n_out: Rows of the Jacobian.
            n_in: Columns of the Jacobian.

        Returns:
            Shape (points, 3 * tolerances).
        """
        columns = []
        for tolerance in self.tolerances or ():
            tol = tolerance.threshold(spectral_norm, n_out, n_in)
            columns += [tol, 0.99 * tol, 1.01 * tol]
        return torch.stack(columns, dim=1) if columns else spectral_norm.new_zeros(0, 0)


@dataclass(frozen=True)
class _Solved:
    eigenvalues: Tensor  # (rank of the matrix,), descending
    error: float
    long_side: int


def solve_stack(
    matrices: Tensor, demand: Demand, n_in: int | None = None, error: float = 0.0
) -> Tensor:
    """Singular values of Jacobians that stand as they are.

    Args:
        matrices: Shape (points, n_out, n_in or fewer), finite.
        demand: What they are wanted for.
        n_in: Columns of the Jacobians, where `matrices` have fewer.
        error: How far singular values of `matrices` may be from those of the Jacobians.

    Returns:
        Shape (points, min(n_out, n_in)), float64, CPU, descending.
    """
    count, n_out, columns = matrices.shape
    shape = (n_out, columns if n_in is None else n_in)
    if count == 0:
        return torch.empty(0, min(shape), dtype=torch.float64, device="cpu")
    if count > 1 and all(torch.equal(matrices[0], matrix) for matrix in matrices[1:]):
        # A first layer: its Jacobian is its weight at every point.
        return solve_stack(matrices[:1], demand, n_in, error).expand(count, -1)
    if demand.tolerances is None:
        return _widened(singular_values(matrices), min(shape))
    if min(n_out, columns) >= DEFLATED:
        return _solve_each(matrices, shape, error, demand)
    if min(n_out, columns) <= TINY:
        eigenvalues = gram_eigenvalues(matrices)
    else:
        eigenvalues = torch.stack(thread_map(lambda i: gram_eigenvalues(matrices[i]), range(count)))
    solved = [_Solved(row, error, max(n_out, columns)) for row in eigenvalues]

    def svd(indices: Sequence[int]) -> Tensor:
        # One at a time: a copy of all of them would double what is held.
        values = torch.stack([singular_values(matrices[index]) for index in indices])
        return _widened(values, min(shape))

    return _checked(solved, shape, demand, svd)


def _solve_each(matrices: Tensor, shape: tuple[int, int], error: float, demand: Demand) -> Tensor:
    def solve(matrix: Tensor) -> Tensor:
        return _one(matrix, shape, error, demand)

    if min(matrices.shape[1:]) <= _THREADED:
        values = torch.stack(thread_map(solve, matrices))
    else:
        values = torch.stack([solve(matrix) for matrix in matrices])
    return _widened(values, min(shape))


def _one(matrix: Tensor, shape: tuple[int, int], error: float, demand: Demand) -> Tensor:
    """Singular values of one matrix, by the cheapest way that is certain.

    Args:
        matrix: M, any shape.
        shape: n_out and n_in of the Jacobian that M stands for.
        error: How far M's singular values may be from the Jacobian's.
        demand: What they are wanted for.

    Returns:
        As many as the shorter side of M, float64, CPU, descending.
    """
    values = None
    if demand.tolerances is not None and min(matrix.shape) >= DEFLATED:
        values = _from_squares(matrix, shape, error, demand)
    return singular_values(matrix) if values is None else values


def _from_squares(
    matrix: Tensor, shape: tuple[int, int], error: float, demand: Demand
) -> Tensor | None:
    """All singular values without an SVD of the whole; None where that is not certain."""
    squared = squares(matrix)
    sizes = Shape(*shape, *squared.matrix.shape)
    values = squared.eigenvalues.clamp(min=0).sqrt()
    if bool(torch.isnan(values).any()):
        return None
    thresholds = demand.thresholds(values[:1], *shape)

    def serve(leading: int) -> bool:
        found = squared.eigenvalues.unsqueeze(0)
        errors = found.new_full((1,), error)
        return bool(certified(found, errors, [sizes], thresholds, demand.bounds, leading))

    if serve(len(values)):
        return values
    small = small_values(squared)
    if small is None or not serve(len(values) - len(small)):
        return None
    return torch.cat([values[: -len(small)], small])


def solve_blocks(
    blocks: Callable[[], Iterator[Tensor]],
    shape: tuple[int, int],
    demand: Demand,
    error: float = 0.0,
) -> Tensor:
    """Singular values of a Jacobian that comes in blocks.

    Args:
        blocks: Starts a walk: each block is (some of the longer side, shorter side).
        shape: n_out and n_in of the Jacobian, of which the blocks may have fewer columns.
        demand: What they are wanted for.
        error: How far singular values of the blocks may be from those of the Jacobian.

    Returns:
        Shape (1, min(n_out, n_in)), float64, CPU, descending.
    """

    def svd(_: Sequence[int]) -> Tensor:
        triangle = streamed_triangle(blocks)
        return _widened(_one(triangle, shape, error, demand).unsqueeze(0), min(shape))

    if demand.tolerances is None:
        return svd([0])
    solved = [_Solved(streamed_gram(blocks()), error, max(shape))]
    return _checked(solved, shape, demand, svd)


def solve_chain(
    chain: Chain, points: Sequence[int], shapes: dict[Call, tuple[int, int]], demand: Demand
) -> dict[Call, Tensor]:
    """Singular values of all Jacobians of a chain.

    Args:
        chain: The network at a batch of points.
        points: The points that count.
        shapes: n_out and n_in of each wanted call.
        demand: What the singular values are wanted for.

    Returns:
        For each call, shape (len(points), min(n_out, n_in)), float64, CPU, descending.
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

    def eigenvalues(point: int) -> dict[Call, _Solved]:
        return {
            factor.call: _Solved(
                gram_eigenvalues(factor.matrix), factor.error, max(factor.matrix.shape)
            )
            for factor in chain.factors(point, rest)
        }

    by_point = thread_map(eigenvalues, points)
    for call in rest:
        svd = _chain_svd(chain, points, call, shapes[call], demand)
        found[call] = _checked([solved[call] for solved in by_point], shapes[call], demand, svd)
    return found


def _chain_svd(
    chain: Chain, points: Sequence[int], call: Call, shape: tuple[int, int], demand: Demand
) -> Callable[[Sequence[int]], Tensor]:
    def values(index: int) -> Tensor:
        (factor,) = _factors(chain, points[index], call)
        return _widened(_one(factor.matrix, shape, factor.error, demand), min(shape))

    def svd(indices: Sequence[int]) -> Tensor:
        return torch.stack(thread_map(values, indices))

    return svd


def _factors(chain: Chain, point: int, call: Call) -> list[Factor]:
    return list(chain.factors(point, frozenset([call])))


def _checked(
    solved: Sequence[_Solved],
    shape: tuple[int, int],
    demand: Demand,
    svd: Callable[[Sequence[int]], Tensor],
) -> Tensor:
    """Square roots where the certificate holds, the SVD of the unsquared matrix elsewhere."""
    n_out, n_in = shape
    width = min(shape)
    eigenvalues = torch.stack([_widened(one.eigenvalues, width) for one in solved])
    values = eigenvalues.clamp(min=0).sqrt()
    if demand.tolerances is None:
        holds = torch.zeros(len(solved), dtype=torch.bool, device="cpu")
    else:
        holds = certified(
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


def _widened(values: Tensor, width: int) -> Tensor:
    """Puts zeros behind, or drops them: shape (..., any) becomes (..., width)."""
    missing = width - values.shape[-1]
    return functional.pad(values, (0, missing)) if missing > 0 else values[..., :width]
