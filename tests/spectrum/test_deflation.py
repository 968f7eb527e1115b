"""Deficient matrices: small singular values apart from the others, as good as the SVD's."""

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from localrank_cli.measures.table import demand_of
from localrank_cli.spectrum import solve
from localrank_cli.spectrum.deflation import MIN_DEFLATED_SIZE, gram_pair, small_values
from localrank_cli.spectrum.solve import solve_stack
from localrank_cli.spectrum.svd import gram_eigenvalues, rounding
from localrank_cli.spectrum.tolerance import Tolerance
from tests.drawing import drawn
from tests.spectrum.test_certificate import planted

SHAPES = [(MIN_DEFLATED_SIZE, MIN_DEFLATED_SIZE), (600, 200), (200, 600), (1500, 256)]


def spectrum(large: int, least: float, small: list[float]) -> list[float]:
    """From 1 down to `least`, then the small ones."""
    return [*torch.logspace(0, torch.tensor(least).log10().item(), large).tolist(), *small]


def refuse(_matrix: Tensor) -> Tensor:
    raise AssertionError("an SVD of the whole matrix")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("least", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize(
    "small", [[0.0] * 20, [1e-9] * 10 + [0.0] * 3, [10.0**-power for power in range(8, 16)]]
)
def test_small_values_are_as_good_as_those_of_the_svd(
    shape: tuple[int, int], least: float, small: list[float]
) -> None:
    width = min(shape)
    matrix = planted(spectrum(width - len(small), least, small), *shape, seed=0)
    found = small_values(gram_pair(matrix))
    assert found is not None
    assert len(found) == len(small)
    # The planted values are those of the matrix up to the rounding of two products, which is a few
    # u times the norm: far under the bound that is held here, the one promised for every value.
    bound = float(rounding(torch.ones(()), max(shape), torch.float64))
    assert float((found - torch.tensor(small, dtype=torch.float64)).abs().max()) <= bound


@pytest.mark.parametrize("shape", SHAPES)
def test_deficient_matrices_need_no_svd(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    width = min(shape)
    values = spectrum(width - 16, 1e-3, [1e-10] * 8 + [0.0] * 8)
    matrices = torch.stack([planted(values, *shape, seed) for seed in range(3)])
    truth = torch.linalg.svdvals(matrices)
    monkeypatch.setattr(solve, "singular_values", refuse)
    found = solve_stack(matrices, demand_of((Tolerance(atol=0.01), Tolerance(rtol=1e-12))))
    for tol in (0.01, 1e-12, 3e-9):
        assert ((found > tol).sum(dim=1) == (truth > tol).sum(dim=1)).all()
    # 1e-6 is what every measure promises from route to route.
    assert torch.allclose(entropy(found), entropy(truth), rtol=1e-6)


def entropy(values: Tensor) -> Tensor:
    """Of singular values, those under their rounding put to zero, as in every measure."""
    values = torch.where(values > rounding(values[:, :1], 1500, torch.float64), values, 0)
    shares = values / values.sum(dim=1, keepdim=True)
    found: Tensor = -torch.special.xlogy(shares, shares).sum(dim=1)
    return found


@pytest.mark.parametrize(
    "values",
    [
        torch.logspace(0, -14, 200).tolist(),  # no gap
        [1.0] * 100 + [0.0] * 100,  # too many
        [1.0] * 190 + [1e-5] * 10,  # the Gram matrix resolves all of them
    ],
)
def test_others_are_left_to_the_svd(values: list[float]) -> None:
    matrix = planted(values, 300, 200, seed=1)
    found = small_values(gram_pair(matrix))
    if found is not None:  # small, but returned nevertheless: then exact
        truth = torch.linalg.svdvals(matrix)[-len(found) :]
        assert float((found - truth).abs().max()) <= 2 * float(
            rounding(torch.ones(()), 300, torch.float64)
        )
    solved = solve_stack(matrix.unsqueeze(0), demand_of((Tolerance(rtol=1e-7),)))[0]
    assert (solved > 1e-7).sum() == (torch.linalg.svdvals(matrix) > 1e-7).sum()


def test_equal_jacobians_are_solved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    solved: list[int] = []

    def counted(matrices: Tensor) -> Tensor:
        solved.append(matrices.shape[0])
        return gram_eigenvalues(matrices)

    monkeypatch.setattr(solve, "gram_eigenvalues", counted)
    demand = demand_of((Tolerance(atol=0.01),))
    found = solve_stack(weight.expand(5, 6, 9), demand)
    assert solved == [1]
    truth = torch.linalg.svdvals(weight)
    # Eigenvalues of the Gram matrix, whose condition number is about 100: 1e-12 leaves room.
    assert torch.allclose(found, truth.expand(5, -1), rtol=1e-12)
    other = torch.stack([weight, weight, weight + 1e-9])
    rows = solve_stack(other, demand)
    assert solved == [1, 3]
    assert not torch.equal(rows[0], rows[2])


def test_zero_and_nonfinite_matrices() -> None:
    matrices = torch.zeros(3, 200, 250, dtype=torch.float64)
    matrices[1, 4, 4] = torch.nan
    matrices[2] = 1e200 * torch.eye(200, 250, dtype=torch.float64)
    found = solve_stack(matrices, demand_of((Tolerance(atol=0.01),)))
    assert (found[0] == 0).all()
    assert found[1].isnan().all()
    assert torch.allclose(found[2], torch.full((200,), 1e200, dtype=torch.float64), rtol=1e-12)


@pytest.mark.cuda
def test_the_same_on_a_gpu() -> None:
    values = spectrum(580, 1e-3, [1e-10] * 10 + [0.0] * 10)
    matrices = planted(values, 900, 600, seed=2).unsqueeze(0)
    demand = demand_of((Tolerance(atol=0.01), Tolerance(rtol=1e-12)))
    there, here = solve_stack(matrices.cuda(), demand), solve_stack(matrices, demand)
    assert float((there - here).abs().max()) <= 2 * float(
        rounding(torch.ones(()), 900, torch.float64)
    )


@drawn(
    8,
    25,
    rows=st.integers(MIN_DEFLATED_SIZE, 500),
    count=st.integers(1, 30),
    least=st.floats(-4.5, 0),
    depth=st.floats(2, 12),
    seed=st.integers(0, 1000),
)
def test_no_wrong_count(rows: int, count: int, least: float, depth: float, seed: int) -> None:
    small = (10.0 ** (least - depth)) * torch.logspace(0, -2, count, dtype=torch.float64)
    values = spectrum(MIN_DEFLATED_SIZE - count, 10.0**least, small.tolist())
    matrix = planted(values, rows, MIN_DEFLATED_SIZE, seed)
    found = solve_stack(matrix.unsqueeze(0), demand_of((Tolerance(rtol=1e-3),)))[0]
    truth = torch.linalg.svdvals(matrix)
    unsure = 2 * float(rounding(truth[0], rows, torch.float64))
    for tol in (1e-3, float(small.mean())):
        if float((truth - tol).abs().min()) > unsure:
            assert (found > tol).sum() == (truth > tol).sum()
