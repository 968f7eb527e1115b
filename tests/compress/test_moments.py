"""Sums over calibration data against loops, point by point."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from localrank_cli.compress.matrix import matrix_of, rows_in, rows_out
from localrank_cli.compress.moments import METRICS, Draw, Metric, collect, groups, moment_bytes
from localrank_cli.errors import SettingsError
from localrank_cli.layers.setting import analysis_setting
from tests.compress.cases import batches, convolutional, mlp, normal, run

ROUNDING = 1e-10  # float64, sums of some hundred products

CONVOLUTIONS = {
    "plain": partial(nn.Conv2d, 3, 4, 3),
    "strides": partial(nn.Conv2d, 3, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(2, 1)),
    "same": partial(nn.Conv2d, 3, 4, (4, 3), padding="same", dilation=(1, 2)),
    "valid": partial(nn.Conv2d, 3, 4, 2, padding="valid"),
    "circular": partial(nn.Conv2d, 3, 4, 3, padding=(2, 1), padding_mode="circular"),
    "reflect": partial(nn.Conv2d, 3, 4, 3, padding="same", padding_mode="reflect"),
}


class Repeating(Draw):
    """Draw gradients that do not depend on the generator's state, for batches of one point."""

    def __call__(self, metric: Metric, output: Tensor, generator: torch.Generator) -> Tensor:
        return gradient_at(metric, output)


def gradient_at(metric: Metric, output: Tensor) -> Tensor:
    return torch.cos(output.detach() * (3 if metric == "fisher" else 7))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # slower, says torch
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_the_matrix_times_the_patches_is_the_convolution(kind: str) -> None:
    module = CONVOLUTIONS[kind]().double()
    images = normal(2, 3, 9, 8)
    expected = rows_out(module, module(images))
    assert module.bias is not None
    found = rows_in(module, images) @ matrix_of(module).T + module.bias
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("network", ["linear", "tokens", "convolutional"])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_sums_are_those_of_a_loop_over_points(network: str, size: int) -> None:
    model = convolutional() if network == "convolutional" else mlp(5, 6, 4)
    points = {
        "linear": normal(8, 5) + 3,  # far from a mean of 0
        "tokens": normal(8, 3, 5),
        "convolutional": normal(8, 3, 7, 6),
    }[network]
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    }
    with analysis_setting(model, torch.float64):
        found = collect(model, layers, batches(points, size), Repeating(True), run, seed=0)
    for name, module in layers.items():
        inputs, gradients = naive(model, module, points)
        rows = torch.cat(inputs).flatten(0, 1)
        centred = rows - rows.mean(dim=0)
        moments = found[name]
        assert_close = partial(torch.testing.assert_close, rtol=ROUNDING, atol=ROUNDING)
        assert_close(moments.mean, rows.mean(dim=0))
        assert_close(moments.covariance, centred.T @ centred / len(rows))
        assert moments.positions == len(rows) / 8
        for metric in METRICS:
            flat = torch.cat(gradients[metric]).flatten(0, 1)
            assert_close(moments.gradient(metric), flat.T @ flat / len(rows))
        squares = [
            (g[0].T @ x[0]).square().sum(dim=1)
            for g, x in zip(gradients["fisher"], inputs, strict=True)
        ]
        assert_close(moments.row_fisher, torch.stack(squares).mean(dim=0))


