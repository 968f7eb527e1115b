"""Each method's ranks and losses against numpy: backpropagation, factors and division by hand."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch

from localrank_cli.compress.matrix import matrix_of
from localrank_cli.compress.methods import METHODS
from localrank_cli.compress.search import Compressor, split
from tests.compress.cases import batches, mlp, normal
from tests.compress.test_search import compressor

N_POINTS = 200
SIZE = 32  # of a batch in `compressor`
DAMPING = 1e-4
KEYS = ("0", "2", "4")
FISHER = ("fisher", "fisher-mean")


class ByHand:
    """An MLP of three layers with ReLU, the data of `compressor`, and its calibration."""

    def __init__(self, model: torch.nn.Sequential) -> None:
        self.weights = [matrix_of(model[int(key)]).numpy().copy() for key in KEYS]
        self.biases = [model.state_dict()[f"{key}.bias"].numpy().copy() for key in KEYS]
        points = normal(N_POINTS, 12, seed=5)
        noise = normal(N_POINTS, 10, seed=6).numpy()
        self.points = points.numpy()
        self.labels = (self.run(self.points)[-1] + noise).argmax(axis=1)
        self.slices = split(N_POINTS, seed=0)
        drawn = self.drawn(points)
        inputs, gradients = self.backward(self.points[self.slices.calibrate.numpy()], drawn)
        self.means = [one.mean(axis=0) for one in inputs]
        self.covariances = [np.cov(one.T, bias=True) for one in inputs]
        self.gradients = [one.T @ one / len(one) for one in gradients]
        # The gradient of a point's weight is the outer product of its gradient and its input.
        self.row_fisher = [
            np.mean([(np.outer(g, x) ** 2).sum(axis=1) for g, x in zip(gs, xs, strict=True)], 0)
            for gs, xs in zip(gradients, inputs, strict=True)
        ]

    def run(
        self,
        points: np.ndarray,
        weights: Sequence[np.ndarray] = (),
        biases: Sequence[np.ndarray] = (),
    ) -> list[np.ndarray]:
        """Return what each layer returns."""
        outputs, hidden = [], points
        for weight, bias in zip(weights or self.weights, biases or self.biases, strict=True):
            outputs.append(hidden @ weight.T + bias)
            hidden = np.maximum(outputs[-1], 0)
        return outputs

    def drawn(self, points: torch.Tensor) -> np.ndarray:
        """Return labels from the network's softmax, drawn as the documentation says: by --seed."""
        generator, labels = torch.Generator().manual_seed(0), []
        for batch in batches(points[self.slices.calibrate], SIZE):
            logits = torch.from_numpy(self.run(batch.numpy())[-1])
            labels.append(torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0])
            # The other metric's directions, which come from the same generator.
            torch.randn(logits.shape, generator=generator, dtype=torch.float64)
        return torch.cat(labels).numpy()

    def backward(
        self, points: np.ndarray, labels: np.ndarray
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return each layer's inputs, and the gradients of log p(label) by what it returns."""
        outputs = self.run(points)
        inputs = [points, *(np.maximum(one, 0) for one in outputs[:-1])]
        shares = np.exp(outputs[-1]) / np.exp(outputs[-1]).sum(axis=1, keepdims=True)
        gradient = np.eye(10)[labels] - shares
        gradients = [gradient]
        for weight, output in zip(self.weights[:0:-1], outputs[-2::-1], strict=True):
            gradient = (gradient @ weight) * (output > 0)
            gradients.insert(0, gradient)
        return inputs, gradients

    def roots(self, name: str, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a root of each side's metric, from a Cholesky factorization."""
        n_out, n_in = self.weights[layer].shape
        left, right = np.eye(n_out), np.eye(n_in)
        if name in {"svd-llm", "inputs", *FISHER}:
            right = np.linalg.cholesky(damped(self.covariances[layer]))
        if name == "fwsvd":
            left = np.sqrt(damped(np.diag(self.row_fisher[layer])))
        if name in FISHER:
            left = np.linalg.cholesky(damped(self.gradients[layer])).T
        return left, right

    def errors(self, name: str, layer: int) -> np.ndarray:
        """Return the weighted squared error of each rank from 0."""
        left, right = self.roots(name, layer)
        values = np.linalg.svd(left @ self.weights[layer] @ right, compute_uv=False)
        return np.array([np.sum(values[rank:] ** 2) for rank in range(len(values) + 1)])

    def ranks(self, name: str, budget: int) -> list[int | None]:
        if name in {"uniform", "svd-llm"}:
            ratio = (budget - 120) / (168 + 168)  # the last layer stays dense
            return [int(ratio * 168 / 26), int(ratio * 168 / 26), None]
        return divided([self.errors(name, layer) for layer in range(3)], self.weights, budget)

    def loss(self, name: str, ranks: Sequence[int | None], chosen: np.ndarray) -> float:
        """Return the mean cross-entropy on some points."""
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
        logits = self.run(self.points[chosen], weights, biases)[-1]
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return float(-logs[np.arange(len(chosen)), self.labels[chosen]].mean())


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


@pytest.fixture(scope="module")
def pair() -> tuple[Compressor, ByHand]:
    model = mlp(12, 14, 12, 10)
    return compressor(model, N_POINTS), ByHand(model)


@pytest.mark.parametrize("name", [name for name in METHODS if "logit" not in name])
@pytest.mark.parametrize("budget", [230, 320, 410])
def test_ranks_and_losses_are_those_by_hand(
    pair: tuple[Compressor, ByHand], name: str, budget: int
) -> None:
    found, hand = pair
    outcome = found.at(name, budget)
    assert outcome is not None
    ranks = hand.ranks(name, budget)
    assert list(outcome.ranks.values()) == ranks
    # Float64 through roots whose condition numbers are up to 1e2.
    close = partial(pytest.approx, rel=1e-9)
    pick, report = (part.numpy() for part in (hand.slices.pick, hand.slices.report))
    loss = float(outcome.scores.loss.mean())
    assert loss == close(hand.loss(name, ranks, pick))
    reported = float(found.report(found.build(name, outcome.ranks)).loss.mean())
    assert reported == close(hand.loss(name, ranks, report))
    if name in {"energy", "fwsvd", "inputs", *FISHER}:
        error = sum(
            hand.errors(name, layer)[rank] for layer, rank in enumerate(ranks) if rank is not None
        )
        assert outcome.predicted == close(error)
