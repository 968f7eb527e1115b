"""The SVD that counts, and the bound on its error."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from localrank_cli.spectrum.svd import cholesky, rounding, singular_values
from tests.naive import Array

U = 2.0**-53


def planted(sigma: Array, n_out: int, n_in: int, seed: int) -> Array:
    generator = np.random.default_rng(seed)
    left = np.linalg.qr(generator.standard_normal((n_out, len(sigma))))[0]
    right = np.linalg.qr(generator.standard_normal((n_in, len(sigma))))[0]
    return np.asarray((left * sigma) @ right.T)


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 12)),
    seed=st.integers(0, 1000),
)
def test_values_are_those_of_numpy(shape: tuple[int, int, int], seed: int) -> None:
    matrices = np.random.default_rng(seed).standard_normal(shape)
    found = singular_values(torch.from_numpy(matrices)).numpy()
    expected = np.linalg.svd(matrices, compute_uv=False)
    # Two LAPACKs, or two drivers: each within p u sigma_1 of the truth, p <= 12 for such sizes.
    assert found.shape == expected.shape
    assert (np.abs(found - expected) <= 2 * 12 * U * expected[:, :1]).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_are_float64_on_the_cpu_whatever_comes_in(dtype: torch.dtype) -> None:
    # A diagonal of powers of two is exact in every type.
    matrices = torch.diag(torch.tensor([4.0, 1.0, 0.25])).to(dtype)[None]
    found = singular_values(matrices.requires_grad_(True))
    assert found.dtype == torch.float64
    assert found.device.type == "cpu"
    assert not found.requires_grad
    assert found.tolist() == [[4, 1, 0.25]]


def test_no_points() -> None:
    assert singular_values(torch.zeros(0, 3, 5, dtype=torch.float64)).shape == (0, 3)


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 3000), (3000, 1), (10, 20000), (60, 60), (200, 784), (300, 40)], ids=str
)
@pytest.mark.parametrize("low", [1e-1, 1e-8, 1e-14])
def test_error_is_within_the_rounding(shape: tuple[int, int], low: float) -> None:
    sigma = np.geomspace(1, low, min(shape))
    matrix = planted(sigma, *shape, seed=0)
    found = singular_values(torch.from_numpy(matrix)[None])
    bound = rounding(found[:, 0], max(shape), torch.float64)
    # The planted matrix is itself rounded: by QR and one product, a few u sqrt(n) sigma_1.
    planting = 20 * U * np.sqrt(max(shape))
    assert np.abs(found[0].numpy() - sigma).max() <= bound.item() + planting


def test_rounding_is_the_longer_side_times_epsilon() -> None:
    norms = torch.tensor([0.0, 1.0, 1e200, torch.nan], dtype=torch.float64)
    double = rounding(norms, 784, torch.float64).tolist()
    assert double[:3] == [0, 784 * 2 * U, 1e200 * (784 * 2 * U)]
    assert np.isnan(double[3])
    assert rounding(norms[1], 784, torch.float32).item() == 784 * 2.0**-23


@pytest.mark.parametrize("size", [1, 40, 255, 256, 512])
def test_a_factor_of_the_lower_triangle(size: int) -> None:
    matrix = np.random.default_rng(0).standard_normal((size, size))
    gram = matrix @ matrix.T
    garbage = gram + np.triu(np.full_like(gram, np.nan), 1)
    shift = 1e-3 * float(np.trace(gram))
    factor = cholesky(torch.from_numpy(garbage), shift)
    assert factor is not None
    # Backward stable: n + 1 roundings of the trace (Higham, Thm. 10.3).
    off = abs(factor.numpy() @ factor.numpy().T - gram - shift * np.eye(size)).max()
    assert off <= (size + 1) * U * (np.trace(gram) + size * shift)
    assert cholesky(torch.from_numpy(gram), -10 * float(np.trace(gram))) is None
