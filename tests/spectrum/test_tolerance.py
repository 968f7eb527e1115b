"""The tolerance, its label, and the rule of numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from localrank_cli.spectrum.tolerance import Tolerance


@pytest.mark.parametrize(("tolerance", "label"), [
    (Tolerance(atol=0.01), "atol=0.01"),
    (Tolerance(atol=1e-5), "atol=1e-05"),
    (Tolerance(atol=1.0), "atol=1"),
    (Tolerance(rtol=0.001), "rtol=0.001"),
    (Tolerance(rtol=1 / 3), "rtol=0.333333333"),
    (Tolerance(rtol=None), "rtol=eps"),
])  # fmt: skip
def test_label(tolerance: Tolerance, label: str) -> None:
    assert tolerance.label == label


@given(
    atol=st.floats(0, 10),
    rtol=st.floats(0, 0.99),
    sigma=st.lists(st.floats(0, 1e6), min_size=1, max_size=5),
)
def test_threshold_is_the_larger_of_both(atol: float, rtol: float, sigma: list[float]) -> None:
    found = Tolerance(atol, rtol).threshold(torch.tensor(sigma, dtype=torch.float64), 3, 4)
    assert found.dtype == torch.float64
    assert found.tolist() == [max(atol, rtol * value) for value in sigma]


@given(n_out=st.integers(1, 5000), n_in=st.integers(1, 5000))
def test_eps_is_the_longer_side_times_the_epsilon_of_float32(n_out: int, n_in: int) -> None:
    expected = max(n_out, n_in) * float(np.finfo(np.float32).eps)
    assert Tolerance(rtol=None).relative(n_out, n_in) == expected
    assert Tolerance(rtol=0.25).relative(n_out, n_in) == 0.25


@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    seed=st.integers(0, 10_000),
    place=st.sampled_from([0.5, 0.9, 1.1, 2.0, 100.0]),
)
def test_eps_is_the_rule_of_numpy_for_a_float32_matrix(
    shape: tuple[int, int], seed: int, place: float
) -> None:
    # A diagonal matrix, so that numpy's float32 SVD adds no rounding of its own: its default
    # tolerance is S.max() * max(M, N) * eps(float32).
    generator = np.random.default_rng(seed)
    r = min(shape)
    tol = max(shape) * float(np.finfo(np.float32).eps)
    sigma = np.sort(generator.uniform(0.1, 1, r))[::-1]
    sigma[0] = 1
    sigma[r // 2 + 1 :] = tol * place
    matrix = np.zeros(shape, dtype=np.float32)
    np.fill_diagonal(matrix, sigma)
    values = torch.from_numpy(np.diagonal(matrix).astype(np.float64).copy())
    threshold = Tolerance(rtol=None).threshold(values[:1], *shape)
    assert int((values > threshold).sum()) == np.linalg.matrix_rank(matrix)
    assert int((values > threshold).sum()) == int(
        torch.linalg.matrix_rank(torch.from_numpy(matrix))
    )
