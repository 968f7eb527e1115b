"""The published training: each step of the published code, and that nothing is judged."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from localrank_cli import analyze
from localrank_cli.experiments import patel2024
from localrank_cli.experiments.patel2024 import (
    PUBLISHED,
    PUBLISHED_STEPS,
    PublishedArm,
    digits_task,
    judge,
    log_steps,
    plan,
    published_loss,
)
from localrank_cli.experiments.series import LIVE
from localrank_cli.results.read import read_table


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    images = generator.integers(0, 256, (2_100, 28, 28), dtype=np.uint8)
    np.savez_compressed(path, images=images, labels=np.arange(2_100, dtype=np.uint8) % 10)
    return path


def test_the_published_steps() -> None:
    steps = log_steps(PUBLISHED_STEPS)
    # As their log prints them; step 0 is ours.
    assert steps[:11] == (0, 1, 2, 3, 4, 5, 7, 9, 12, 16, 22)
    assert steps[-4:] == (429193, 568986, 754312, 1_000_000)
    assert len(steps) == 48 + 1
    assert log_steps(100)[-3:] == (68, 91, 100)
    assert log_steps(91)[-2:] == (68, 91)


def test_the_softmax_is_applied_twice() -> None:
    logits = torch.randn(7, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(7)
    shares = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    twice = shares.exp() / shares.exp().sum(dim=1, keepdim=True)
    expected = -twice[torch.arange(7), labels].log().mean()
    torch.testing.assert_close(published_loss(logits, labels), expected)
    # The least there can be, at which their log ends: 1.46115.
    certain = 1000 * torch.eye(10, dtype=torch.float64)
    least = published_loss(certain, torch.arange(10))
    assert least.item() == pytest.approx(math.log(math.e + 9) - 1)
    assert least.item() == pytest.approx(1.46115, abs=1e-5)


def test_other_digits_are_tested_than_trained_on(digits: Path) -> None:
    task = digits_task(digits, seed=1)
    assert task.train[0].shape == task.test[0].shape == (1_000, 784)
    every = torch.cat([task.train[0], task.test[0]])
    assert len(torch.unique(every, dim=0)) == 2_000
    # Black is (0 - 0.1307) / 0.3081, white (1 - 0.1307) / 0.3081.
    assert every.min().item() == pytest.approx(-0.4242, abs=1e-4)
    assert every.max().item() == pytest.approx(2.8215, abs=1e-4)
    assert not torch.equal(task.train[0], digits_task(digits, seed=2).train[0])


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many layers as published, which are narrower and take less time."""
    monkeypatch.setattr(patel2024, "_WIDTHS", (784, 40, 40, 40, 40, 40, 10))


def test_weights_decay_and_biases_do_not(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[Any] = []
    adamw = torch.optim.AdamW

    def noticed(params: list[dict[str, object]], *args: object, **kwargs: object) -> object:
        groups.extend(params)
        assert args == (1e-4,)
        return adamw(params, 1e-4)

    monkeypatch.setattr(torch.optim, "AdamW", noticed)
    arm = PublishedArm(1, 0, digits_task(digits, 0))
    (_, net), _ = arm._training()
    assert [group["weight_decay"] for group in groups] == [0.01, 0]
    assert [len(group["params"]) for group in groups] == [6, 6]
    widths = [part.out_features for part in net if isinstance(part, nn.Linear)]
    assert widths == [200, 200, 200, 200, 200, 10]


@pytest.mark.usefixtures("narrow")
def test_a_training_is_a_series_by_their_rule(digits: Path, tmp_path: Path) -> None:
    (arm,) = plan(1, 3, digits).arms
    assert arm.n_checkpoints == 4
    assert list(arm.train(tmp_path)) == [0, 1, 2, 3]
    folder = tmp_path / arm.folder
    frame = analyze(folder, last=1)
    same = analyze(folder, last=1, preset="patel2024", layers=["0", "2", "4", "6", "8"])
    pd.testing.assert_frame_equal(frame, same)
    assert frame["layer"].tolist() == ["0", "2", "4", "6", "8"]
    assert (frame["n_points"] == 128).all()
    metrics = pd.read_csv(folder / "metrics.csv")
    assert metrics["loss"].iloc[-1] < metrics["loss"].iloc[0]


def test_nothing_is_judged() -> None:
    rows = [
        {"run": "a", "seed": 0, "step": step, "layer_index": layer, "local_rank": rank - layer,
         "test_accuracy": 0.9}
        for step, rank in ((0, 100.0), (10, 150.0), (20, 40.0)) for layer in range(5)
    ]  # fmt: skip
    verdict = judge(pd.DataFrame(rows))
    assert len(verdict.claims) == len(PUBLISHED) + 1
    assert not any(claim.is_evidence for claim in verdict.claims)
    assert "99.0 at the start, 149.0 at step 10, 39.0 at the end" in verdict.text
    assert "36 at 1,000,000 steps in the published log" in verdict.text
    assert verdict.text.endswith("for comparison only\n")
    assert "20 of the published 1,000,000 steps" in verdict.setting


@pytest.mark.usefixtures("narrow")
def test_a_monitor_measures_what_an_analysis_does(digits: Path, tmp_path: Path) -> None:
    arm = PublishedArm(3, 0, digits_task(digits, 0))
    steps = list(arm.train(tmp_path))
    live = read_table(tmp_path / arm.folder / LIVE)
    frame = analyze(tmp_path / arm.folder)
    assert sorted(set(live["step"])) == steps
    keys = ["step", "layer", "tolerance"]
    both = frame.merge(live, on=keys, suffixes=("", "_live"))
    assert len(both) == len(frame) == len(live)
    assert both["local_rank"].tolist() == both["local_rank_live"].tolist()
    # The training is bit for bit the one without.
    for (step, net), saved in zip(arm._training(), steps, strict=True):
        weights = load_file(tmp_path / arm.folder / f"step_{step}.safetensors")
        assert step == saved
        assert all(torch.equal(weights[name], part) for name, part in net.state_dict().items())
