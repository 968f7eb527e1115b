"""Networks whose Jacobians can be written down."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from localrank_cli.measures.points import local_ranks
from localrank_cli.spectrum.tolerance import Tolerance
from tests.asking import numbers, spectra_of, values_of
from tests.naive import Array, chain
from tests.networks import Net, Residual, bias, mlp, settled, weight

# Chains of at most 4 matrices of at most 40 columns, in which the factors' norms are under 100
# times the product's: 4 products, k u each.
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 4 * 40 * 2.0**-53 * 100}  # 1.8e-12


def linear(matrix: Array) -> nn.Linear:
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], dtype=torch.float64)
    layer.weight.data = torch.from_numpy(matrix.copy())
    return layer


def orthogonal(n: int, seed: int) -> Array:
    generator = np.random.default_rng(seed)
    return np.linalg.qr(generator.standard_normal((n, n)))[0].astype(np.float64)


def planted(sigma: Array, n_out: int, n_in: int, seed: int) -> Array:
    """A matrix with these singular values, and zeros after them."""
    r = len(sigma)
    left, right = orthogonal(n_out, seed)[:, :r], orthogonal(n_in, seed + 1)[:, :r]
    return np.asarray((left * sigma) @ right.T)


def weights_of(model: nn.Module) -> list[Array]:
    return [
        module.weight.detach().numpy()
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]


def svd(matrix: Array) -> Array:
    return np.asarray(np.linalg.svd(matrix, compute_uv=False), dtype=np.float64)


def test_linear_network_is_the_product_of_its_weights() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(*[nn.Linear(a, b) for a, b in [(9, 7), (7, 12), (12, 5)]]).double()
    points = torch.randn(3, 9, dtype=torch.float64)
    for depth, spectrum in enumerate(spectra_of(model, points).values(), 1):
        expected = svd(chain(weights_of(model)[:depth]))
        for values in numbers(spectrum):
            np.testing.assert_allclose(values, expected, **CLOSE)


def test_first_layer_is_its_weight_at_every_point() -> None:
    model = mlp(20, 15, 4, act=nn.Tanh).double()
    values = values_of(model, torch.randn(4, 20, dtype=torch.float64), "0")
    np.testing.assert_allclose(values, np.tile(svd(weights_of(model)[0]), (4, 1)), **CLOSE)


def test_relu_network_is_a_product_with_masks() -> None:
    torch.manual_seed(2)
    model = mlp(10, 20, 15, 6).double()
    points = torch.randn(6, 10, dtype=torch.float64)
    found = list(spectra_of(model, points).values())
    layers = [module for module in model if isinstance(module, nn.Linear)]
    for index, point in enumerate(points.numpy()):
        hidden, jacobian = point, np.eye(10)
        for depth, layer in enumerate(layers):
            matrix, offset = layer.weight.detach().numpy(), layer.bias.detach().numpy()
            hidden, jacobian = matrix @ hidden + offset, matrix @ jacobian
            np.testing.assert_allclose(numbers(found[depth])[index], svd(jacobian), **CLOSE)
            mask = hidden > 0
            hidden, jacobian = hidden * mask, mask[:, None] * jacobian


@pytest.mark.parametrize(
    ("act", "slope"),
    [
        (nn.Tanh, lambda z: 1 - np.tanh(z) ** 2),
        (nn.Sigmoid, lambda z: np.exp(-z) / (1 + np.exp(-z)) ** 2),
        (nn.Softplus, lambda z: 1 / (1 + np.exp(-z))),
        (nn.ELU, lambda z: np.where(z > 0, 1, np.exp(z))),
    ],
    ids=["tanh", "sigmoid", "softplus", "elu"],
)
def test_activation_is_a_diagonal_of_slopes(act: Any, slope: Any) -> None:
    torch.manual_seed(3)
    model = mlp(7, 9, 8, act=act).double()
    points = torch.randn(4, 7, dtype=torch.float64)
    first, second = weights_of(model)
    offset = bias(model, "0").numpy()
    for values, point in zip(values_of(model, points), points.numpy(), strict=True):
        jacobian = (second * slope(first @ point + offset)) @ first
        np.testing.assert_allclose(values, svd(jacobian), **CLOSE)


def test_planted_spectrum_of_a_product() -> None:
    # W_1 = U S V^T, W_2 = T R U^T: the singular values multiply.
    s, r = np.array([2.0, 1.0, 0.5, 0.1]), np.array([1.0, 0.8, 0.3, 0.02])
    u = orthogonal(4, 5)
    first = (u * s) @ orthogonal(9, 6)[:, :4].T
    second = (orthogonal(6, 7)[:, :4] * r) @ u.T
    model = nn.Sequential(linear(first), linear(second))
    values = values_of(model, torch.zeros(1, 9, dtype=torch.float64))
    np.testing.assert_allclose(values[0], [*(s * r), 0, 0], **CLOSE)


@pytest.mark.parametrize("shape", [(12, 12), (12, 40), (40, 12)])
def test_planted_ranks_are_exact(shape: tuple[int, int]) -> None:
    # 1, 0.1, ... 1e-11: a tolerance of 10^-(k + 1/2) keeps k + 1. The SVD's rounding on these is
    # 40 * 2.2e-16 = 1e-14, far under the gap at 1e-10.
    model = nn.Sequential(linear(planted(10.0 ** -np.arange(12, dtype=np.float64), *shape, seed=8)))
    spectrum = spectra_of(model, torch.zeros(2, shape[1], dtype=torch.float64))["0"]
    for k in range(11):
        tol = 10.0 ** -(k + 0.5)
        for tolerance in (Tolerance(atol=tol), Tolerance(rtol=tol)):
            ranks = local_ranks(spectrum, tolerance)
            assert ranks.counts.tolist() == [k + 1, k + 1]
            assert not ranks.near.any()
            assert not ranks.undecided.any()


@pytest.mark.parametrize("rank", [0, 1, 5, 9])
def test_zeros_are_exactly_zero(rank: int) -> None:
    matrix = planted(np.linspace(1, 2, rank), 30, 20, seed=9)
    values = values_of(nn.Sequential(linear(matrix)), torch.zeros(1, 20, dtype=torch.float64))
    assert (values[0] > 0).sum() == rank
    assert (values[0, rank:] == 0).all()


def test_dead_units_leave_the_rank_of_the_active() -> None:
    torch.manual_seed(4)
    model = mlp(12, 10, 11).double()
    points = torch.randn(5, 12, dtype=torch.float64)
    for dead in (0, 3, 9, 10):
        bias(model, "0").fill_(1e3)
        bias(model, "0")[:dead] = -1e3  # |W x| < 20 here: on and off for certain
        assert (values_of(model, points, "2") > 0).sum(axis=1).tolist() == [10 - dead] * 5


def test_skip_from_the_input_keeps_every_direction() -> None:
    # The row space of W_1 has 10 dimensions, x + W_2 relu(W_1 x) has 30.
    torch.manual_seed(5)
    model = nn.Sequential(Residual(30, 10).double(), linear(orthogonal(30, 15)))
    points = torch.randn(3, 30, dtype=torch.float64)
    first, second, last = weights_of(model)
    for values, point in zip(values_of(model, points, "1"), points.numpy(), strict=True):
        mask = first @ point + bias(model, "0.down").numpy() > 0
        expected = svd(last @ (np.eye(30) + (second * mask) @ first))
        np.testing.assert_allclose(values, expected, **CLOSE)
        assert (values > 1e-3 * values[0]).sum() == 30


def test_batchnorm_in_eval_is_a_diagonal() -> None:
    torch.manual_seed(6)
    model = settled(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 5))).double()
    first, second = weights_of(model)
    norm = model.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_var is not None
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().numpy()
    values = values_of(model, torch.randn(3, 6, dtype=torch.float64))
    np.testing.assert_allclose(values, np.tile(svd((second * scale) @ first), (3, 1)), **CLOSE)


def test_layernorm_loses_two_directions() -> None:
    # J = (I - 11'/n - yy'/n) / s with s^2 = var + eps: n - 2 times 1/s, eps/s^3 along y, 0 along 1.
    n, eps = 9, 1e-3
    norm = nn.LayerNorm(n, eps=eps, elementwise_affine=False)
    model = nn.Sequential(norm, linear(orthogonal(n, 10)))
    points = torch.randn(4, n, dtype=torch.float64)
    s = np.sqrt(points.numpy().var(axis=1, keepdims=True) + eps)
    expected = np.hstack([np.tile(1 / s, n - 2), eps / s**3, np.zeros_like(s)])
    np.testing.assert_allclose(values_of(model, points), expected, **CLOSE)


def test_softmax_loses_one_direction() -> None:
    model = nn.Sequential(nn.Softmax(-1), linear(orthogonal(7, 11)))
    points = torch.randn(3, 7, dtype=torch.float64)
    for values, point in zip(values_of(model, points), points.numpy(), strict=True):
        p = np.exp(point) / np.exp(point).sum()
        np.testing.assert_allclose(values, svd(np.diag(p) - np.outer(p, p)), **CLOSE)
        assert (values > 0).sum() == 6


@pytest.mark.parametrize("kind", ["tokens", "convolution"])
def test_a_layer_at_every_position_repeats_its_singular_values(kind: str) -> None:
    matrix = np.random.default_rng(12).standard_normal((4, 6)) / 3
    if kind == "tokens":
        model, points = nn.Sequential(linear(matrix)), torch.randn(2, 5, 6)
    else:
        conv = nn.Conv1d(6, 4, 1).double()
        conv.weight.data = torch.from_numpy(matrix[:, :, None])
        model, points = nn.Sequential(conv), torch.randn(2, 6, 5)
    expected = np.repeat(svd(matrix), 5)
    for values in values_of(model, points.double()):
        np.testing.assert_allclose(values, expected, **CLOSE)


def test_mean_over_windows() -> None:
    # Each of the 4 outputs is a mean of 4 inputs of its own: J J' = I / 4.
    model = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), linear(np.eye(4)))
    values = values_of(model, torch.randn(2, 1, 4, 4, dtype=torch.float64))
    np.testing.assert_allclose(values, np.full((2, 4), 0.5), **CLOSE)


def test_second_call_of_a_module_is_a_layer_of_its_own() -> None:
    u, lam = orthogonal(6, 13), np.array([2.0, 1.5, 1.0, 0.5, 0.25, 0.1])
    model = Net(lambda m, x: m["a"](m["a"](x)), a=linear((u * lam) @ u.T))
    found = spectra_of(model, torch.zeros(1, 6, dtype=torch.float64))
    np.testing.assert_allclose(numbers(found["a"])[0], lam, **CLOSE)
    np.testing.assert_allclose(numbers(found["a#2"])[0], lam**2, **CLOSE)


def test_tokens_with_respect_to_their_embedding() -> None:
    # The mean over 4 tokens, then W: J = [W W W W] / 4, singular values sigma(W) / 2.
    matrix = np.random.default_rng(14).standard_normal((5, 6))
    model = Net(
        lambda m, x: m["head"](m["emb"](x).mean(1)), emb=nn.Embedding(9, 6), head=linear(matrix)
    ).double()
    spectrum = spectra_of(model, torch.randint(9, (3, 4)), wrt="emb")["head"]
    assert (spectrum.n_out, spectrum.n_in) == (5, 24)
    np.testing.assert_allclose(numbers(spectrum), np.tile(svd(matrix) / 2, (3, 1)), **CLOSE)


def test_with_respect_to_a_hidden_layer_other_paths_are_held() -> None:
    # b(tanh(a)) + c(x) with respect to a's output: c is a constant.
    torch.manual_seed(7)
    parts = {name: nn.Linear(5, 5) for name in "abc"}
    model = Net(
        lambda m, x: m["d"](m["b"](m["a"](x)) + m["c"](x)), **parts, d=nn.Linear(5, 4)
    ).double()
    found = spectra_of(model, torch.randn(2, 5, dtype=torch.float64), wrt="a")
    assert list(found) == ["a", "b", "d"]
    b, d = weight(model, "b").numpy(), weight(model, "d").numpy()
    np.testing.assert_allclose(numbers(found["a"]), np.ones((2, 5)), **CLOSE)
    np.testing.assert_allclose(numbers(found["b"])[0], svd(b), **CLOSE)
    np.testing.assert_allclose(numbers(found["d"])[0], svd(d @ b), **CLOSE)
