"""Soft ranks of outputs and weights against numpy, and the matrix of each kind of weight."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from localrank_cli.measures import beside
from localrank_cli.measures.beside import output_ranks, weight_matrix, weight_ranks

Array = npt.NDArray[np.float64]
EPSILON = float(np.finfo(np.float64).eps)


def entropy_rank(values: Array) -> float:
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def outputs(n_points: int, n_entries: int, seed: int = 0) -> Array:
    """Samples whose directions have standard deviations 1, 1/2, 1/3, ..., far from 0."""
    random = np.random.default_rng(seed)
    scales = 1 / np.arange(1, n_entries + 1)
    turned = np.linalg.qr(random.normal(size=(n_entries, n_entries)))[0]
    samples: Array = random.normal(size=(n_points, n_entries)) * scales @ turned + 3.0
    return samples


@pytest.mark.parametrize(("n_points", "n_entries"), [(50, 8), (8, 50), (2, 3)])
def test_outputs_as_by_numpy(n_points: int, n_entries: int) -> None:
    samples = outputs(n_points, n_entries)
    found = output_ranks(torch.from_numpy(samples), EPSILON)
    # The singular values are roots of the covariance's eigenvalues, up to a factor. Of a small
    # sample the smallest is 0, and numpy's is rounding, which the entropy hardly sees.
    values = np.linalg.svd(samples - samples.mean(0), compute_uv=False)
    assert found.effective_rank == pytest.approx(entropy_rank(values), rel=1e-9)
    powers = np.linalg.eigvalsh(np.cov(samples, rowvar=False))
    assert found.participation_ratio == pytest.approx(
        powers.sum() ** 2 / (powers**2).sum(), rel=1e-9
    )
    assert (found.n_samples, found.ceiling) == (n_points, min(n_points, n_entries))


@pytest.mark.parametrize(("n_points", "n_entries"), [(6, 40), (40, 6)])
def test_products_of_samples_give_the_same(
    n_points: int, n_entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = torch.from_numpy(outputs(n_points, n_entries))
    by_values = output_ranks(samples, EPSILON)
    monkeypatch.setattr(beside, "MOST_ENTRIES", 5)
    by_products = output_ranks(samples, EPSILON)
    # Squares of values from 1 to 1/40 of the largest lose 3 of 16 digits.
    assert by_products.effective_rank == pytest.approx(by_values.effective_rank, rel=1e-9)
    assert by_products.participation_ratio == pytest.approx(by_values.participation_ratio, rel=1e-9)


@pytest.mark.parametrize("n_entries", [2_000, 20_000])  # by values and by products
def test_small_directions_of_many_float32_outputs_count(n_entries: int) -> None:
    # One direction and 98 of 1/5000 of it, far above the rounding of the samples.
    random = np.random.default_rng(0)
    values = np.r_[1.0, np.full(98, 1 / 5_000)]
    left = random.normal(size=(100, 99))
    left = np.linalg.qr(left - left.mean(0))[0]
    right = np.linalg.qr(random.normal(size=(n_entries, 99)))[0]
    samples = ((left * values) @ right.T).astype(np.float32)
    found = output_ranks(torch.from_numpy(samples).double(), float(np.finfo(np.float32).eps))
    # Rounding by 6e-8 of entries changes the small values by less than 1e-4 of them.
    assert found.effective_rank == pytest.approx(entropy_rank(values), rel=1e-4)


def test_rounding_of_float32_outputs_is_no_direction() -> None:
    random = np.random.default_rng(0)
    samples = (random.normal(size=(200, 3)) @ random.normal(size=(3, 60))).astype(np.float32)
    found = output_ranks(torch.from_numpy(samples).double(), float(np.finfo(np.float32).eps))
    exact = np.linalg.svd(samples - samples.mean(0, dtype=np.float64), compute_uv=False)[:3]
    assert found.effective_rank == pytest.approx(entropy_rank(exact), rel=1e-9)


def test_samples_wider_than_any_matrix_of_them() -> None:
    # Two directions with equal variance among 20,000: both ranks are 2.
    samples = torch.zeros(4, 20_000, dtype=torch.float64)
    samples[0, 7], samples[1, 7], samples[2, 19_000], samples[3, 19_000] = 1.0, -1.0, 1.0, -1.0
    found = output_ranks(samples, EPSILON)
    assert found.effective_rank == pytest.approx(2, rel=1e-12)
    assert found.participation_ratio == pytest.approx(2, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_the_scale_changes_nothing(scale: float) -> None:
    samples = torch.from_numpy(outputs(20, 5))
    found = output_ranks(samples * scale, EPSILON)
    assert found.effective_rank == pytest.approx(output_ranks(samples, EPSILON).effective_rank)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e5])
def test_outputs_that_never_change_have_rank_0(value: float) -> None:
    found = output_ranks(torch.full((7, 3), value, dtype=torch.float64), EPSILON)
    assert (found.effective_rank, found.participation_ratio) == (0.0, 0.0)
    assert found.at_ceiling == ()


def test_the_ceiling_of_the_sample_is_marked() -> None:
    # Orthogonal samples of equal length: centred, N - 1 equal singular values.
    few = output_ranks(torch.eye(5, 9, dtype=torch.float64), EPSILON)
    assert few.effective_rank == pytest.approx(4, rel=1e-12)
    assert (few.ceiling, few.at_ceiling) == (5, ("effective_rank", "participation_ratio"))
    assert output_ranks(torch.from_numpy(outputs(50, 8)), EPSILON).at_ceiling == ()


def test_weights_as_by_numpy() -> None:
    weight = np.random.default_rng(1).normal(size=(6, 4))
    weight[:, 3] = weight[:, 0]  # of rank 3
    found = weight_ranks(torch.from_numpy(weight))
    values: Array = np.linalg.svd(weight, compute_uv=False).astype(np.float64)
    assert found.effective_rank == pytest.approx(entropy_rank(values), rel=1e-9)
    assert found.stable_rank == pytest.approx((weight**2).sum() / values[0] ** 2, rel=1e-12)
    assert found.spectral_norm == pytest.approx(np.linalg.norm(weight, 2), rel=1e-12)
    assert found.ceiling == 4
    nothing = weight_ranks(torch.zeros(2, 3))
    assert (nothing.effective_rank, nothing.stable_rank, nothing.spectral_norm) == (0, 0, 0)


def matrix_of(module: nn.Module) -> Array:
    found = weight_matrix(module)
    assert not isinstance(found, str), found
    return found.numpy()


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_has_a_row_for_each_output_channel(groups: int) -> None:
    module = nn.Conv2d(4, 6, (3, 2), groups=groups)
    weight = module.weight.detach().numpy()
    expected = np.array([weight[out].ravel() for out in range(6)])
    np.testing.assert_array_equal(matrix_of(module), expected)
    assert expected.shape == (6, 4 // groups * 6)


@pytest.mark.parametrize("groups", [1, 2])
def test_so_has_a_transposed_one(groups: int) -> None:
    module = nn.ConvTranspose2d(4, 6, (3, 2), groups=groups)
    weight = module.weight.detach().numpy()  # (in, out / groups, k, k)
    expected = np.array(
        [
            [
                weight[out // (6 // groups) * (4 // groups) + inner, out % (6 // groups), i, j]
                for inner in range(4 // groups)
                for i in range(3)
                for j in range(2)
            ]
            for out in range(6)
        ]
    )
    np.testing.assert_array_equal(matrix_of(module), expected)


def test_other_weights() -> None:
    assert matrix_of(nn.Bilinear(2, 3, 4)).shape == (4, 6)
    assert matrix_of(nn.Embedding(5, 3)).shape == (5, 3)
    for module, reason in (
        (nn.ReLU(), "no tensor named weight"),
        (nn.LayerNorm(3), "a weight of shape 3, no matrix"),
        (nn.LayerNorm(3, elementwise_affine=False), "no tensor named weight"),
    ):
        assert weight_matrix(module) == reason
