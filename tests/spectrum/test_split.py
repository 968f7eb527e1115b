"""Singular values in two parts: their bounds whatever columns are given, and low-rank layers."""

import random

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from localrank_cli.layers.select import Selection
from localrank_cli.measures.table import demand_of
from localrank_cli.spectrum import solve
from localrank_cli.spectrum.certificate import squared_error
from localrank_cli.spectrum.layer import Request, layer_spectra
from localrank_cli.spectrum.split import Split, split_values
from localrank_cli.spectrum.svd import rounding
from localrank_cli.spectrum.tolerance import Tolerance
from tests.drawing import drawn
from tests.naive import naive_jacobians
from tests.spectrum.test_certificate import planted
from tests.spectrum.test_lowest import measured, refuse

SHAPES = [(120, 120), (200, 130), (60, 400), (600, 200)]
TAILS = ["zeros", "1e-9", "graded", "near", "no gap", "one"]
GUESSES = [
    *("exact", "mixed", "turned 1e-3", "turned 1e-7", "turned 1e-12"),
    *("random", "others", "one of others", "twice", "zeros"),
]


def values_of(tail: str, width: int, large: int) -> list[float]:
    """A spectrum whose first values are large, descending."""
    first, more = np.linspace(1, 0.05, large).tolist(), width - large
    last = {
        "zeros": [0.0] * more,
        "1e-9": [1e-9] * more,
        "graded": [10.0 ** -(4 + 12 * i / more) for i in range(more)],
        "near": [1e-4 * (1 - i / width) for i in range(more)],
        "no gap": [0.05 * (1 - 1e-9)] * more,
        "one": [1e-3] + [0.0] * (more - 1),
    }[tail]
    return [*first, *last]


def guess_of(kind: str, matrix: Tensor, large: int, seed: int) -> Tensor:
    """Columns that span the left singular vectors of the large values, or not."""
    vectors: Tensor = torch.linalg.svd(matrix).U
    right, wrong = vectors[:, :large], vectors[:, large : 2 * large]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(right.shape, generator=generator, dtype=torch.float64)
    mixing = torch.randn(large, large, generator=generator, dtype=torch.float64)
    if kind.startswith("turned"):
        return right + float(kind.split()[1]) * noise
    return {
        "exact": right,
        "random": noise,
        "others": wrong,
        "one of others": torch.cat([right[:, 1:], wrong[:, :1]], dim=1),
        "twice": torch.cat([right[:, :1], right[:, :-1]], dim=1),
        "zeros": torch.zeros_like(right),
        "mixed": right @ mixing,
    }[kind]


def check(found: Split, truth: Tensor, shape: tuple[int, int]) -> None:
    """Check every value against the bounds, `truth` being as exact as an SVD."""
    slip = float(rounding(truth[0], max(shape), torch.float64))
    count = len(found.lowest.values)
    last, first = truth[len(truth) - count :], truth[: len(truth) - count]
    assert float((found.lowest.values - last).abs().max()) <= found.lowest.slack + slip
    delta = squared_error(truth.square().sum(), truth[0].square(), max(shape), min(shape))
    error = (found.eigenvalues[: len(first)].sqrt() - first).abs()
    assert (error <= found.error + slip + delta / first).all()


@drawn(
    25,
    150,
    shape=st.sampled_from(SHAPES),
    tail=st.sampled_from(TAILS),
    kind=st.sampled_from(GUESSES),
    large=st.sampled_from([1, 7, 30]),
    seed=st.integers(0, 99),
    scale=st.sampled_from([1.0, 1e-30, 1e30]),
)
def test_the_errors_are_within_the_bounds(
    shape: tuple[int, int], tail: str, kind: str, large: int, seed: int, scale: float
) -> None:
    matrix = planted(values_of(tail, min(shape), large), *shape, seed) * scale
    found = split_values(matrix, guess_of(kind, matrix, large, seed))
    if found is not None:
        check(found, torch.linalg.svdvals(matrix), shape)


