"""The published training of Patel & Shwartz-Ziv on digits, as far as the given steps go.

Their code (niketp03/localcomplexity, with the log of one run of a million steps) has 1,000
normalised digits, a ReLU network of hidden layers of 200 with normal initial weights of variance
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

from localrank_cli.experiments.arm import Plan
from localrank_cli.experiments.claims import Claim, Verdict
from localrank_cli.experiments.digits import read_digits
from localrank_cli.experiments.series import SeriesText, keep_series, settings_text
from localrank_cli.experiments.training import Task, mlp

NAME = "patel2024"
PUBLISHED = (198.0, 36.0, 10.2, 7.95, 6.97)  # logged local ranks of the hidden layers at the end
PUBLISHED_STEPS = 1_000_000
QUICK_STEPS = 3_000
_N_EACH = 1_000  # digits to train on, and as many to test
_WIDTHS = (784, 200, 200, 200, 200, 200, 10)
_MEAN, _SD = 0.1307, 0.3081  # of the pixels of MNIST over 255
_RATE, _DECAY, _BATCH = 1e-4, 0.01, 64
_LOGGED = 50  # looks at the network, evenly spaced in the logarithm of the step


def published_loss(output: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy of a network that ends in a softmax: the softmax is taken twice.

    Args:
        output: Before any softmax, shape (points, 10).
        label: Shape (points,).

    Returns:
        The mean, a scalar; 1.4612 where every digit is told for certain.
    """
    return nn.functional.cross_entropy(output.softmax(dim=1), label)


def log_steps(steps: int) -> tuple[int, ...]:
    """The steps at which the published code looks at the network, and step 0.

    Args:
        steps: Of this training, the last of them.

    Returns:
        Ascending.
    """
    logged = np.logspace(0, np.log10(PUBLISHED_STEPS), _LOGGED).astype(int)
    return (0, *(int(step) for step in np.unique(logged) if step < steps), steps)


def digits_task(path: Path, seed: int) -> Task:
    """Draws 1,000 digits to train on and as many others to test.

    Args:
        path: The user's file.
        seed: Of the draw.

    Returns:
        The task.
    """
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
        """Its name below the experiment's."""
        return f"adamw_seed_{self.seed}"

    @property
    def n_checkpoints(self) -> int:
        """How many checkpoints there are."""
        return len(log_steps(self.steps))

    def train(self, out: Path) -> Iterator[int]:
        """Trains the network and fills its folder.

        Args:
            out: Folder of the experiment.

        Yields:
            The step, after each checkpoint.
        """
        x, y = self.task.test
        # The rule of --preset patel2024 in full: the last layer is no hidden one.
        settings = {
            "data": "digits.npz", "data-key": "images", "activation": "relu", "points": 128,
            "layers": f"!{2 * len(_WIDTHS) - 4}", "atol": 0.01,
        }  # fmt: skip
        columns: dict[str, str | int | float] = {"weight_decay": _DECAY, "seed": self.seed}
        arrays = {"images": x.numpy(), "labels": y.numpy().astype(np.uint8)}
        text = SeriesText(settings_text(settings, columns), "digits.npz", arrays)
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
        optimiser = torch.optim.AdamW(groups, _RATE, fused=True)
        (x, y), save_at = self.task.train, set(log_steps(self.steps))
        order = _batches(len(x), torch.Generator().manual_seed(self.seed))
        for step in range(self.steps + 1):
            if step in save_at:
                yield step, net
            batch = next(order)
            optimiser.zero_grad()
            torch.autograd.backward(published_loss(net(x[batch]), y[batch]))
            optimiser.step()


def _batches(n: int, generator: torch.Generator) -> Iterator[Tensor]:
    """As a loader that shuffles draws them: the last one of each epoch is what is left."""
    while True:
        yield from torch.split(torch.randperm(n, generator=generator), _BATCH)


def plan(seeds: int, steps: int, path: Path) -> Plan:
    """Plans one training for each seed.

    Args:
        seeds: How many.
        steps: Of the published million.
        path: The user's file of digits.

    Returns:
        The arms.
    """
    arms = tuple(PublishedArm(steps, seed, digits_task(path, seed)) for seed in range(seeds))
    return Plan(NAME, arms, judge)


def judge(frame: pd.DataFrame) -> Verdict:
    """Puts our ranks beside the published end values; nothing is judged.

    Args:
        frame: The table of all arms, with the column test_accuracy.

    Returns:
        The verdict.
    """
    claims = []
    steps = int(frame["step"].max())
    for layer, published in enumerate(PUBLISHED):
        courses = [
            _course(run.sort_values("step"))
            for _, run in frame[frame["layer_index"] == layer].groupby("run")
        ]
        claims.append(
            _shown(
                f"local rank of hidden layer {layer + 1} at {steps:,} steps",
                f"{published:g} at {PUBLISHED_STEPS:,} steps in the published log",
                "; ".join(courses),
            )
        )
    last = frame[(frame["step"] == steps) & (frame["layer_index"] == 0)]
    accuracy = ", ".join(f"{value:.3f}" for value in last["test_accuracy"])
    claims.append(_shown("test accuracy", "0.902 in the published log", accuracy))
    seeds = frame["seed"].nunique()
    setting = (
        f"ReLU MLP {'-'.join(map(str, _WIDTHS))}, softmax taken twice, {_N_EACH:,} normalised"
        f" digits; AdamW, learning rate {_RATE:g}, weight decay {_DECAY} on weights, batch"
        f" {_BATCH}, {steps:,} of the published {PUBLISHED_STEPS:,} steps, {seeds}"
        f" seed{'s' if seeds > 1 else ''}; atol 0.01 at 128 test points"
    )
    return Verdict(NAME, setting, tuple(claims))


def _course(run: pd.DataFrame) -> str:
    ranks = run["local_rank"].tolist()
    peak = max(ranks)
    at_step = run["step"].tolist()[ranks.index(peak)]
    return (
        f"{ranks[0]:.1f} at the start, {peak:.1f} at step {at_step:,}, {ranks[-1]:.1f} at the end"
    )


def _shown(text: str, expected: str, measured: str) -> Claim:
    return Claim(text, expected, measured, holds=True, is_evidence=False)
