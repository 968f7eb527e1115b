"""Each method's ranks and losses against numpy: backpropagation, factors and division by hand."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from localrank_cli.compress.eligible import find_layers
from localrank_cli.compress.matrix import matrix_of
from localrank_cli.compress.methods import METHODS
from localrank_cli.compress.score import Batch
from localrank_cli.compress.search import Compressor, Data, split
from tests.compress.cases import batches, mlp, normal, run
from tests.compress.test_search import MEMORY, compressor

N_POINTS = 200
SIZE = 32  # of a batch in `compressor`
DAMPING = 1e-4
TWO_SIDED = ("fisher", "logit", "fisher-mean", "logit-mean")


def cost_of_rank(weight: np.ndarray) -> int:
    """Return the weights of a rank."""
    return sum(weight.shape)


class ByHand:
    """Three layers, the data of a `Compressor`, and its calibration."""

    biases: list[np.ndarray]

    def __init__(self, model: torch.nn.Sequential, points: torch.Tensor) -> None:
        layers = [one for one in model if isinstance(one, nn.Linear | nn.Conv2d)]
        self.weights = [matrix_of(one).numpy().copy() for one in layers]
        self.biases = [one.bias.detach().numpy().copy() for one in layers if one.bias is not None]
        self.points = points.numpy()
        noise = normal(len(points), 10, seed=6).numpy()
        self.labels = (self.run(self.points)[-1] + noise).argmax(axis=1)
        self.slices = split(len(points), seed=0)
        starts = dict(zip(("fisher", "logit"), self.drawn(points), strict=True))
        calibrate = self.points[self.slices.calibrate.numpy()]
        inputs = self.rows_in(calibrate)
        flat = [one.reshape(-1, one.shape[-1]) for one in inputs]
        self.means = [one.mean(axis=0) for one in flat]
        self.covariances = [np.cov(one.T, bias=True) for one in flat]
        self.positions = [one.shape[1] for one in inputs]
        backward = {metric: self.backward(calibrate, start) for metric, start in starts.items()}
        self.gradients = {
            metric: [
                np.einsum("npi,npj->ij", one, one) / (one.size / one.shape[-1]) for one in all_
            ]
            for metric, all_ in backward.items()
        }
        # The gradient of a point's weight is a sum of outer products over positions.
        self.row_fisher = [
            np.mean([((g.T @ x) ** 2).sum(axis=1) for g, x in zip(gs, xs, strict=True)], 0)
            for gs, xs in zip(backward["fisher"], inputs, strict=True)
        ]

    def run(
        self,
        points: np.ndarray,
        weights: Sequence[np.ndarray] = (),
        biases: Sequence[np.ndarray] = (),
    ) -> list[np.ndarray]:
        """Return what each layer returns."""
        outputs, hidden = [], points
        activate = self.activation(weights, biases)
        for weight, bias in zip(weights or self.weights, biases or self.biases, strict=True):
            outputs.append(hidden @ weight.T + bias)
            hidden = activate(len(outputs) - 1, outputs[-1])
        return outputs

    def activation(
        self, weights: Sequence[np.ndarray], biases: Sequence[np.ndarray]
    ) -> Callable[[int, np.ndarray], np.ndarray]:
        """Return what stands between layers of these weights, of a layer's number and outputs."""
        return lambda layer, outputs: np.maximum(outputs, 0)

    def rows_in(self, points: np.ndarray) -> list[np.ndarray]:
        """Return each layer's inputs, (points, positions, in)."""
        outputs = self.run(points)
        return [one[:, None] for one in (points, *(np.maximum(one, 0) for one in outputs[:-1]))]

    def drawn(self, points: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return each metric's gradients of the logits, drawn as the documentation says: by --seed.

        Labels come from the network's softmax, and directions from the same generator.
        """
        generator = torch.Generator().manual_seed(0)
        labelled, directions = [], []
        for batch in batches(points[self.slices.calibrate], SIZE):
            logits = torch.from_numpy(self.run(batch.numpy())[-1])
            shares = logits.softmax(dim=1)
            labels = torch.multinomial(shares, 1, generator=generator)[:, 0]
            labelled.append(np.eye(10)[labels.numpy()] - shares.numpy())
            directions.append(torch.randn(logits.shape, generator=generator, dtype=torch.float64))
        return np.concatenate(labelled), torch.cat(directions).numpy()

    def backward(self, points: np.ndarray, start: np.ndarray) -> list[np.ndarray]:
        """Return the gradients by what each layer returns, (points, positions, out)."""
        outputs, gradient = self.run(points), start
        gradients = [gradient]
        for weight, output in zip(self.weights[:0:-1], outputs[-2::-1], strict=True):
            gradient = (gradient @ weight) * (output > 0)
            gradients.insert(0, gradient)
        return [one[:, None] for one in gradients]

    def roots(self, name: str, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the symmetric root of each side's metric."""
        n_out, n_in = self.weights[layer].shape
        left, right = np.eye(n_out), np.eye(n_in)
        if name in {"svd-llm", "inputs", *TWO_SIDED}:
            right = root_of(damped(self.covariances[layer]))
        if name == "fwsvd":
            left = np.sqrt(damped(np.diag(self.row_fisher[layer])))
        if name in TWO_SIDED:
            metric = name.removesuffix("-mean")
            left = root_of(damped(self.gradients[metric][layer]))
        return left, right

    def errors(self, name: str, layer: int) -> np.ndarray:
        """Return the weighted squared error of each rank from 0."""
        left, right = self.roots(name, layer)
        values = np.linalg.svd(left @ self.weights[layer] @ right, compute_uv=False)
        scale = self.positions[layer] if name in {"fisher", "logit"} else 1
        return scale * np.array([np.sum(values[rank:] ** 2) for rank in range(len(values) + 1)])

    def ranks(self, name: str, budget: int) -> list[int | None]:
        if name in {"uniform", "svd-llm"}:
            *others, last = self.weights  # the last layer stays dense
            sizes, costs = (np.array([f(one) for one in others]) for f in (np.size, cost_of_rank))
            exact = (budget - last.size) * sizes / sizes.sum() / costs
            found = exact.astype(int)
            for layer in np.argsort(found - exact):  # the largest remainders are rounded up
                found[layer] += found @ costs + costs[layer] <= budget - last.size
            return [*found.tolist(), None]
        return divided([self.errors(name, layer) for layer in range(3)], self.weights, budget)

    def factored(
        self, name: str, ranks: Sequence[int | None]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return the matrices of some ranks, and biases that hold the mean of what they lose."""
        weights, biases = [], []
        for layer, rank in enumerate(ranks):
            weight = self.weights[layer]
            if rank is not None:
                left, right = self.roots(name, layer)
                u, s, v = np.linalg.svd(left @ weight @ right, full_matrices=False)
                truncated = (u[:, :rank] * s[:rank]) @ v[:rank]
                weight = np.linalg.inv(left) @ truncated @ np.linalg.inv(right)
            weights.append(weight)
            biases.append(self.biases[layer] + (self.weights[layer] - weight) @ self.means[layer])
        return weights, biases

    def scores(
        self, name: str, ranks: Sequence[int | None], chosen: np.ndarray
    ) -> tuple[float, float]:
        """Return the mean cross-entropy on some points, and KL(original || network)."""
        weights, biases = self.factored(name, ranks)
        logs, old = (
            logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            for logits in (
                self.run(self.points[chosen], weights, biases)[-1],
                self.run(self.points[chosen])[-1],
            )
        )
        loss = -logs[np.arange(len(chosen)), self.labels[chosen]].mean()
        return float(loss), float((np.exp(old) * (old - logs)).sum(axis=1).mean())


class Images(ByHand):
    """Two convolutions with ReLU, a mean over places, and a linear layer."""

    def run(
        self,
        points: np.ndarray,
        weights: Sequence[np.ndarray] = (),
        biases: Sequence[np.ndarray] = (),
    ) -> list[np.ndarray]:
        first, second, last = weights or self.weights
        one, two, three = biases or self.biases
        hidden = patches(points, 3) @ first.T + one
        deep = patches(images(np.maximum(hidden, 0)), 2) @ second.T + two
        return [hidden, deep, np.maximum(deep, 0).mean(axis=1) @ last.T + three]

    def rows_in(self, points: np.ndarray) -> list[np.ndarray]:
        hidden, deep, _ = self.run(points)
        pooled = np.maximum(deep, 0).mean(axis=1)
        return [patches(points, 3), patches(images(np.maximum(hidden, 0)), 2), pooled[:, None]]

    def backward(self, points: np.ndarray, start: np.ndarray) -> list[np.ndarray]:
        hidden, deep, _ = self.run(points)
        of_deep = (start @ self.weights[2])[:, None] / deep.shape[1] * (deep > 0)
        of_patches = (of_deep @ self.weights[1]).reshape(len(points), 3, 3, 8, 2, 2)
        found = np.zeros((len(points), 8, 4, 4))
        for row, column, i, j in np.ndindex(3, 3, 2, 2):
            found[:, :, row + i, column + j] += of_patches[:, row, column, :, i, j]
        of_hidden = found.reshape(len(points), 8, -1).transpose(0, 2, 1) * (hidden > 0)
        return [of_hidden, of_deep, start[:, None]]


class Normed(ByHand):
    """Three layers, a BatchNorm after each of the first two, and ReLU."""

    def __init__(self, model: nn.Sequential, points: torch.Tensor) -> None:
        norms = [one for one in model if isinstance(one, nn.BatchNorm1d)]
        self.scales, self.shifts = (
            [getattr(one, name).detach().numpy().copy() for one in norms]
            for name in ("weight", "bias")
        )
        # Found by the data that trained the network, on which nothing here depends.
        self.statistics = [
            (
                one.get_buffer("running_mean").numpy().copy(),
                one.get_buffer("running_var").numpy().copy(),
            )
            for one in norms
        ]
        super().__init__(model, points)

    def activation(
        self, weights: Sequence[np.ndarray], biases: Sequence[np.ndarray]
    ) -> Callable[[int, np.ndarray], np.ndarray]:
        """Return the normalizations and ReLUs; of other weights, with their own statistics."""
        statistics = self.estimated(weights, biases) if weights else self.statistics

        def activate(layer: int, outputs: np.ndarray) -> np.ndarray:
            if layer == len(statistics):  # nothing follows the last layer
                return outputs
            return np.maximum(self.normed(layer, outputs, *statistics[layer]), 0)

        return activate

    def normed(
        self, layer: int, outputs: np.ndarray, mean: np.ndarray, variance: np.ndarray
    ) -> np.ndarray:
        """Return (x - mean) / sqrt(variance + epsilon) of each unit, scaled and shifted."""
        found: np.ndarray = (outputs - mean) / np.sqrt(variance + 1e-5)
        return found * self.scales[layer] + self.shifts[layer]

    def estimated(
        self, weights: Sequence[np.ndarray], biases: Sequence[np.ndarray]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return means over batches that calibrate of their means and unbiased variances.

        Each batch runs as in training, by its own mean and variance. The last one of 100 points, of
        4, is too small to count as much as those of 32.
        """
        calibrate = self.points[self.slices.calibrate.numpy()]
        found = []
        for batch in (calibrate[start : start + SIZE] for start in (0, 32, 64)):
            hidden, of_batch = batch, []
            for layer in (0, 1):
                outputs = hidden @ weights[layer].T + biases[layer]
                mean, variance = outputs.mean(axis=0), outputs.var(axis=0)
                of_batch.append((mean, variance * SIZE / (SIZE - 1)))
                hidden = np.maximum(self.normed(layer, outputs, mean, variance), 0)
            found.append(of_batch)
        return [
            (
                np.mean([one[layer][0] for one in found], 0),
                np.mean([one[layer][1] for one in found], 0),
            )
            for layer in (0, 1)
        ]

    def rows_in(self, points: np.ndarray) -> list[np.ndarray]:
        """Return each layer's inputs, (points, positions, in)."""
        outputs = self.run(points)
        hidden = [
            np.maximum(self.normed(layer, outputs[layer], *self.statistics[layer]), 0)
            for layer in (0, 1)
        ]
        return [one[:, None] for one in (points, *hidden)]

    def backward(self, points: np.ndarray, start: np.ndarray) -> list[np.ndarray]:
        """Return the gradients by what each layer returns, (points, positions, out)."""
        outputs, gradients = self.run(points), [start]
        for layer in (1, 0):
            mean, variance = self.statistics[layer]
            is_on = self.normed(layer, outputs[layer], mean, variance) > 0
            slope = self.scales[layer] / np.sqrt(variance + 1e-5)
            gradients.insert(0, gradients[0] @ self.weights[layer + 1] * is_on * slope)
        return [one[:, None] for one in gradients]


def patches(points: np.ndarray, size: int) -> np.ndarray:
    """Return (points, positions, channels * size * size) of images without padding."""
    rows, columns = (length - size + 1 for length in points.shape[2:])
    each = [
        points[:, :, row : row + size, column : column + size].reshape(len(points), -1)
        for row in range(rows)
        for column in range(columns)
    ]
    return np.stack(each, axis=1)


def images(rows: np.ndarray) -> np.ndarray:
    """Return the outputs of a convolution at 4 x 4 places as images."""
    return rows.transpose(0, 2, 1).reshape(len(rows), -1, 4, 4)


def root_of(metric: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(metric)
    found: np.ndarray = (vectors * np.sqrt(values)) @ vectors.T
    return found


def damped(metric: np.ndarray) -> np.ndarray:
    found: np.ndarray = metric + DAMPING * np.trace(metric) / len(metric) * np.eye(len(metric))
    return found


def divided(
    errors: Sequence[np.ndarray], weights: Sequence[np.ndarray], budget: int
) -> list[int | None]:
    """Walk down the convex hull, the most error per weight first, until a step does not fit.

    What is left is spent on the best single moves.
    """
    costs, losses = [], []
    for error, (n_out, n_in) in zip(errors, (one.shape for one in weights), strict=True):
        most = (n_out * n_in - 1) // (n_out + n_in)
        costs.append([*((n_out + n_in) * rank for rank in range(1, most + 1)), n_out * n_in])
        losses.append([*error[1 : most + 1], 0.0])

    def moves(states: Sequence[int]) -> list[tuple[float, int, int]]:
        return [
            ((losses[k][s] - losses[k][t]) / (costs[k][t] - costs[k][s]), k, t)
            for k, s in enumerate(states)
            for t in range(s + 1, len(costs[k]))
        ]

    def spent(states: Sequence[int]) -> int:
        return sum(cost[state] for cost, state in zip(costs, states, strict=True))

    def moved(states: list[int], layer: int, state: int) -> list[int]:
        return [state if k == layer else one for k, one in enumerate(states)]

    states = [0, 0, 0]
    while found := moves(states):
        _, layer, state = max(found)
        if spent(moved(states, layer, state)) > budget:
            break
        states = moved(states, layer, state)
    while True:
        fitting = [one for one in moves(states) if spent(moved(states, *one[1:])) <= budget]
        if not fitting:
            break
        states = moved(states, *max(fitting)[1:])
    return [
        None if state == len(cost) - 1 else state + 1
        for state, cost in zip(states, costs, strict=True)
    ]


Pair = tuple[Compressor, ByHand]


def perceptron() -> Pair:
    model = mlp(12, 14, 12, 10)
    return compressor(model, N_POINTS), ByHand(model, normal(N_POINTS, 12, seed=5))


def normed() -> Pair:
    first, relu, second, _, last = mlp(12, 14, 12, 10)
    norms = [nn.BatchNorm1d(14), nn.BatchNorm1d(12)]
    for seed, norm in enumerate(norms):
        norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data = (
            normal(norm.num_features, seed=10 * seed + index) * 0.3 + centre
            for index, centre in enumerate((0.0, 1.5, 1.0, 0.0))
        )
        norm.num_batches_tracked = torch.tensor(7)  # as after training
    model = nn.Sequential(first, norms[0], relu, second, norms[1], nn.ReLU(), last)
    model.double().eval().requires_grad_(False)
    return compressor(model, N_POINTS), Normed(model, normal(N_POINTS, 12, seed=5))


def convolutions() -> Pair:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 10)),
    )
    model.double().eval().requires_grad_(False)
    hand = Images(model, normal(N_POINTS, 2, 6, 6, seed=5))
    points, labels, slices = (
        torch.from_numpy(hand.points),
        torch.from_numpy(hand.labels),
        hand.slices,
    )

    def labelled(part: torch.Tensor) -> list[Batch]:
        return list(zip(batches(points[part], SIZE), batches(labels[part], SIZE), strict=True))

    data = Data(
        lambda: batches(points[slices.calibrate], SIZE),
        lambda: labelled(slices.pick),
        lambda: labelled(slices.report),
    )
    found = Compressor(model, find_layers(model, points[:4], run), data, run, "classes")
    found.calibrate(seed=0, memory=MEMORY)
    return found, hand