@pytest.mark.cover(2)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tail", ["zeros", "1e-9"])
@pytest.mark.parametrize("kind", ["exact", "mixed"])
def test_the_right_columns_are_enough(shape: tuple[int, int], tail: str, kind: str) -> None:
    matrix = planted(values_of(tail, min(shape), 30), *shape, seed=0)
    found = split_values(matrix, guess_of(kind, matrix, 30, seed=0))
    assert found is not None
    check(found, torch.linalg.svdvals(matrix), shape)


@pytest.mark.parametrize("kind", ["random", "others", "one of others", "zeros", "turned 1e-3"])
def test_wrong_columns_are_refused(kind: str) -> None:
    matrix = planted(values_of("1e-9", 130, 30), 200, 130, seed=0)
    assert split_values(matrix, guess_of(kind, matrix, 30, seed=0)) is None


def test_what_is_not_finite_is_refused() -> None:
    columns = torch.randn(60, 5, dtype=torch.float64)
    for value in (torch.nan, torch.inf, 1e200):
        matrix = torch.full((60, 60), value, dtype=torch.float64)
        assert split_values(matrix, columns) is None


def low_rank(rank: int, noise: float, seed: int) -> tuple[nn.Module, Tensor]:
    """An MLP whose first weight has a rank, up to noise; and points."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    activation = draw.choice([nn.ReLU, nn.Tanh, nn.GELU])
    widths = [draw.choice([90, 150]), draw.choice([60, 120]), draw.choice([80, 100])]
    model = nn.Sequential(
        nn.Linear(160, widths[0]), activation(), nn.Linear(widths[0], widths[1]), activation(),
        nn.Linear(widths[1], widths[2]),
    ).double()  # fmt: skip
    weight = model.get_parameter("0.weight")
    with torch.no_grad():
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        values[rank:] *= noise
        weight.copy_(left @ torch.diag(values) @ right)
    return model.eval(), torch.randn(4, 160, dtype=torch.float64)


@pytest.mark.cover(1)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("noise", [0.0, 1e-12, 1e-8, 1e-6, 1e-3])
@pytest.mark.parametrize("rank", [1, 5, 20, 44])
def test_networks_behind_a_layer_of_low_rank(rank: int, noise: float, seed: int) -> None:
    model, points = low_rank(rank, noise, seed)
    tolerances = (Tolerance(atol=0.01), Tolerance(rtol=1e-3), Tolerance(rtol=1e-9))
    spectra = layer_spectra(model, points, Request(Selection(), demand=demand_of(tolerances)))
    for spectrum, jacobians in zip(spectra, naive_jacobians(model, points).values(), strict=True):
        truth = torch.from_numpy(np.linalg.svd(jacobians, compute_uv=False))
        for found, values in zip(spectrum.computed, truth, strict=True):
            unsure = float(rounding(values[0], 160, torch.float64))
            for tolerance in tolerances:
                tol = tolerance.threshold(values[:1], *jacobians.shape[1:])
                for factor in (0.99, 1.0, 1.01):
                    if float((values - factor * tol).abs().min()) > 2 * unsure:
                        counts = [(one > factor * tol).sum() for one in (found, values)]
                        assert counts[0] == counts[1]
            effective = [measured(one, "effective_rank") for one in (found, values)]
            assert effective[0] == pytest.approx(effective[1], rel=1e-6)  # what is promised


def test_a_layer_of_low_rank_needs_no_svd(monkeypatch: pytest.MonkeyPatch) -> None:
    model, points = low_rank(20, 1e-8, seed=0)
    used = []

    def counted(matrix: Tensor, columns: Tensor) -> Split | None:
        used.append(split_values(matrix, columns))
        return used[-1]

    monkeypatch.setattr(solve, "split_values", counted)
    monkeypatch.setattr(solve, "singular_values", refuse)
    layer_spectra(model, points, Request(Selection(), demand=demand_of((Tolerance(atol=0.01),))))
    assert len(used) == 8
    assert None not in used
