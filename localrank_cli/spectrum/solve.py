"""Singular values of many Jacobians: Gram eigenvalues where they are certain, else the SVD."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from localrank_cli.jacobian.chain import Chain, Factor
from localrank_cli.layers.capture import Call
from localrank_cli.spectrum.certificate import Shape, certified
from localrank_cli.spectrum.gram import TINY, gram_eigenvalues
from localrank_cli.spectrum.parallel import thread_map
from localrank_cli.spectrum.streamed import streamed_gram, streamed_svd
from localrank_cli.spectrum.svd import singular_values
from localrank_cli.spectrum.tolerance import Tolerance

# Up to this size a thread for each matrix beats all threads on one matrix.
_THREADED = 512


@dataclass(frozen=True)
class Demand:
    """What the singular values are wanted for."""

    tolerances: tuple[Tolerance, ...] | None  # None: unknown, so the SVD for every matrix
    noise: float = 1.0

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


def solve_stack(matrices: Tensor, demand: Demand) -> Tensor:
    """Singular values of Jacobians that stand as they are.

    Args:
        matrices: Shape (points, n_out, n_in), finite.
        demand: What they are wanted for.

    Returns:
        Shape (points, min(n_out, n_in)), float64, CPU, descending.
    """
    count, n_out, n_in = matrices.shape
    if count == 0:
        return torch.empty(0, min(n_out, n_in), dtype=torch.float64, device="cpu")
    if demand.tolerances is None:
        return singular_values(matrices)
    if min(n_out, n_in) <= TINY:
        eigenvalues = gram_eigenvalues(matrices)
    elif min(n_out, n_in) <= _THREADED:
        eigenvalues = torch.stack(thread_map(lambda i: gram_eigenvalues(matrices[i]), range(count)))
    else:
        eigenvalues = torch.stack([gram_eigenvalues(matrix) for matrix in matrices])
    solved = [_Solved(row, 0.0, max(n_out, n_in)) for row in eigenvalues]

    def svd(indices: Sequence[int]) -> Tensor:
        # One at a time: a copy of all of them would double what is held.
        return torch.stack([singular_values(matrices[index]) for index in indices])

    return _checked(solved, (n_out, n_in), demand, svd)


def solve_blocks(
    blocks: Callable[[], Iterator[Tensor]], n_out: int, n_in: int, demand: Demand
) -> Tensor:
    """Singular values of a Jacobian that comes in blocks.

    Args:
        blocks: Starts a walk: each block is (some of the longer side, shorter side).
        n_out: Rows.
        n_in: Columns.
        demand: What they are wanted for.

    Returns:
        Shape (1, min(n_out, n_in)), float64, CPU, descending.
    """

    def svd(indices: Sequence[int]) -> Tensor:
        return torch.stack([streamed_svd(blocks) for _ in indices])

    if demand.tolerances is None:
        return svd([0])
    solved = [_Solved(streamed_gram(blocks()), 0.0, max(n_out, n_in))]
    return _checked(solved, (n_out, n_in), demand, svd)


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
        svd = _chain_svd(chain, points, call, min(shapes[call]))
        found[call] = _checked([solved[call] for solved in by_point], shapes[call], demand, svd)
    return found


def _chain_svd(
    chain: Chain, points: Sequence[int], call: Call, width: int
) -> Callable[[Sequence[int]], Tensor]:
    def values(index: int) -> Tensor:
        (factor,) = _factors(chain, points[index], call)
        return _padded(singular_values(factor.matrix), width)

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
    eigenvalues = torch.stack([_padded(one.eigenvalues, width) for one in solved])
    values = eigenvalues.clamp(min=0).sqrt()
    if demand.tolerances is None:
        holds = torch.zeros(len(solved), dtype=torch.bool, device="cpu")
    else:
        holds = certified(
            eigenvalues,
            torch.tensor([one.error for one in solved], dtype=torch.float64, device="cpu"),
            [Shape(n_out, n_in, one.long_side, len(one.eigenvalues)) for one in solved],
            demand.thresholds(values[:, 0], n_out, n_in),
            demand.noise,
        )
    # A comparison with NaN is false: what is not finite or out of range is never certified.
    doubtful = (~holds).nonzero().squeeze(1).tolist()
    if doubtful:
        values[doubtful] = svd(doubtful)
    return values


def _padded(values: Tensor, width: int) -> Tensor:
    if values.shape[0] >= width:
        return values[:width]
    return torch.cat([values, values.new_zeros(width - values.shape[0])])
