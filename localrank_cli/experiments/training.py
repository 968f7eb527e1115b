"""Training of small networks, with checkpoints.

`torch.manual_seed` sets the initial weights, and a seeded CPU generator the order of the batches:
the same torch on the same processor gives the same weights again. Elsewhere sums are rounded
differently, training amplifies that, and figures agree about as well as those of two seeds.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

MOMENTUM = 0.9
LANDMARK = 0.99  # training accuracy; the late phase starts at the first checkpoint to reach it
_WATCH_EVERY = 10  # steps between two checks of the training accuracy until then


@dataclass(frozen=True)
class Recipe:
    """The training of one ReLU network, and the steps at which it is saved."""

    widths: tuple[int, ...]  # inputs, hidden layers, outputs
    learning_rate: float
    weight_decay: float  # on weights and biases, as torch.optim.SGD applies it
    batch: int
    steps: int
    seed: int
    save_at: tuple[int, ...]  # steps; with labels, the landmark is saved too

    def until(self, step: int) -> "Recipe":
        """Return the recipe of a training that ends at a step, which is saved."""
        kept = tuple(one for one in self.save_at if one < step)
        return replace(self, steps=step, save_at=(*kept, step))


@dataclass(frozen=True)
class Task:
    """The data, loss and score of a training."""

    train: tuple[Tensor, Tensor]  # inputs (N, n_in) float32; labels (N,) or targets (N, n_out)
    test: tuple[Tensor, Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]  # of outputs and labels or targets
    score: Callable[[Tensor, Tensor], Tensor]
    score_name: str  # accuracy or error

    @property
    def has_labels(self) -> bool:
        """Whether the task is classification."""
        return not self.train[1].is_floating_point()


def mlp(widths: tuple[int, ...], activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Create an MLP with torch's default initial weights, its Linear layers named 0, 2, 4, ..."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1])


def batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield shuffled indices of shape (size,) forever, only full batches of each epoch of n."""
    while True:
        yield from torch.randperm(n, generator=generator)[: n // size * size].view(-1, size)


def training(recipe: Recipe, task: Task) -> Iterator[tuple[int, nn.Sequential]]:
    """Train by SGD with momentum at a constant learning rate.

    Yields:
        The step and the live network, at `recipe.save_at` and, with labels, at the landmark.
    """
    torch.manual_seed(recipe.seed)
    net = mlp(recipe.widths)
    optimizer = torch.optim.SGD(
        net.parameters(), recipe.learning_rate, MOMENTUM, weight_decay=recipe.weight_decay
    )
    x, y = task.train
    order = batches(len(x), recipe.batch, torch.Generator().manual_seed(recipe.seed))
    watching = task.has_labels
    for step in range(recipe.steps + 1):
        reached = False
        if watching and step % _WATCH_EVERY == 0:
            with torch.no_grad():
                reached = task.score(net(x), y).item() >= LANDMARK
            watching = not reached
        if reached or step in recipe.save_at:
            yield step, net
        batch = next(order)
        optimizer.zero_grad()
        torch.autograd.backward(task.loss(net(x[batch]), y[batch]))
        optimizer.step()


@torch.no_grad()
def figures(net: nn.Module, task: Task) -> tuple[float, float, float]:
    """Return the training loss, the training score and the test score, over all data."""
    (x, y), (test_x, test_y) = task.train, task.test
    out = net(x)
    loss, score, test = task.loss(out, y), task.score(out, y), task.score(net(test_x), test_y)
    return loss.item(), score.item(), test.item()
