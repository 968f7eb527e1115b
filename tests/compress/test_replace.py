"""Networks with factors in them: outputs, means, and statistics of BatchNorm."""

import pytest
import torch
from torch import Tensor, nn

from localrank_cli.compress.allocation import least
from localrank_cli.compress.matrix import matrix_of, rows_in, rows_out, shape_of
from localrank_cli.compress.methods import BASELINES, METHODS, Factored, factor_all
from localrank_cli.compress.moments import Draw, Moments, collect
from localrank_cli.compress.replace import Replacement, estimate_norms, replace_layers
from localrank_cli.layers.factored import can_factor
from localrank_cli.layers.setting import analysis_setting
from tests.compress.cases import batches, convolutional, low_rank, mlp, normal, run

ROUNDING = 1e-9  # float64, through whitening whose roots have condition numbers up to 1e2


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if can_factor(module)}


def factor_by(name: str, layers: dict[str, nn.Module], moments: dict[str, Moments]) -> Factored:
    return factor_all(layers, dict(moments), lambda _: None)[name]


def moments_of(model: nn.Module, points: Tensor) -> dict[str, Moments]:
    with analysis_setting(model, torch.float64):
        return collect(model, layers_of(model), batches(points, 16), Draw(True), run, seed=0)


@pytest.mark.parametrize("name", METHODS)
def test_a_planted_network_comes_back_at_its_own_ranks(name: str) -> None:
    model = mlp(12, 14, 12, 10)
    with torch.no_grad():
        for index, rank in ((0, 2), (2, 3), (4, 2)):
            weight = matrix_of(model[index])
            n_out, n_in = weight.shape
            weight.copy_(low_rank(n_out, n_in, rank, seed=index) / 8)
    points = normal(64, 12)
    factored = factor_by(name, layers_of(model), moments_of(model, points))
    ranks = {"0": 2, "2": 3, "4": 2}
    found = replace_layers(model, factored.replacements(ranks))
    torch.testing.assert_close(found(points), model(points), rtol=0, atol=ROUNDING)
    if factored.method.is_global:
        budget = sum(shape_of(model[int(key)]).cost(rank) for key, rank in ranks.items())
        assert factored.ranks(budget) == ranks


def test_factors_of_convolutions_are_those_of_their_matrices() -> None:
    model, points = convolutional(), normal(20, 3, 7, 6)
    layers = layers_of(model)
    factored = factor_by("fisher", layers, moments_of(model, points))
    new = factored.replacements(dict.fromkeys(layers, 2))
    found = replace_layers(model, new)
    for name, module in layers.items():
        inputs = {"first": points, "second": normal(4, 8, 5, 6), "head": normal(4, 6)}[name]
        expected = rows_in(module, inputs) @ (new[name].left @ new[name].right).T
        expected += new[name].bias(module)
        layer = found.get_submodule(name)
        torch.testing.assert_close(rows_out(module, layer(inputs)), expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("has_bias", [True, False])
def test_the_mean_output_of_a_layer_stays(has_bias: bool) -> None:
    module = nn.Linear(6, 5, bias=has_bias).double()
    inputs = normal(40, 6) + torch.arange(6.0)
    new = Replacement(normal(5, 2, seed=1), normal(2, 6, seed=2), inputs.mean(dim=0))
    found = replace_layers(nn.Sequential(module), {"0": new})
    before, after = module(inputs).mean(dim=0), found(inputs).mean(dim=0)
    torch.testing.assert_close(after, before, rtol=0, atol=ROUNDING)


def test_the_original_is_left_as_it_was() -> None:
    model = convolutional()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    new = Replacement(normal(5, 2), normal(2, 6), torch.zeros(6, dtype=torch.float64))
    found = replace_layers(model, {"head": new})
    estimate_norms(found, batches(normal(8, 3, 7, 6), 4), run)
    assert not any(module.training for module in found.modules())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("more", [0, 1])
def test_norms_hold_the_mean_of_their_batches(more: int) -> None:
    """But for a last batch that is much smaller."""
    model, points = convolutional(), normal(12, 3, 7, 6)
    rest = normal(more, 3, 7, 6)
    estimate_norms(model, batches(torch.cat([points, rest]), 4), run)
    with torch.no_grad():
        parts = [model.first(part).transpose(0, 1).flatten(1) for part in batches(points, 4)]
    mean = torch.stack([part.mean(dim=1) for part in parts]).mean(dim=0)
    variance = torch.stack([part.var(dim=1) for part in parts]).mean(dim=0)
    torch.testing.assert_close(model.norm.running_mean, mean, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(model.norm.running_var, variance, rtol=0, atol=ROUNDING)
    assert model.norm.momentum == 0.1


def test_norms_that_do_not_run_keep_their_statistics() -> None:
    """As those of a head that only training runs."""
    model, points = convolutional(), normal(12, 3, 7, 6)
    model.unused = nn.BatchNorm2d(4).double()
    model.unused.get_buffer("running_mean").fill_(2.0)
    estimate_norms(model, batches(points, 4), run)
    assert model.unused.get_buffer("running_mean").tolist() == [2.0] * 4
    assert int(model.norm.get_buffer("num_batches_tracked")) == 3
    assert not model.norm._forward_hooks


def plain(name: str, module: nn.Module, moments: Moments, rank: int) -> Tensor:
    """A baseline as its paper writes it down."""
    matrix = matrix_of(module)
    if name == "svd-llm":  # truncation of W S, S the Cholesky factor of the covariance
        damping = 1e-4 * moments.covariance.trace() / matrix.shape[1]
        root = torch.linalg.cholesky(
            moments.covariance + damping * torch.eye(matrix.shape[1], dtype=torch.float64)
        )
        u, s, v = torch.linalg.svd(matrix @ root, full_matrices=False)
        truncated: Tensor = (u[:, :rank] * s[:rank]) @ v[:rank] @ torch.linalg.inv(root)
        return truncated
    weights = torch.ones(matrix.shape[0], dtype=torch.float64)
    if name == "fwsvd":  # the SVD of diag(sqrt(I)) W
        fisher = moments.row_fisher
        weights = (fisher + 1e-4 * fisher.mean()).sqrt()
    u, s, v = torch.linalg.svd(weights[:, None] * matrix, full_matrices=False)
    weighted: Tensor = (u[:, :rank] * s[:rank]) @ v[:rank]
    return weighted / weights[:, None]


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("network", ["mlp", "convolutional"])
def test_baselines_are_what_their_papers_write(name: str, network: str) -> None:
    model = mlp(12, 14, 12, 10) if network == "mlp" else convolutional()
    points = normal(64, 12) if network == "mlp" else normal(20, 3, 7, 6)
    layers, moments = layers_of(model), moments_of(model, points)
    factored = factor_by(name, layers, moments)
    new = factored.replacements(dict.fromkeys(layers, 2))
    for key, module in layers.items():
        found = new[key].left @ new[key].right
        expected = plain(name, module, moments[key], 2)
        torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_to_the_budget(name: str) -> None:
    model = mlp(12, 14, 12, 10)
    layers = layers_of(model)
    factored = factor_by(name, layers, moments_of(model, normal(64, 12)))
    shapes = [shape_of(module) for module in layers.values()]
    total = sum(shape.weights for shape in shapes)
    for budget in (least(shapes), int(0.6 * total), total):
        ranks = factored.ranks(budget)
        if ranks is None:
            assert not factored.method.is_global
            continue
        spent = sum(shape.cost(rank) for shape, rank in zip(shapes, ranks.values(), strict=True))
        assert spent <= budget
