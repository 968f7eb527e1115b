"""The published training of Patel & Shwartz-Ziv on digits, for any number of its steps.

Their code (niketp03/localcomplexity, with the log of one run of a million steps) uses 1,000
normalized digits, a ReLU network of hidden layers of 200 with normal initial weights of variance
1 / fan-in and no initial biases, a softmax in the network and cross-entropy of that softmax, AdamW
at 1e-4 with decay 0.01 on weights alone, batches of 64. The logged run had five hidden layers; its
file also has another scale for the initial weights, which nothing in it uses.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from localrank_cli.experiments.digits import read_digits
from localrank_cli.experiments.experiment import (
    Experiment,
    Verdict,
    live_claims,
    observation,
    seed_count,
)
from localrank_cli.experiments.series import SeriesText, keep_series, settings_text
from localrank_cli.experiments.training import Task, mlp

NAME = "patel2024"
PUBLISHED = (198.0, 36.0, 10.2, 7.95, 6.97)  # logged local ranks of the hidden layers at the end
PUBLISHED_STEPS = 1_000_000
QUICK_STEPS = 3_000
_N_EACH = 1_000  # digits to train on, and as many to test on
_WIDTHS = (784, 200, 200, 200, 200, 200, 10)
_MEAN, _SD = 0.1307, 0.3081  # of the pixels of MNIST over 255
_RATE, _DECAY, _BATCH = 1e-4, 0.01, 64
_LOGGED = 50  # entries of the log, evenly spaced in the logarithm of the step


def published_loss(output: Tensor, label: Tensor) -> Tensor:
    """Return the cross-entropy of a network that ends in a softmax: the softmax is applied twice.

    Args:
        output: Before any softmax, shape (points, 10).
        label: Shape (points,).

    Returns:
        The mean, a scalar; 1.4612 if every digit is certain and right.
    """
    return nn.functional.cross_entropy(output.softmax(dim=1), label)


def log_steps(steps: int) -> tuple[int, ...]:
    """Return step 0, the steps that the published code logs, and `steps`, the last one."""
    logged = np.logspace(0, np.log10(PUBLISHED_STEPS), _LOGGED).astype(int)
    return (0, *(int(step) for step in np.unique(logged) if step < steps), steps)


def digits_task(path: Path, seed: int) -> Task:
    """Draw 1,000 digits to train on and as many others to test on."""
    images, labels = read_digits(path, 2 * _N_EACH)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    drawn = order[: 2 * _N_EACH].numpy()
    x = torch.from_numpy(images[drawn].reshape(-1, 784)).float() / 255
    x, y = (x - _MEAN) / _SD, torch.from_numpy(labels[drawn].astype(np.int64))
    return Task(
        train=(x[:_N_EACH], y[:_N_EACH]),
        test=(x[_N_EACH:], y[_N_EACH:]),
        loss=published_loss,
        score=lambda output, label: (output.argmax(1) == label).double().mean(),
        score_name="accuracy",
    )


@dataclass(frozen=True)
class PublishedArm:
    """The published training for some of its steps."""

    steps: int
    seed: int
    task: Task

    @property
    def folder(self) -> str:
        """The name of the folder inside the experiment's."""
        return f"adamw_seed_{self.seed}"

    @property
    def n_checkpoints(self) -> int:
        """How many checkpoints there are."""
        return len(log_steps(self.steps))

    def train(self, out: Path) -> Iterator[int]:
        """Train the network, fill its folder in `out`, and yield the step of each checkpoint."""
        x, y = self.task.test
        # The full rule of --preset patel2024, which leaves out the last layer.
        settings = {
            "data": "digits.npz", "data-key": "images", "activation": "relu", "points": 128,
            "layers": f"!{2 * len(_WIDTHS) - 4}", "atol": 0.01,
        }  # fmt: skip
        columns: dict[str, str | int | float] = {"weight_decay": _DECAY, "seed": self.seed}
        arrays = {"images": x.numpy(), "labels": y.numpy().astype(np.uint8)}
        text = SeriesText(settings_text(settings, columns), "digits.npz", arrays, is_watched=True)
        for row, _ in keep_series(self._training(), self.task, text, out / self.folder):
            yield int(row[0])

    def _training(self) -> Iterator[tuple[int, nn.Sequential]]:
        torch.manual_seed(self.seed)
        net = mlp(_WIDTHS)
        weights = [part for part in net.parameters() if part.ndim == 2]
        biases = [part for part in net.parameters() if part.ndim == 1]
        with torch.no_grad():
            for weight in weights:
                weight.normal_(std=weight.shape[1] ** -0.5)
            for bias in biases:
                bias.zero_()
        groups = [
            {"params": weights, "weight_decay": _DECAY},
            {"params": biases, "weight_decay": 0},
        ]
        optimizer = torch.optim.AdamW(groups, _RATE, fused=True)
        (x, y), save_at = self.task.train, set(log_steps(self.steps))
        order = _batches(len(x), torch.Generator().manual_seed(self.seed))
        for step in range(self.steps + 1):
            if step in save_at:
                yield step, net
            batch = next(order)
            optimizer.zero_grad()
            torch.autograd.backward(published_loss(net(x[batch]), y[batch]))
            optimizer.step()


def _batches(n: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches like a shuffling loader: the last one of each epoch may be smaller."""
    while True:
        yield from torch.split(torch.randperm(n, generator=generator), _BATCH)


def plan(seeds: int, steps: int, path: Path) -> Experiment:
    """Plan one network for each seed, trained for `steps` of the published million."""
    arms = tuple(PublishedArm(steps, seed, digits_task(path, seed)) for seed in range(seeds))
    return Experiment(NAME, arms, judge)


def judge(frame: pd.DataFrame) -> Verdict:
    """Show the ranks in the table of all arms beside the published end values, as observations."""
    claims = []
    steps = int(frame["step"].max())
    for layer, published in enumerate(PUBLISHED):
        trajectories = [
            _trajectory(run.sort_values("step"))
            for _, run in frame[frame["layer_index"] == layer].groupby("run")
        ]
        claims.append(
            observation(
                f"local rank of hidden layer {layer + 1} at {steps:,} steps",
                f"{published:g} at {PUBLISHED_STEPS:,} steps in the published log",
                "; ".join(trajectories),
            )
        )
    last = frame[(frame["step"] == steps) & (frame["layer_index"] == 0)]
    accuracy = ", ".join(f"{value:.3f}" for value in last["test_accuracy"])
    claims.append(observation("test accuracy", "0.902 in the published log", accuracy))
    setting = (
        f"ReLU MLP {'-'.join(map(str, _WIDTHS))}, softmax applied twice, {_N_EACH:,} normalized"
        f" digits; AdamW, learning rate {_RATE:g}, weight decay {_DECAY} on weights, batch"
        f" {_BATCH}, {steps:,} of the published {PUBLISHED_STEPS:,} steps,"
        f" {seed_count(frame)}; atol 0.01 at 128 test points"
    )
    claims += live_claims(frame)
    return Verdict(
        NAME, setting, tuple(claims), "none; published figures are shown for comparison only"
    )


def _trajectory(run: pd.DataFrame) -> str:
    ranks = run["local_rank"].tolist()
    peak = max(ranks)
    at_step = run["step"].tolist()[ranks.index(peak)]
    return (
        f"{ranks[0]:.1f} at the start, {peak:.1f} at step {at_step:,}, {ranks[-1]:.1f} at the end"
    )
