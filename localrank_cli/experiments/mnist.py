"""Digits: the rank falls late in training with weight decay, and not without."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from localrank_cli.experiments.digits import read_digits
from localrank_cli.experiments.experiment import (
    Claim,
    Experiment,
    Verdict,
    decay_arms,
    live_claims,
    observation,
    seed_count,
    span,
)
from localrank_cli.experiments.series import SeriesText, settings_text
from localrank_cli.experiments.training import LANDMARK, Recipe, Task

NAME = "mnist"
N_TRAIN, N_TEST = 9_000, 1_000  # digits
N_KEPT = 1_000  # digits to train on that are kept with a series, besides those to test on
FALLS = {
    1: 0.08,
    2: 0.40,
    3: 0.40,
    4: 0.10,
}  # with decay, at least this share of the rank at the landmark
CONTROL_FALL = 0.03  # without decay, at most
NEVER = "99 % training accuracy was never reached"
_SCALE = 0.00392156862745098  # 1/255
_QUICK_STEPS = 7_000

RECIPE = Recipe(
    widths=(784, 100, 100, 100, 10),
    learning_rate=0.05,
    weight_decay=1e-3,
    batch=128,
    steps=10_500,  # 150 epochs of 70 full batches
    seed=3,
    save_at=(0, 20, 40, 60, 80, 120, 200, 400, 800, 1400, 2000, 3000, 4000, 5000, 7000, 10_500),
)


def digits_task(path: Path) -> tuple[Task, Mapping[str, Any]]:
    """Create the task of classifying digits: the first 9,000 to train, the next 1,000 to test.

    Returns:
        The task, and the arrays kept with a series: the first 1,000 of each kind.
    """
    total = N_TRAIN + N_TEST
    images, labels = (array[:total] for array in read_digits(path, total))
    images = images.reshape(total, 784)
    x = torch.from_numpy(images.copy()).float() / 255
    y = torch.from_numpy(labels.astype(np.int64))
    kept = np.r_[:N_KEPT, N_TRAIN:total]
    task = Task(
        train=(x[:N_TRAIN], y[:N_TRAIN]),
        test=(x[N_TRAIN:], y[N_TRAIN:]),
        loss=nn.functional.cross_entropy,
        score=lambda output, label: (output.argmax(1) == label).double().mean(),
        score_name="accuracy",
    )
    return task, {"images": images[kept], "labels": labels[kept].astype(np.uint8)}


def plan(seeds: int, quick: bool, path: Path) -> Experiment:
    """Plan a network with and one without weight decay for each seed; `quick`: 2/3 of the steps."""
    task, arrays = digits_task(path)
    settings = {
        "data": "digits.npz", "data-key": "images", "data-scale": _SCALE,
        "activation": "relu", "atol": [0.1, 0.01],
    }  # fmt: skip

    def content(seed: int, decay: float) -> tuple[Task, SeriesText]:
        """Return the digits, of which a Monitor measures those that are kept."""
        toml = settings_text(settings, {"weight_decay": decay, "seed": seed})
        return task, SeriesText(toml, "digits.npz", arrays, is_watched=True)

    recipe = RECIPE.until(_QUICK_STEPS) if quick else RECIPE
    return Experiment(NAME, tuple(decay_arms(recipe, seeds, content)), judge)


def judge(frame: pd.DataFrame) -> Verdict:
    """Compare the late part of each run, from 99 % training accuracy on, with the claims.

    Args:
        frame: The table of all arms, with column train_accuracy.

    Returns:
        The verdict.
    """
    absolute = frame[frame["tolerance"] == "atol=0.1"]
    with_decay = absolute[absolute["weight_decay"] > 0]
    control = absolute[absolute["weight_decay"] == 0]
    claims = [
        _fall(with_decay, layer, "local_rank", f"of at least {least:.0%}", least)
        for layer, least in FALLS.items()
    ]
    claims.append(_control(control))
    claims += [_effective_rank(with_decay, control, layer) for layer in FALLS]
    claims.append(_accuracy(with_decay, control))
    claims += live_claims(frame)
    setting = (
        f"ReLU MLP 784-100-100-100-10 on 9,000 digits; SGD, momentum 0.9, learning rate"
        f" {RECIPE.learning_rate}, batch {RECIPE.batch}, {frame['step'].max():,} steps, weight"
        f" decay {RECIPE.weight_decay} against 0, {seed_count(frame)}; ranks at"
        " atol 0.1 from the first checkpoint with 99 % training accuracy to the end"
    )
    return Verdict(NAME, setting, tuple(claims))


def late_ends(frame: pd.DataFrame, layer: int, measure: str) -> list[tuple[float, float]]:
    """Return a measure at the landmark and at the end of each run.

    Args:
        frame: Rows of one tolerance.
        layer: Counted from 1.
        measure: A column.

    Returns:
        A pair for each run that reached the landmark.
    """
    pairs = []
    for _, run in frame[frame["layer_index"] == layer - 1].groupby("run"):
        late = run[run["train_accuracy"] >= LANDMARK].sort_values("step")
        if len(late) > 1:
            pairs.append((float(late[measure].iloc[0]), float(late[measure].iloc[-1])))
    return pairs


def _falls(pairs: list[tuple[float, float]]) -> list[float]:
    return [1 - last / first if first > 0 else 0.0 for first, last in pairs]


def _described(pairs: list[tuple[float, float]]) -> str:
    """Describe the change in one run, or the range over several."""
    if not pairs:
        return NEVER
    first, last = (span([pair[index] for pair in pairs]) for index in (0, 1))
    # Subtracted from 0.0, since negating a fall of 0.0 would print -0%.
    changes = [f"{0.0 - fall:+.0%}" for fall in sorted(_falls(pairs), reverse=True)]
    band = changes[0] if changes[0] == changes[-1] else f"{changes[0]} to {changes[-1]}"
    return f"{first} -> {last} ({band})"


def _fall(frame: pd.DataFrame, layer: int, measure: str, expected: str, least: float) -> Claim:
    pairs = late_ends(frame, layer, measure)
    # A run that never reached the landmark is no evidence.
    holds = len(pairs) == frame["run"].nunique() and all(fall >= least for fall in _falls(pairs))
    text = f"with weight decay the rank of layer {layer} falls late"
    return Claim(text, f"a fall {expected}", _described(pairs), holds)


def _control(frame: pd.DataFrame) -> Claim:
    pairs = {layer: late_ends(frame, layer, "local_rank") for layer in FALLS}
    measured = "; ".join(f"layer {layer} {_described(found)}" for layer, found in pairs.items())
    holds = all(
        len(found) == frame["run"].nunique() and all(f <= CONTROL_FALL for f in _falls(found))
        for found in pairs.values()
    )
    text = "without weight decay (the control) no layer's rank falls late"
    return Claim(text, f"no fall of more than {CONTROL_FALL:.0%}", measured, holds)


def _effective_rank(with_decay: pd.DataFrame, control: pd.DataFrame, layer: int) -> Claim:
    first, second = (
        _described(late_ends(frame, layer, "effective_rank")) for frame in (with_decay, control)
    )
    text = f"effective rank of layer {layer}, invariant to scale (decay shrinks every sigma)"
    return observation(text, "no claim", f"{first} with decay, {second} without")


def _accuracy(with_decay: pd.DataFrame, control: pd.DataFrame) -> Claim:
    first, second = (_accuracies(late_ends(f, 1, "test_accuracy")) for f in (with_decay, control))
    measured = f"{first} with decay, {second} without"
    return observation("test accuracy over the same part", "no claim", measured)


def _accuracies(pairs: list[tuple[float, float]]) -> str:
    if not pairs:
        return NEVER
    first, last = (span([pair[index] for pair in pairs], digits=3) for index in (0, 1))
    return f"{first} -> {last}"
