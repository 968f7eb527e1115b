"""A layer's spectrum reduced to what the table shows."""

import math
import statistics

import numpy as np
import pytest
import torch

from localrank_cli.measures.layer import measure
from localrank_cli.measures.table import AVERAGED
from localrank_cli.spectrum.tolerance import Tolerance
from tests.asking import spectra_of
from tests.cases import CASES, Case, params
from tests.measures.spectra import spectrum_of
from tests.naive import naive_counts, naive_jacobians, naive_spectra

NAN = math.nan
ATOL = Tolerance(atol=0.01)
SPECTRUM = [[2.0, 1.0, 0.005], [1.0, 0.0, 0.0], [4.0, 3.0, 0.01005]]


def test_local_rank() -> None:
    (rank,) = measure(spectrum_of(SPECTRUM), [ATOL], 1.0).ranks
    assert rank.tolerance == ATOL
    assert rank.rtol == 0
    assert rank.local_rank.mean == 2  # of 2, 1, 3
    assert rank.local_rank.error == pytest.approx(1 / math.sqrt(3), rel=1e-15)
    assert (rank.rank_min, rank.rank_max) == (1, 3)
    assert rank.near_tol == pytest.approx(1 / 3, rel=1e-15)  # 0.01005 is within 1 %
    assert rank.n_undecided == 0


def test_one_summary_for_each_tolerance_in_the_order_asked() -> None:
    asked = [Tolerance(rtol=0.1), ATOL, Tolerance(rtol=None), Tolerance(atol=0.5)]
    ranks = measure(spectrum_of(SPECTRUM, n_out=3, n_in=50), asked, 1.0).ranks
    assert [rank.tolerance for rank in ranks] == asked
    assert [rank.rtol for rank in ranks] == [0.1, 0, 50 * 2.0**-23, 0]
    assert [rank.local_rank.mean for rank in ranks] == [5 / 3, 2, 7 / 3, 5 / 3]


def test_failed_points_are_counted_apart() -> None:
    values = [SPECTRUM[0], [NAN] * 3, SPECTRUM[1], [NAN] * 3, SPECTRUM[2]]
    found, clean = (
        measure(spectrum_of(values), [ATOL], 1.0),
        measure(spectrum_of(SPECTRUM), [ATOL], 1.0),
    )
    assert (found.n_points, found.n_failed) == (3, 2)
    assert (clean.n_points, clean.n_failed) == (3, 0)
    assert found.soft == clean.soft
    assert found.ranks == clean.ranks


def test_one_point_has_no_standard_error() -> None:
    found = measure(spectrum_of(SPECTRUM[:1]), [ATOL], 1.0)
    assert found.ranks[0].local_rank.error is None
    assert {average.error for average in found.soft.values()} == {None}


def test_columns_in_the_order_of_the_table() -> None:
    assert list(measure(spectrum_of(SPECTRUM), [ATOL], 1.0).soft) == list(AVERAGED)


def test_noise_goes_into_the_information_alone() -> None:
    one, two = (measure(spectrum_of(SPECTRUM), [ATOL], noise) for noise in (1.0, 0.1))
    assert one.ranks == two.ranks
    for name, average in one.soft.items():
        assert (average == two.soft[name]) == (name != "gaussian_information")
    sigma = np.array(SPECTRUM)
    expected = (0.5 * np.log1p(sigma**2 / 0.01)).sum(axis=1).mean()
    # Three sums of three terms.
    assert two.soft["gaussian_information"].mean == pytest.approx(expected, rel=1e-14)


def test_dead_layer_is_zero_in_every_measure() -> None:
    found = measure(spectrum_of([[0.0, 0.0]] * 3), [ATOL, Tolerance(rtol=0.1)], 1.0)
    assert (found.n_points, found.n_failed) == (3, 0)
    for average in (*found.soft.values(), *(rank.local_rank for rank in found.ranks)):
        assert (average.mean, average.error) == (0, 0)


def test_noise_under_the_rounding_does_not_leak_into_the_measures() -> None:
    # A product of rank 3 among 30: with its rounding noise the effective rank would be above 3.
    generator = np.random.default_rng(0)
    left = np.linalg.qr(generator.standard_normal((30, 3)))[0]
    right = np.linalg.qr(generator.standard_normal((40, 3)))[0]
    layer = torch.nn.Linear(40, 30).double()
    layer.weight.data = torch.from_numpy(left @ right.T)
    spectrum = spectra_of(torch.nn.Sequential(layer), torch.zeros(1, 40, dtype=torch.float64))["0"]
    assert int((spectrum.values > 0).sum()) == 3
    soft = measure(spectrum, [ATOL], 1.0).soft
    # The three values are 1 to 40 * 2.2e-16; their noise of 1e-16 each times 27 would be 1e-14 in
    # the shares, and -q log q of them 3e-13.
    for name in ("effective_rank", "stable_rank", "participation_ratio"):
        assert soft[name].mean == pytest.approx(3, rel=0, abs=5e-14)


@pytest.mark.parametrize(
    "case", params(case for case in CASES if case.name in {"relu_mlp", "conv2d", "embedding_wrt"})
)
def test_from_model_to_means(case: Case) -> None:
    model, points = case.build()
    truth = naive_spectra(naive_jacobians(model, points, case.layers, case.wrt))
    for label, spectrum in spectra_of(model, points, case.layers, case.wrt).items():
        counts = naive_counts(truth[label], atol=0.01)
        (rank,) = measure(spectrum, [ATOL], 1.0).ranks
        assert rank.local_rank.mean == statistics.fmean(counts)
        error = statistics.stdev(counts) / math.sqrt(len(counts))
        assert rank.local_rank.error == pytest.approx(error, rel=1e-14)
        assert (rank.rank_min, rank.rank_max) == (min(counts), max(counts))
