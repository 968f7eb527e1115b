"""Counting: strictly above, near the tolerance, and undecided."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from localrank_cli.measures.points import local_ranks
from localrank_cli.spectrum.tolerance import Tolerance
from tests.asking import spectra_of
from tests.measures.spectra import spectrum_of
from tests.naive import Array, naive_counts

ATOL = Tolerance(atol=0.01)

spectra = st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=12).map(
    lambda values: np.array([sorted(values, reverse=True)])
)


@given(sigma=spectra, atol=st.floats(1e-8, 10), rtol=st.floats(1e-8, 0.9))
def test_counts_are_comparisons(sigma: Array, atol: float, rtol: float) -> None:
    for tolerance in (Tolerance(atol=atol), Tolerance(rtol=rtol), Tolerance(atol, rtol)):
        counts = local_ranks(spectrum_of(sigma), tolerance).counts
        assert counts.tolist() == naive_counts(sigma, tolerance.atol, tolerance.rtol or 0)


@given(sigma=spectra, rtol=st.sampled_from([1e-1, 1e-3, 1e-6]))
def test_counts_are_those_of_torch(sigma: Array, rtol: float) -> None:
    # matrix_rank computes the SVD again, of a diagonal: exact except for its last bits.
    tol = rtol * sigma[0, 0]
    assume((np.abs(sigma - tol) > 1e-12 * sigma[0, 0]).all())
    matrix = torch.diag(torch.from_numpy(sigma[0]))
    (count,) = local_ranks(spectrum_of(sigma), Tolerance(rtol=rtol)).counts.tolist()
    assert count == int(torch.linalg.matrix_rank(matrix, rtol=rtol))


def test_strictly_above() -> None:
    sigma = [[1.0, np.nextafter(0.01, 1), 0.01, np.nextafter(0.01, 0)]]
    assert local_ranks(spectrum_of(sigma), ATOL).counts.tolist() == [2]
    # 0.25 is 2^-2: the product with sigma_1 = 1 rounds nothing.
    sigma = [[1.0, np.nextafter(0.25, 1), 0.25, 0.1]]
    assert local_ranks(spectrum_of(sigma), Tolerance(rtol=0.25)).counts.tolist() == [2]


def test_zero_jacobian_has_rank_zero_at_every_tolerance() -> None:
    for tolerance in (ATOL, Tolerance(rtol=0.1), Tolerance(rtol=None), Tolerance(1e-300)):
        ranks = local_ranks(spectrum_of([[0.0, 0.0]]), tolerance)
        assert ranks.counts.tolist() == [0]
        assert ranks.near.tolist() == [False]
        assert ranks.undecided.tolist() == [False]


@pytest.mark.parametrize(("sigma", "near"), [
    (0.0098, False), (0.00991, True), (0.01, True), (0.01009, True), (0.0102, False),
])  # fmt: skip
def test_near_the_tolerance(sigma: float, near: bool) -> None:
    assert local_ranks(spectrum_of([[1.0, sigma, 0.0]]), ATOL).near.tolist() == [near]
    relative = Tolerance(rtol=0.01)
    ranks = local_ranks(spectrum_of([[3.0, 3 * sigma, 0.0]]), relative)
    assert ranks.near.tolist() == [near]


@given(sigma=spectra, atol=st.floats(1e-8, 10))
def test_near_is_a_difference_of_counts(sigma: Array, atol: float) -> None:
    ranks = local_ranks(spectrum_of(sigma), Tolerance(atol=atol))
    differ = naive_counts(sigma, 0.99 * atol) != naive_counts(sigma, 1.01 * atol)
    assert ranks.near.tolist() == [differ]


@pytest.mark.parametrize(("roundings", "undecided"), [
    (-1.5, False), (-0.5, True), (0, True), (0.5, True), (1.5, False),
])  # fmt: skip
def test_undecided_is_nearer_than_the_rounding(roundings: float, undecided: bool) -> None:
    # n eps sigma_1 with n = 100, sigma_1 = 1.
    sigma = 0.01 + roundings * 100 * 2.0**-52
    ranks = local_ranks(spectrum_of([[1.0, sigma]], n_in=100), ATOL)
    assert ranks.undecided.tolist() == [undecided]


def test_values_under_the_rounding_may_be_anything_up_to_it() -> None:
    # sigma_1 = 1e15 and n = 100: the rounding is 22, and a floored 0 may be above 0.01.
    ranks = local_ranks(spectrum_of([[1e15, 0.0]], n_in=100), ATOL)
    assert ranks.undecided.tolist() == [True]
    # A relative tolerance above the rounding is decided.
    ranks = local_ranks(spectrum_of([[1e15, 0.0]], n_in=100), Tolerance(rtol=1e-3))
    assert ranks.undecided.tolist() == [False]


def test_orthogonal_times_the_tolerance_is_undecided() -> None:
    # Every singular value is 0.01 in exact arithmetic: svdvals counts whatever it rounds to.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 40)).double()
    nn.init.orthogonal_(model.get_parameter("0.weight"))
    model.get_parameter("0.weight").data.mul_(0.01)
    spectrum = spectra_of(model, torch.zeros(3, 40, dtype=torch.float64))["0"]
    ranks = local_ranks(spectrum, ATOL)
    assert ranks.undecided.tolist() == [True] * 3
    assert ranks.near.tolist() == [True] * 3
    for decided in (Tolerance(atol=0.0099), Tolerance(atol=0.0101), Tolerance(rtol=0.9)):
        assert not local_ranks(spectrum, decided).undecided.any()


def test_failed_points_are_not_counted() -> None:
    nan = float("nan")
    spectrum = spectrum_of([[1.0, 0.5], [nan, nan], [1.0, 0.001]])
    ranks = local_ranks(spectrum, ATOL)
    assert ranks.counts.tolist() == [2, 1]
    assert ranks.near.shape == ranks.undecided.shape == (2,)


@given(sigma=spectra, small=st.floats(1e-8, 1), factor=st.floats(1, 100))
def test_a_larger_tolerance_counts_no_more(sigma: Array, small: float, factor: float) -> None:
    spectrum = spectrum_of(sigma)
    fine, coarse = (
        local_ranks(spectrum, Tolerance(atol=tol)).counts for tol in (small, small * factor)
    )
    assert (coarse <= fine).all()
