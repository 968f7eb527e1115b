"""How often intervals hold the rank of planted spectra, and how wide they are."""

import statistics

import pytest
import torch

from localrank_cli.intervals.operator import of_matrix
from localrank_cli.intervals.point import Terms, Threshold
from tests.intervals.planted import (
    SPECTRA,
    Cell,
    cells,
    examined,
    generator,
    most_misses,
    planted,
    rank_of,
)

RTOLS = (0.5, 0.1, 0.01, 1e-3, 1e-4)
DELTA = 0.05


def check(found: list[Cell]) -> None:
    """Check cells of independent probes: those of one matrix share theirs, so take one of each."""
    assert all(cell.found.certain_low <= cell.true for cell in found)
    misses = sum(not cell.covers for cell in found)
    assert misses <= most_misses(len(found), DELTA), f"{misses} of {len(found)}"


def test_the_bound_on_misses_is_that_of_the_binomial_distribution() -> None:
    assert most_misses(400, 0.05) == 35  # mean 20, standard deviation 4.4
    assert most_misses(1, 0.05) == 1


@pytest.mark.parametrize("largest", [90, pytest.param(120, marks=pytest.mark.long)])
def test_intervals_of_small_matrices_hold_the_rank(largest: int) -> None:
    shapes = [(30, 50), (90, 60), *([(120, 120)] if largest == 120 else [])]
    found = [
        cells(name, shape, [rtol], seed=1000 * i + 10 * j + k, products=120)[0]
        for i, name in enumerate(SPECTRA)
        for j, shape in enumerate(shapes)
        for k, rtol in enumerate(RTOLS)
    ]
    check(found)


@pytest.mark.parametrize("relative", [False, True])
def test_tolerances_near_and_under_rounding_hold(relative: bool) -> None:
    """Squares of singular values under 5e-7 of the largest are rounding: bounds are wide there."""
    n, found = 80, []
    spectra = {
        "exponential": 10.0 ** (-torch.arange(n).double() * 12 / n),
        "gaps": torch.tensor([1.0] * 20 + [3e-6] * 20 + [1e-8] * 20 + [0.0] * 20).double(),
        "cluster": torch.cat([torch.ones(3), 1e-6 + 1e-9 * torch.linspace(1, -1, n - 3)]).double(),
    }
    for number, values in enumerate(spectra.values()):
        matrix = planted(values, n, 100, generator(number))
        for index, at in enumerate((1e-5, 2e-6, 1e-6, 3e-7, 1e-8, 1e-10)):
            one = Threshold(rtol=at) if relative else Threshold(atol=at)
            points, (bounds,) = examined([of_matrix(matrix)], Terms((one,)), 100 * number + index)
            found.append(Cell(int((values > at).sum()), bounds, points))
            if at < 1e-7:
                assert bounds.high == n
    check(found)


def test_tolerances_from_the_same_probes_hold_each() -> None:
    found = [cells(name, (150, 100), RTOLS, seed=77) for name in SPECTRA]
    for row in range(len(RTOLS)):
        check([of_matrix_[row] for of_matrix_ in found])


@pytest.mark.parametrize("seeds", [15, pytest.param(40, marks=pytest.mark.long)])
def test_means_over_points_hold(seeds: int) -> None:
    """Points of different ranks, with one probe each."""
    found = []
    names = [name for name in SPECTRA if name != "zero"]
    for seed in range(seeds):
        spectra = [SPECTRA[names[(seed + k) % len(names)]](50) for k in range(5)]
        matrices = [planted(s, 60, 50, generator(10 * seed + k)) for k, s in enumerate(spectra)]
        terms = Terms((Threshold(rtol=0.1),), n_points=5, products=60)
        points, (one,) = examined([of_matrix(m) for m in matrices], terms, seed)
        found.append(Cell(sum(rank_of(s, 0.1) for s in spectra) / 5, one, points))
    check(found)


@pytest.mark.long
def test_planted_spectra_to_1500() -> None:
    """450 independent cells, a third of them large; small ranks nearly all closed."""
    found = []
    for i, name in enumerate(SPECTRA):
        for j, shape in enumerate([(100, 150), (400, 400), (900, 600), (700, 1000), (1500, 1500)]):
            for k, rtol in enumerate(RTOLS):
                seed = 10_000 + 1000 * i + 100 * j + k
                found += cells(name, shape, [rtol], seed, products=500)
    for i, name in enumerate(SPECTRA):
        for k, rtol in enumerate(RTOLS):
            found += cells(name, (300, 200), [rtol], 50_000 + 100 * i + k, products=500)
    assert len(found) >= 400
    check(found)
    small = [cell for cell in found if cell.true <= 120]
    closed = [cell for cell in small if cell.found.high - cell.found.low <= 1]
    assert len(closed) >= 0.6 * len(small), f"{len(closed)} of {len(small)}"


@pytest.mark.long
def test_intervals_are_not_wide_for_safety() -> None:
    """The median is at most 1.2 times what the theory of quadrature gives, and the probes' noise.

    The width of a bracket after nu steps is about pi / (2 nu) sigma_1 sqrt(1 - rtol^2) dN/dsigma.
    """
    nu, n, ratios = 150, 1500, []
    for exponent in (0.5, 0.7):
        values = torch.arange(1, n + 1).double() ** -exponent
        for rtol in (0.3, 0.1, 0.05):
            matrix = planted(values, n, n, generator(int(1000 * rtol)))
            terms = Terms((Threshold(atol=rtol),), products=4 * nu + 1)
            _, (found,) = examined([of_matrix(matrix)], terms, 3)
            density = rtol ** (-1 / exponent - 1) / exponent  # N = sigma^(-1 / exponent)
            bracket = torch.pi / (2 * nu) * (1 - rtol**2) ** 0.5 * min(density, n)
            count = min(n, rtol ** (-1 / exponent))
            noise = 2 * 2.24 * (2 * count * (1 - count / n) / 2) ** 0.5  # 0.025 / 2 at either end
            ratios.append((found.high - found.low) / (1.2 * bracket + noise))
    assert statistics.median(ratios) <= 1
