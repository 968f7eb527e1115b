"""Rank against compressibility: the smallest budgets of networks with and without weight decay."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from localrank_cli.compress.eligible import find_layers
from localrank_cli.compress.search import Compressor, Data
from localrank_cli.compress.state import effective_rank_of
from localrank_cli.experiments.experiment import (
    Claim,
    Experiment,
    SgdArm,
    Verdict,
    decay_arms,
    observation,
    seed_count,
    span,
)
from localrank_cli.experiments.series import (
    SeriesText,
    output_errors,
    text_of_inputs,
    train_series,
    write_metrics,
)
from localrank_cli.experiments.training import LANDMARK, Recipe, Task

NAME = "compression"
LOST = 0.01  # of the accuracy that may be lost
_N_CLASSES, _N_PROTOTYPES, _SPREAD = 10, 6, 0.75
_N_TRAIN, _N_TEST, _N_CALIBRATE = 2_000, 2_000, 1_000
_MEMORY = 2**30
_QUICK_STEPS = 3_000
_GRID = 100
_COLUMNS = ("share_two_sided", "share_plain", "weights_rank")

RECIPE = Recipe(
    widths=(64, 100, 100, 10),
    learning_rate=0.05,
    weight_decay=2e-3,
    batch=100,
    steps=10_000,
    seed=0,
    save_at=(0, 100, 300, 600, 1_000, 2_000, 3_000, 5_000, 7_000, 10_000),
)


def task_of(seed: int) -> Task:
    """Draw ten classes of six clusters each in 64 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(_N_CLASSES * _N_PROTOTYPES, 64, generator=generator)
    chosen = torch.randint(len(centres), (_N_TRAIN + _N_TEST,), generator=generator)
    noise = torch.randn(len(chosen), 64, generator=generator)
    x, y = centres[chosen] + _SPREAD * noise, chosen % _N_CLASSES
    return Task(
        train=(x[:_N_TRAIN], y[:_N_TRAIN]),
        test=(x[_N_TRAIN:], y[_N_TRAIN:]),
        loss=nn.functional.cross_entropy,
        score=lambda output, label: (output.argmax(dim=1) == label).float().mean(),
        score_name="accuracy",
    )


@dataclass(frozen=True)
class CompressedArm:
    """A network whose smallest budgets are measured at each checkpoint."""

    arm: SgdArm

    @property
    def folder(self) -> str:
        """The name of the folder inside the experiment's."""
        return self.arm.folder

    @property
    def n_checkpoints(self) -> int:
        """How many checkpoints are planned, without a landmark."""
        return self.arm.n_checkpoints

    def train(self, out: Path) -> Iterator[int]:
        """Train the network, fill its folder in `out`, and yield the step of each checkpoint."""
        arm, folder = self.arm, out / self.folder
        table = [["step", "loss", "train_accuracy", "test_accuracy", *_COLUMNS]]
        for row, net in train_series(arm.recipe, arm.task, arm.text, folder):
            found = compressibility(net, arm.task, arm.recipe.seed)
            table.append([*row, *(f"{value:.6g}" for value in found)])
            with output_errors(folder):
                write_metrics(folder, table)
            yield int(row[0])


def compressibility(net: nn.Sequential, task: Task, seed: int) -> tuple[float, float, float]:
    """Return the smallest share of the weights by two-sided whitening and by the plain SVD.

    At these at most a point of the test accuracy is lost. The third value is the sum of the
    effective ranks of the weights.
    """
    model = copy.deepcopy(net).eval().requires_grad_(False)
    x, y = task.test
    parts = list(zip(x.split(500), y.split(500), strict=True))
    calibration = list(task.train[0][:_N_CALIBRATE].split(500))
    data = Data(lambda: calibration, lambda: parts, lambda: parts)
    layers = find_layers(model, x[:2], _run)
    work = Compressor(model, layers, data, _run, "classes")
    work.calibrate(seed, _MEMORY)
    ranks = sum(effective_rank_of(module) for module in layers.chosen.values())
    return smallest(work, ("fisher", "logit")), smallest(work, ("energy",)), ranks


