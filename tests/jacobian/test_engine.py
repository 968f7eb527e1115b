"""Portions, surroundings and precisions: none may change a decided count."""

import numpy as np
import pytest
import torch

from localrank_cli.measures.points import local_ranks
from localrank_cli.spectrum.layer import LayerSpectrum
from localrank_cli.spectrum.tolerance import Tolerance
from tests.asking import numbers, spectra_of
from tests.cases import CASES, Case, in_turn, params
from tests.drawing import one_in
from tests.helpers import threads
from tests.naive import naive_jacobians, naive_spectra

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")

CHOSEN = (
    "relu_mlp", "wider_than_input", "residual", "called_twice", "conv2d", "conv_transpose2d",
    "embedding_wrt", "encoder_batch_first", "encoder_sequence_first", "lstm_inside_sequence_first",
    "windows_of_points", "data_dependent_if", "old_function", "numpy_function", "float32_inside",
)  # fmt: skip
CASES_CHOSEN = [case for case in CASES if case.name in CHOSEN]
TOLERANCES = (Tolerance(atol=0.01), Tolerance(rtol=1e-3), Tolerance(rtol=0.1))


def assert_same(
    first: dict[str, LayerSpectrum], second: dict[str, LayerSpectrum], bound: float
) -> None:
    """Values to a bound relative to sigma_1, counts exactly: the seeds are away from the tol."""
    assert list(first) == list(second)
    for label, one in first.items():
        expected, found = numbers(one), numbers(second[label])
        assert (np.abs(expected - found) <= bound * expected[:, :1]).all(), label
        for tolerance in TOLERANCES:
            counts = local_ranks(one, tolerance).counts
            assert torch.equal(counts, local_ranks(second[label], tolerance).counts), label


def bound_of(case: Case) -> float:
    # As in tests/spectrum/test_naive.py: another order of the same products.
    return 6e-6 if case.low_precision else 1.1e-11


def largest_jacobian(case: Case) -> int:
    model, points = case.build()
    jacobians = naive_jacobians(model, points[:1], case.layers, case.wrt)
    return max(matrix.size * 8 for matrix in jacobians.values())


@pytest.mark.parametrize(("case", "factor"), in_turn(CASES_CHOSEN, 6, 12, 60))
def test_little_memory(case: Case, factor: int) -> None:
    model, points = case.build()
    memory = factor * largest_jacobian(case)
    small = spectra_of(model, points, case.layers, case.wrt, memory=memory)
    assert_same(spectra_of(model, points, case.layers, case.wrt), small, bound_of(case))


@pytest.mark.parametrize("case", one_in(2, CASES_CHOSEN))
def test_points_after_one_another(case: Case) -> None:
    model, points = case.build()
    whole = spectra_of(model, points, case.layers, case.wrt)
    parts = [
        spectra_of(model, part, case.layers, case.wrt)
        for part in torch.split(points, [1, 2] + [1] * (len(points) - 3))
    ]
    for label, spectrum in whole.items():
        joined = torch.cat([part[label].values for part in parts]).numpy()
        expected = numbers(spectrum)
        assert (np.abs(joined - expected) <= bound_of(case) * expected[:, :1]).all()


# Kinds of arithmetic; the other cases are left to `make test-long`.
THREADED = ("relu_mlp", "conv2d", "encoder_batch_first", "old_function", "float32_inside")


@pytest.mark.parametrize(
    "case",
    params(CASES_CHOSEN, {name: pytest.mark.long for name in CHOSEN if name not in THREADED}),
)
def test_number_of_threads(case: Case) -> None:
    model, points = case.build()
    with threads(1):
        alone = spectra_of(model, points, case.layers, case.wrt)
    with threads(2):
        assert_same(alone, spectra_of(model, points, case.layers, case.wrt), bound_of(case))


@pytest.mark.parametrize("case", one_in(2, CASES_CHOSEN))
def test_surroundings(case: Case) -> None:
    """Eval mode or not, frozen or not, grad mode or not, whatever the default type."""
    model, points = case.build()
    expected = spectra_of(model, points, case.layers, case.wrt)
    model.eval().requires_grad_(False)
    with torch.no_grad():
        assert_same(expected, spectra_of(model, points, case.layers, case.wrt), bound_of(case))
    torch.set_default_dtype(torch.float64)
    try:
        assert_same(expected, spectra_of(model, points, case.layers, case.wrt), bound_of(case))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("case", one_in(2, CASES_CHOSEN))
def test_points_that_are_views_of_something_larger(case: Case) -> None:
    model, points = case.build()
    big = torch.cat([points, points, points]).repeat_interleave(2, dim=0)
    view = big[: 2 * len(points) : 2]
    assert torch.equal(view, points)
    assert not view.is_contiguous()
    found = spectra_of(model, view, case.layers, case.wrt)
    assert_same(spectra_of(model, points, case.layers, case.wrt), found, bound_of(case))


@pytest.mark.parametrize(
    "case", one_in(2, (case for case in CASES_CHOSEN if not case.low_precision))
)
def test_float32(case: Case) -> None:
    # Sums of at most 50 terms err by about sqrt(50) u, u = 2^-24; 10 layers, norms < 20 sigma_1:
    # 8e-5.
    model, points = case.build()
    expected = naive_spectra(naive_jacobians(model, points, case.layers, case.wrt))
    points = points.float() if points.is_floating_point() else points
    found = spectra_of(model.float(), points, case.layers, case.wrt, dtype=torch.float32)
    assert list(found) == list(expected)
    for label, spectrum in found.items():
        sigma = expected[label]
        assert spectrum.values.dtype == torch.float64
        assert spectrum.method == "exact(float32)"
        assert (np.abs(numbers(spectrum) - sigma) <= 1e-4 * sigma[:, :1]).all(), label
        # The entries' rounding counts: it is n eps(float32) sigma_1, and what is under it is 0.
        largest = max(spectrum.n_out, spectrum.n_in) * 2.0**-23 * numbers(spectrum)[:, 0]
        np.testing.assert_allclose(spectrum.rounding.numpy(), largest, rtol=1e-12)
