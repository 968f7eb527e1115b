"""A known answer: networks that learn a linear teacher of rank 3, with and without weight decay."""

import pandas as pd
import torch
from torch import nn

from localrank_cli.experiments.experiment import (
    Claim,
    Experiment,
    Verdict,
    decay_arms,
    observation,
    seed_count,
    span,
)
from localrank_cli.experiments.series import SeriesText, text_of_inputs
from localrank_cli.experiments.training import Recipe, Task

NAME = "gaussian"
TEACHER_RANK = 3
CONTROL_RANK = 8.0  # at least, of layer 2 without decay: half of what three seeds gave
_QUICK_STEPS = 7_000  # the ranks are final from step 6,000 on

RECIPE = Recipe(
    widths=(32, 64, 64, 10),
    learning_rate=0.005,
    weight_decay=5e-3,
    batch=64,
    steps=12_000,
    seed=0,
    save_at=(0, 30, 100, 200, 300, 500, 800, 1400, 2000, 3000, 4500, 6000, 8500, 12_000),
)


def gaussian_task(seed: int) -> Task:
    """Draw a teacher of rank 3, with 2,000 noisy pairs to train on and 2,000 to test on."""
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(10, TEACHER_RANK, generator=generator) @ torch.randn(
        TEACHER_RANK, 32, generator=generator
    )
    x = torch.randn(4_000, 32, generator=generator)
    y = x @ teacher.T / 96**0.5 + 0.1 * torch.randn(4_000, 10, generator=generator)
    return Task(
        train=(x[:2_000], y[:2_000]),
        test=(x[2_000:], y[2_000:]),
        loss=nn.functional.mse_loss,
        score=lambda output, target: (output - target).square().sum() / target.square().sum(),
        score_name="error",
    )


def plan(seeds: int, quick: bool) -> Experiment:
    """Plan a network with and one without weight decay for each seed; `quick` halves the steps."""
    recipe = RECIPE.until(_QUICK_STEPS) if quick else RECIPE
    return Experiment(NAME, tuple(decay_arms(recipe, seeds, _content)), judge)


def _content(seed: int, decay: float) -> tuple[Task, SeriesText]:
    task = gaussian_task(seed)
    return task, text_of_inputs(task.train[0], seed, decay)


def judge(frame: pd.DataFrame) -> Verdict:
    """Compare the ranks at the end, in the table of all arms, with that of the teacher."""
    last = frame[frame["step"] == frame["step"].max()]

    def ends(layer: int, decays: bool) -> list[float]:
        """Return a layer's ranks at the last step, with or without weight decay."""
        chosen = last[(last["layer_index"] == layer - 1) & ((last["weight_decay"] > 0) == decays)]
        return [float(rank) for rank in chosen["local_rank"]]

    second, control = ends(2, decays=True), ends(2, decays=False)
    claims = (
        Claim(
            "with weight decay layer 2 ends at the rank of the teacher",
            f"{TEACHER_RANK:.1f} at rtol 0.1, for every seed",
            span(second),
            all(abs(rank - TEACHER_RANK) < 0.05 for rank in second),
        ),
        Claim(
            "without weight decay (the control) layer 2 stays above it",
            f"{CONTROL_RANK:.0f} or more, for every seed",
            span(control),
            all(rank >= CONTROL_RANK for rank in control),
        ),
        observation(
            "layer 3 reaches the rank of the teacher with decay and without",
            f"{TEACHER_RANK:.1f} in both",
            f"{span(ends(3, decays=True))} with decay, {span(ends(3, decays=False))} without",
        ),
    )
    setting = (
        f"ReLU MLP 32-64-64-10 on y = T x + noise, T of rank {TEACHER_RANK}; SGD, momentum 0.9,"
        f" learning rate {RECIPE.learning_rate}, {frame['step'].max():,} steps, weight decay"
        f" {RECIPE.weight_decay} against 0, {seed_count(frame)}"
    )
    return Verdict(NAME, setting, claims)
