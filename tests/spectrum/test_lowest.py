"""The lowest singular values apart from the others: their bound, and what is built on it."""

import math

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from localrank_cli.measures.table import MEASURES, demand_of
from localrank_cli.spectrum import lowest, solve
from localrank_cli.spectrum.deflation import gram_pair
from localrank_cli.spectrum.lowest import lowest_values
from localrank_cli.spectrum.solve import solve_stack
from localrank_cli.spectrum.svd import rounding
from localrank_cli.spectrum.tolerance import Tolerance
from tests.drawing import drawn
from tests.spectrum.test_certificate import planted

SHAPES = [(120, 120), (200, 130), (60, 400), (600, 200)]


def bottoms(width: int) -> dict[str, list[float]]:
    """Spectra whose last values the Gram matrix does not resolve."""
    large = torch.linspace(1, 0.05, width).tolist()
    return {
        # As of a square matrix of a trained network: evenly spaced down to nothing, without a gap.
        "even": [((width - i) / width) ** 2 + 1e-6 * (width - i - 0.7) for i in range(width)],
        "one": [*large[:-1], 3e-7],
        "graded": [*large[:-12], *(10.0 ** -(4 + p) for p in range(12))],
        "over 300 orders": [*large[:-8], *(10.0 ** -(40 * p + 9) for p in range(8))],
        "a cluster": [*large[:-6], *[2e-6] * 6],
        "a cluster across every cut": [*large[:-30], *[1e-5 * (1 + 1e-9 * i) for i in range(30)]],
        "many zeros": [*large[: width // 2], *[0.0] * (width - width // 2)],
        "many at 1e-9": [*large[: width // 2], *[1e-9] * (width - width // 2)],
        "all alike but one": [*[1.0] * (width - 1), 1e-8],
    }


KINDS = list(bottoms(4 * 12))


def slip(shape: tuple[int, int]) -> float:
    """How far planted values may be from those of the matrix: two products, as an SVD's own."""
    return float(rounding(torch.ones(()), max(shape), torch.float64))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_error_is_within_the_bound(shape: tuple[int, int], kind: str) -> None:
    values = bottoms(min(shape))[kind]
    values.sort(reverse=True)
    matrix = planted(values, *shape, seed=0)
    found = lowest_values(gram_pair(matrix))
    if found is not None:
        truth = torch.tensor(values[-len(found.values) :], dtype=torch.float64)
        assert float((found.values - truth).abs().max()) <= found.slack + slip(shape)


@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize("kind", ["even", "graded", "a cluster", "one"])
def test_vectors_that_have_not_converged_show_in_the_bound(
    monkeypatch: pytest.MonkeyPatch, kind: str, steps: int
) -> None:
    monkeypatch.setattr(lowest, "_STEPS", steps)
    monkeypatch.setattr(lowest, "_ROUNDS", 1)
    values = sorted(bottoms(200)[kind], reverse=True)
    found = lowest_values(gram_pair(planted(values, 300, 200, seed=1)))
    if found is not None:
        truth = torch.tensor(values[-len(found.values) :], dtype=torch.float64)
        assert float((found.values - truth).abs().max()) <= found.slack + slip((300, 200))


def test_vectors_beside_the_right_ones_show_in_the_bound() -> None:
    # Singular vectors of other values, exact: nothing couples them, and they are not the last.
    values = torch.linspace(1, 1e-6, 150, dtype=torch.float64)
    matrix = torch.diag(values)
    pair = gram_pair(matrix)
    error = pair.error
    basis = torch.eye(150, dtype=torch.float64)
    assert lowest._at(pair, basis[:, 100:104].contiguous(), 4, error) is None
    found = lowest._at(pair, basis[:, 146:].contiguous(), 4, error)
    assert found is not None
    assert float((found.values - values[-4:]).abs().max()) <= found.slack


def test_first_columns_that_depend_on_each_other_are_no_remainder() -> None:
    # LU finds the rank in its first steps only where the first columns are independent.
    matrix = planted([1.0] * 60, 200, 150, seed=2)
    matrix[:, :100] = matrix[:, :1]
    found = lowest_values(gram_pair(matrix))
    truth = torch.linalg.svdvals(matrix)
    if found is not None:
        off = (found.values - truth[-len(found.values) :]).abs().max()
        assert float(off) <= found.slack + slip((200, 150))
    demand = demand_of((Tolerance(atol=0.01),))
    (solved,) = solve_stack(matrix.unsqueeze(0), demand)
    assert (solved > 0.01).sum() == (truth > 0.01).sum()


def refuse(_matrix: Tensor) -> Tensor:
    raise AssertionError("an SVD of the whole matrix")


def measured(values: Tensor, name: str) -> float:
    compute = MEASURES[name].compute
    assert compute is not None
    floor = rounding(values[:1], 400, torch.float64)
    return float(compute(torch.where(values > floor, values, 0).unsqueeze(0), 1.0)[0])


@pytest.mark.parametrize("shape", [(120, 120), (200, 130), (60, 400)])
@pytest.mark.parametrize("kind", ["even", "one", "a cluster", "many zeros", "all alike but one"])
def test_only_sums_uncertain_needs_no_svd(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], kind: str
) -> None:
    values = sorted(bottoms(min(shape))[kind], reverse=True)
    matrix = planted(values, *shape, seed=3)
    truth = torch.linalg.svdvals(matrix)
    monkeypatch.setattr(solve, "singular_values", refuse)
    (found,) = solve_stack(matrix.unsqueeze(0), demand_of((Tolerance(atol=0.031),)))
    assert (found[:-1] >= found[1:]).all()
    assert (found > 0.031).sum() == (truth > 0.031).sum()
    for name, measure in MEASURES.items():
        if measure.compute is not None:  # 1e-6 is what the contract promises from route to route
            assert measured(found, name) == pytest.approx(measured(truth, name), rel=1e-6)


@drawn(
    20,
    60,
    shape=st.sampled_from([(40, 40), (130, 200), (300, 100), (36, 600)]),
    kind=st.sampled_from(KINDS),
    place=st.integers(1, 12),
    off=st.sampled_from([-1e-3, -1e-9, -1e-12, 1e-12, 1e-9, 1e-3]),
    scale=st.sampled_from([1.0, 1e-30, 1e30, 1e-150, 1e150]),
    seed=st.integers(0, 99),
)
def test_tolerances_among_the_lowest_values(
    shape: tuple[int, int], kind: str, place: int, off: float, scale: float, seed: int
) -> None:
    values = sorted(bottoms(min(shape))[kind], reverse=True)
    matrix = planted(values, *shape, seed) * scale
    truth = torch.linalg.svdvals(matrix)
    tol = float(truth[-place]) * (1 + off)
    if not tol > 0:
        return
    (found,) = solve_stack(matrix.unsqueeze(0), demand_of((Tolerance(atol=tol),)))
    unsure = float(rounding(truth[0], max(shape), torch.float64))
    for factor in (0.99, 1.0, 1.01):
        if float((truth - factor * tol).abs().min()) > unsure:
            assert (found > factor * tol).sum() == (truth > factor * tol).sum()


def test_what_has_no_lowest_values() -> None:
    for matrix in (
        torch.zeros(30, 40),
        torch.ones(1, 50),
        torch.full((30, 30), torch.nan),
        torch.full((30, 30), 1e200, dtype=torch.float64),
        torch.full((30, 30), 1e-200, dtype=torch.float64),
        torch.eye(40),
    ):
        found = lowest_values(gram_pair(matrix))
        assert found is None or not found.values.any() or not math.isfinite(found.slack)