def naive(
    model: nn.Module, module: nn.Module, points: Tensor
) -> tuple[list[Tensor], dict[Metric, list[Tensor]]]:
    """Inputs and gradients of a layer at each point, by a bias that is added to its output."""
    inputs: list[Tensor] = []
    gradients: dict[Metric, list[Tensor]] = {metric: [] for metric in METRICS}
    added: list[Tensor] = []

    def add(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        inputs.append(rows_in(module, args[0].detach().clone()))
        added.append(torch.zeros_like(output).requires_grad_())
        return output + added[-1]

    with module.register_forward_hook(add):
        for point in batches(points, 1):
            output = model(point)
            for metric in METRICS:
                (gradient,) = torch.autograd.grad(
                    output, added[-1], gradient_at(metric, output), retain_graph=True
                )
                gradients[metric].append(rows_out(module, gradient))
    return inputs, gradients


@pytest.mark.parametrize("form", ["time first", "flat"])
def test_positions_are_counted_wherever_the_points_are(form: str) -> None:
    class Moved(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            moved = x.transpose(0, 1) if form == "time first" else x.flatten(0, 1)
            found: Tensor = super().forward(moved)
            return found.transpose(0, 1) if form == "time first" else found.view(*x.shape[:2], -1)

    points, model = normal(8, 3, 5), mlp(5, 6, 4)
    draw = Draw(has_classes=True)
    first, second = (
        collect(one, {"2": one[2]}, batches(points, 4), draw, run, seed=0)["2"]
        for one in (model, Moved(*model))
    )
    assert first.positions == second.positions == 3
    torch.testing.assert_close(first.row_fisher, second.row_fisher, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(first.covariance, second.covariance, rtol=0, atol=ROUNDING)


def test_inputs_may_be_passed_by_keyword() -> None:
    class ByKeyword(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self[2](input=self[1](self[0](input=x)))
            return found

    points, model = normal(8, 5), mlp(5, 6, 4)
    draw = Draw(has_classes=True)
    first, second = (
        collect(one, {"2": one[2]}, batches(points, 4), draw, run, seed=0)["2"]
        for one in (model, ByKeyword(*model))
    )
    assert torch.equal(first.covariance, second.covariance)
    assert torch.equal(first.gradient("fisher"), second.gradient("fisher"))


def test_about_zero_there_is_no_mean() -> None:
    model, points = mlp(5, 4), normal(8, 5) + 3
    with analysis_setting(model, torch.float64):
        found = collect(model, {"0": model[0]}, [points], Draw(True), run, seed=0)["0"]
    other = found.about_zero()
    assert not other.mean.any()
    expected = points.T @ points / len(points)
    torch.testing.assert_close(other.covariance, expected, rtol=ROUNDING, atol=0)
    assert found.mean.all()


def test_drawn_gradients_have_the_metric_as_their_covariance() -> None:
    """Fisher's is diag(p) - p p^T, that of the logits the identity."""
    logits = normal(4)
    output = logits.expand(200_000, 4)
    generator = torch.Generator().manual_seed(0)
    p = logits.softmax(dim=0)
    expected = {"fisher": p.diag() - p.outer(p), "logit": torch.eye(4, dtype=torch.float64)}
    for metric in METRICS:
        drawn = Draw(has_classes=True)(metric, output, generator)
        # Entries have a standard error under sqrt(2 / 200,000) = 0.0032; five of them.
        torch.testing.assert_close(
            drawn.T @ drawn / len(drawn), expected[metric], rtol=0, atol=0.016
        )


def test_groups_give_what_all_layers_together_give() -> None:
    model, points = mlp(5, 6, 7, 4), normal(10, 5)
    layers = {str(index): model[index] for index in (0, 2, 4)}
    largest = max(map(moment_bytes, layers.values()))
    parts = list(groups(layers, largest))
    assert [list(part) for part in parts] == [["0"], ["2"], ["4"]]
    draw = Draw(has_classes=True)
    with analysis_setting(model, torch.float64):
        together = collect(model, layers, batches(points, 4), draw, run, seed=3)
        apart = [collect(model, part, batches(points, 4), draw, run, seed=3) for part in parts]
    for name, moments in ((name, part[name]) for part in apart for name in part):
        for metric in METRICS:
            torch.testing.assert_close(
                moments.gradient(metric), together[name].gradient(metric), rtol=1e-12, atol=0
            )


def test_a_layer_that_does_not_fit_alone_is_named() -> None:
    layers = {"wide": nn.Linear(100, 10)}
    with pytest.raises(SettingsError, match=r"'wide': its covariances need") as caught:
        list(groups(layers, 1000))
    assert "--keep" in caught.value.advice
