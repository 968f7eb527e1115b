"""Planted spectra: no wrong count where the count is decided, certified or by the SVD."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from localrank_cli.measures.table import demand_of
from localrank_cli.spectrum.certificate import Shape, certify, squared_error
from localrank_cli.spectrum.solve import Demand, solve_blocks, solve_stack
from localrank_cli.spectrum.svd import gram_eigenvalues, rounding
from localrank_cli.spectrum.tolerance import Tolerance

# Those of every measure, at noise 1.
BOUNDS = demand_of(()).bounds
RTOLS = (1e-1, 1e-2, 1e-3, 1e-5, 1e-6, 1e-7, 1e-9)


def planted(values: Sequence[float], n_out: int, n_in: int, seed: int) -> Tensor:
    """A matrix with these singular values, up to rounding."""
    generator = torch.Generator().manual_seed(seed)

    def orthonormal(rows: int) -> Tensor:
        square = torch.randn(rows, len(values), generator=generator, dtype=torch.float64)
        basis: Tensor = torch.linalg.qr(square).Q
        return basis

    diagonal = torch.tensor(values, dtype=torch.float64)
    return orthonormal(n_out) * diagonal @ orthonormal(n_in).mT


def spectrum(kind: str, rtol: float) -> list[float]:
    """Clusters on both sides of the tolerance, at a distance; and tails far under it."""
    if kind == "gap":
        return [1.0] * 10 + [2 * rtol] * 10 + [rtol / 2] * 10
    if kind == "close":
        return [1.0] * 5 + [rtol * (1 + 1e-4)] * 5 + [rtol * (1 - 1e-4)] * 5
    if kind == "straddle":
        return [1.0, *(rtol * (1 + step * 1e-9) for step in (-30, -3, 3, 30))]
    if kind == "decay":
        return [10.0**-power for power in np.linspace(0, 12, 40) if abs(power % 1) > 1e-6]
    return [1.0] * 4 + [rtol * 3] * 3  # "deficient": exact zeros behind


@pytest.mark.parametrize("rtol", RTOLS)
@pytest.mark.parametrize("kind", ["gap", "close", "straddle", "decay", "deficient"])
@pytest.mark.parametrize("shape", [(60, 80), (80, 60), (200, 50), (48, 900)])
def test_counts_are_those_of_the_svd(kind: str, rtol: float, shape: tuple[int, int]) -> None:
    tolerance = Tolerance(rtol=rtol)
    values = spectrum(kind, rtol)
    matrices = torch.stack([planted(values, *shape, seed) for seed in range(3)])
    found = solve_stack(matrices, demand_of((tolerance,)))
    truth = torch.linalg.svdvals(matrices)
    for row, sigma in zip(found, truth, strict=True):
        tol = tolerance.threshold(sigma[:1], *shape)
        unsure = rounding(sigma[:1], max(shape), torch.float64)
        if bool(((sigma - tol).abs() <= unsure).any()):
            continue  # undecided: any count will do
        for factor in (0.99, 1.0, 1.01):
            assert (row > factor * tol).sum() == (sigma > factor * tol).sum()


@pytest.mark.parametrize("shape", [(1, 3072), (10, 150528), (150528, 10), (3072, 1)])
def test_long_sides(shape: tuple[int, int]) -> None:
    # A constant matrix: n u lambda_1 misses by 87 u at 1 x 3072 and by 6251 u at 10 x 150528.
    matrix = torch.full(shape, 0.1, dtype=torch.float64)
    exact = 0.1 * np.sqrt(np.prod(shape))
    (found,) = solve_stack(matrix.unsqueeze(0), demand_of((Tolerance(atol=0.01),)))
    assert found[0].item() == pytest.approx(exact, rel=max(shape) * 2.0**-52)
    assert (found > 0.01).sum() == 1
    # The tolerance on the only singular value itself: the certificate may not hold.
    eigenvalues = gram_eigenvalues(matrix.unsqueeze(0))
    at = torch.full((1, 1), exact, dtype=torch.float64)
    sides = Shape(*shape, long_side=max(shape), short_side=min(shape))
    assert not certify(eigenvalues, torch.zeros(1), [sides], at, BOUNDS).any()


def test_the_bound_on_eigenvalues_holds() -> None:
    # delta of the module's docstring against the SVD's squares, which are exact to 2 l u sigma^2.
    for n_out, n_in in [(1, 3072), (10, 20000), (64, 64), (200, 784), (300, 40)]:
        matrix = torch.rand(n_out, n_in, generator=torch.Generator().manual_seed(0)).double()
        sigma = torch.linalg.svdvals(matrix)
        off = (gram_eigenvalues(matrix) - sigma.square()).abs().max()
        long_side, short_side = max(n_out, n_in), min(n_out, n_in)
        terms = long_side * sigma.square().sum() + 4 * short_side * sigma[0] ** 2
        delta = 1.01 * 2.0**-53 * terms
        own = 2 * 2.0**-52 * long_side * sigma[0] ** 2
        assert off <= delta + own


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8, 24, 100])
def test_the_bound_on_what_lapack_adds_holds(size: int) -> None:
    # The float32 solver is the same algorithm, against which float64 is exact. 4 r u lambda_1 alone
    # misses at sizes 4 and 5.
    generator = torch.Generator().manual_seed(size)
    count = 2000 if size < 24 else 20
    square = torch.randn(count, size, size, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(square).Q
    draw = torch.rand(count, size, generator=generator, dtype=torch.float64)
    one_large = torch.cat([torch.ones(count, 1), 1e-3 * draw[:, 1:]], dim=1)
    for values in (torch.ones_like(draw), draw, 10.0 ** (-12 * draw), one_large.double()):
        grams = (basis * values.unsqueeze(1) @ basis.mT).float()
        grams = grams.tril() + grams.tril(-1).mT
        truth = torch.linalg.eigvalsh(grams.double())
        off = torch.linalg.eigvalsh(grams).double() - truth
        # In units of the bound of float32: no Gram matrix is computed, so that its part is 0.
        each = squared_error(0.0, 1.0, 0, size) * 2.0**29
        assert (off.abs().amax(1) <= each * truth.abs().amax(1)).all()
        assert (off.norm(dim=1) <= each * truth.norm(dim=1)).all()


def test_most_matrices_need_no_svd_at_usual_tolerances() -> None:
    # Else the certificate would be right and of no use.
    matrices = torch.randn(20, 40, 90, generator=torch.Generator().manual_seed(1)).double()
    eigenvalues = gram_eigenvalues(matrices)
    tols = torch.full((20, 1), 1e-2, dtype=torch.float64)
    sides = [Shape(40, 90, 90, 40)] * 20
    assert certify(eigenvalues, torch.zeros(20), sides, tols, BOUNDS).all()


@pytest.mark.parametrize("scale", [1e-200, 1e-80, 1e80, 1e200])
def test_scales_at_which_squares_leave_the_range(scale: float) -> None:
    matrix = planted([1.0, 0.5, 1e-3], 6, 9, 0) * scale
    (found,) = solve_stack(matrix.unsqueeze(0), demand_of((Tolerance(rtol=1e-2),)))
    expected = torch.tensor([1.0, 0.5, 1e-3], dtype=torch.float64) * scale
    # An SVD's rounding: 9 u sigma_1 and some.
    assert ((found[:3] - expected).abs() <= 1e-14 * scale).all()
    assert (found > 1e-2 * found[0]).sum() == 2


def test_a_scale_at_which_lapack_does_not_converge_on_squares() -> None:
    # More than 24 columns, which are not solved in a stack.
    values = torch.logspace(0, -5, 30, dtype=torch.float64)
    matrix = planted(values.tolist(), 48, 30, 0) * 1e-154
    (found,) = solve_stack(matrix.unsqueeze(0), demand_of((Tolerance(rtol=1e-2),)))
    # An SVD's rounding: 1e-15 of the largest.
    assert ((found - 1e-154 * values).abs() <= 1e-14 * 1e-154).all()


def test_zero_matrix() -> None:
    found = solve_stack(torch.zeros(2, 5, 30, dtype=torch.float64), demand_of((Tolerance(0.01),)))
    assert torch.equal(found, torch.zeros(2, 5, dtype=torch.float64))


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("demand", [demand_of(None), demand_of((Tolerance(rtol=1e-3),))])
def test_blocks_give_what_the_whole_gives(size: int, demand: Demand) -> None:
    matrix = planted([3.0, 1.0, 1e-2, 1e-5, 1e-9], 100, 12, 3)
    (found,) = solve_blocks(lambda: iter(torch.split(matrix, size)), (100, 12), demand)
    sigma = torch.linalg.svdvals(matrix)
    # The blockwise QR is backward stable: 100 * 12 * u * sigma_1 is ample.
    assert ((found - sigma).abs() <= 1200 * 2.0**-53 * sigma[0]).all()


def test_blocks_with_a_nan() -> None:
    matrix = torch.ones(10, 4, dtype=torch.float64)
    matrix[7, 2] = torch.nan
    demand = demand_of((Tolerance(0.01),))
    assert solve_blocks(lambda: iter(torch.split(matrix, 3)), (10, 4), demand).isnan().all()