@pytest.fixture(scope="module", params=[perceptron, convolutions, normed])
def pair(request: pytest.FixtureRequest) -> Pair:
    build: Callable[[], Pair] = request.param
    return build()


@pytest.mark.cover(2)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_ranks_losses_and_divergences_are_those_by_hand(
    pair: Pair, name: str, share: float
) -> None:
    found, hand = pair
    budget = int(share * found.total)
    outcome = found.at(name, budget)
    assert outcome is not None
    ranks = hand.ranks(name, budget)
    assert list(outcome.ranks.values()) == ranks
    # Float64 through roots whose condition numbers are up to 1e2.
    close = partial(pytest.approx, rel=1e-9)
    pick, report = (part.numpy() for part in (hand.slices.pick, hand.slices.report))
    reported = found.report(found.build(name, outcome.ranks))
    for scores, chosen in ((outcome.scores, pick), (reported, report)):
        loss, divergence = hand.scores(name, ranks, chosen)
        assert float(scores.loss.mean()) == close(loss)
        # A small difference of logarithms that are up to 10.
        assert float(scores.divergence.mean()) == pytest.approx(divergence, rel=1e-8)
    if METHODS[name].is_global:
        error = sum(
            hand.errors(name, layer)[rank] for layer, rank in enumerate(ranks) if rank is not None
        )
        assert outcome.predicted == close(error)


def test_statistics_of_batch_norm_are_those_of_the_factored_network() -> None:
    found, hand = normed()
    assert isinstance(hand, Normed)
    outcome = found.at("fisher", found.total // 2)
    assert outcome is not None
    built = found.build("fisher", outcome.ranks)
    expected = hand.estimated(*hand.factored("fisher", list(outcome.ranks.values())))
    for name, (mean, variance), (old, _) in zip("14", expected, hand.statistics, strict=True):
        estimated = dict(built.get_submodule(name).named_buffers())
        # Float64 through roots whose condition numbers are up to 1e2.
        np.testing.assert_allclose(estimated["running_mean"], mean, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(estimated["running_var"], variance, rtol=1e-9)
        # The original keeps its own.
        original = found.model.get_submodule(name).get_buffer("running_mean")
        np.testing.assert_array_equal(original, old)