def smallest(work: Compressor, names: Sequence[str]) -> float:
    """Return the smallest share, in percents, with which one of the methods keeps the accuracy."""
    least = (work.original.accuracy or 0.0) - LOST

    def keeps(percent: int) -> bool:
        """Return whether a share of the weights loses at most `LOST` of the accuracy."""
        found = (work.at(name, percent * work.total // _GRID) for name in names)
        return any((one.scores.accuracy or 0.0) >= least for one in found if one is not None)

    low, high = 0, _GRID
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if keeps(middle) else (middle, high)
    return high / _GRID


def _run(model: nn.Module, batch: Tensor) -> Tensor:
    output: Tensor = model(batch)
    return output


def plan(seeds: int, quick: bool) -> Experiment:
    """Plan a network with and one without weight decay for each seed."""
    recipe = RECIPE.until(_QUICK_STEPS) if quick else RECIPE
    arms = tuple(CompressedArm(arm) for arm in decay_arms(recipe, seeds, _content))
    return Experiment(NAME, arms, judge)


def _content(seed: int, decay: float) -> tuple[Task, SeriesText]:
    task = task_of(seed)
    return task, text_of_inputs(task.train[0], seed, decay)


def by_checkpoint(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each checkpoint, with the sum of its layers' local ranks."""
    keys = ["run", "step", "seed", "weight_decay", "train_accuracy", *_COLUMNS]
    return frame.groupby(keys)["local_rank"].sum().reset_index()


def judge(frame: pd.DataFrame) -> Verdict:
    """Compare networks with and without decay, and ranks with budgets, once they are trained."""
    checkpoints = by_checkpoint(frame)
    trained = checkpoints[checkpoints["train_accuracy"] >= LANDMARK]
    last = checkpoints[checkpoints["step"] == checkpoints["step"].max()]
    ends = {decays: last[(last["weight_decay"] > 0) == decays] for decays in (True, False)}
    pairs = ends[True].merge(ends[False], on="seed", suffixes=("", "_without"))

    def ratio(name: str) -> list[float]:
        """Return a column of the networks without weight decay over that with it, for each seed."""
        return [float(one) for one in pairs[f"{name}_without"] / pairs[name]]

    def alike(name: str) -> str:
        """Return the rank correlation of a column with the share of weights that is needed."""
        if len(trained) < 3:
            return "too few trained checkpoints"
        found = trained[name].rank().corr(trained["share_two_sided"].rank())
        return f"{found:.2f} over {len(trained)} checkpoints"

    two_sided, ranks = ratio("share_two_sided"), ratio("local_rank")
    claims = (
        Claim(
            "with weight decay fewer weights keep the accuracy within a point",
            "1.1 to 1.3 times fewer, by two-sided whitening",
            f"{span(two_sided, 2)} times fewer",
            bool(two_sided) and sum(two_sided) / len(two_sided) > 1.0,
        ),
        Claim(
            "with weight decay the local rank is lower",
            "lower, for every seed",
            f"{span(ranks, 2)} times lower",
            bool(ranks) and min(ranks) > 1.0,
        ),
        observation(
            "the plain SVD needs more weights, and gains more from weight decay",
            "1.7 times fewer weights with decay",
            f"{span(ratio('share_plain'), 2)} times fewer; with decay"
            f" {span(ends[True]['share_plain'].tolist(), 2)} of the weights, instead of"
            f" {span(ends[True]['share_two_sided'].tolist(), 2)}",
        ),
        observation(
            "among trained checkpoints the local rank goes with the smallest budget",
            "weakly (Spearman's correlation)",
            alike("local_rank"),
        ),
        observation(
            "the effective rank of the weights, which needs no Jacobian, says the same",
            "as much as the local rank",
            alike("weights_rank"),
        ),
    )
    setting = (
        f"ReLU MLP 64-100-100-10 on clusters; SGD, momentum 0.9, learning rate"
        f" {RECIPE.learning_rate}, {frame['step'].max():,} steps, weight decay"
        f" {RECIPE.weight_decay} against 0, {seed_count(frame)}"
    )
    return Verdict(NAME, setting, claims)
