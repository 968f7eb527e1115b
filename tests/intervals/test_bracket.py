"""Brackets of a probe's share above a threshold, against the eigenvectors."""

import math

import pytest
import torch

from localrank_cli.intervals.bracket import bracket, largest_eigenvalue, share_above
from localrank_cli.intervals.lanczos import Runs
from localrank_cli.intervals.operator import of_matrix
from tests.intervals.planted import SPECTRA, generator, planted


@pytest.mark.cover(1)
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("shape", [(40, 60), (60, 40)])
def test_the_share_lies_in_its_bracket_after_every_step(name: str, shape: tuple[int, int]) -> None:
    values = SPECTRA[name](40)
    matrix = planted(values, *shape, generator(1))
    square = matrix @ matrix.T if shape[0] < shape[1] else matrix.T @ matrix
    powers, vectors = torch.linalg.eigh(square)
    probes = torch.randn(2, 40, generator=generator(2), dtype=torch.float64)
    parts = (probes @ vectors).square()
    runs = Runs(of_matrix(matrix), probes, 40)
    top = float(powers[-1])
    last: dict[float, float] = {}
    while not runs.is_done:
        runs.step()
        for rtol in (0.7, 0.3, 0.1, 0.05, 0.003):
            at = (rtol * values[0].item()) ** 2
            # Within the rounding of eigenvalues either side may be meant.
            near = 1e-12 * top
            true = [float(parts[:, powers > at + s * near].sum() / parts.sum()) for s in (1, -1)]
            low, high = bracket(runs, [0, 1], at, top)
            assert low <= true[1] + 1e-15
            assert high >= true[0] - 1e-15
            last[rtol] = high - low
    if name not in (
        "cluster at 0.1",
        "zero",
    ):  # the run has ended: a gap is of a threshold on a value
        assert max(last.values()) < 0.2


def test_a_threshold_on_a_node_is_bracketed_without_a_further_one() -> None:
    """No rule with one more node has it at an eigenvalue of the Lanczos matrix."""
    diagonal, beside = [2.0, 2.0], [1.0, 1.0]  # eigenvalues 1 and 3
    low, high = share_above(diagonal, beside, 3.0, 4.0)
    assert (low, high) == pytest.approx((0, 0.5))
    low, high = share_above(diagonal, beside, 1.0, 4.0)
    assert (low, high) == pytest.approx((0.5, 1))


@pytest.mark.parametrize("at", [5.0, 20.0, 34.0, 100.0, 1e200, math.inf])
def test_far_above_all_values_a_share_is_at_most_what_the_variance_allows(at: float) -> None:
    """One step knows mean 2 and variance 1: Cantelli's inequality, whatever the distance."""
    low, high = share_above([2.0], [1.0], at, 2.0)
    assert low == 0
    # Eigenvalues of a matrix of two rows, whose norm is up to 40: 1e-13.
    assert high == pytest.approx(1 / (1 + (at - 2) ** 2 if at < 1e150 else math.inf), abs=1e-12)


def test_the_bound_on_sigma_1_fails_about_as_rarely_as_it_says() -> None:
    values = torch.linspace(1, 0.5, 60).double()
    matrix = planted(values, 60, 60, generator(3))
    failures, tighter = 0, 0.0
    for seed in range(200):
        probes = torch.randn(2, 60, generator=generator(seed), dtype=torch.float64)
        runs = Runs(of_matrix(matrix), probes, 8)
        while not runs.is_done:
            runs.step()
        bound = largest_eigenvalue(runs, [0, 1], 0.2, 60)
        assert bound >= runs.largest
        failures += bound < 1
        tighter += math.sqrt(bound)
    assert failures <= 64  # P(Binomial(200, 0.2) > 64) < 1e-4
    assert tighter / 200 < 1.5
