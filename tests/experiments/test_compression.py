"""Rank against compressibility: the smallest budgets, and the verdict of a table."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from localrank_cli.compress.matrix import matrix_of
from localrank_cli.compress.search import Compressor
from localrank_cli.experiments import compression
from localrank_cli.experiments.compression import compressibility, judge, smallest, task_of
from localrank_cli.experiments.training import mlp, training
from tests.cli.program import invoke
from tests.experiments.test_pictures import panels_of


def test_the_smallest_share_is_that_of_planted_ranks() -> None:
    """Of rank 3 in the first two layers, 3 x (164 + 200) and the last layer's 1,000 weights."""
    torch.manual_seed(0)
    net = mlp((64, 100, 100, 10))
    with torch.no_grad():
        for index in (0, 2):
            weight = matrix_of(net[index])
            u, s, v = torch.linalg.svd(torch.randn_like(weight), full_matrices=False)
            weight.copy_((u[:, :3] * s[:3]) @ v[:3] / 4)
    task = task_of(0)
    # Labels that the network gets right.
    task = replace(task, test=(task.test[0], net(task.test[0]).argmax(dim=1)))
    two_sided, plain, ranks = compressibility(net, task, seed=0)
    whole = (3 * 164 + 3 * 200 + 1000) / 17_400
    assert two_sided <= whole + 0.01
    assert plain <= whole + 0.01
    # exp of the entropy of three values and of those of the last layer, which are at most ten.
    assert 2 * 1 < ranks <= 3 + 3 + 10


def test_bisection_finds_what_trying_every_percent_does(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    found = Compressor.at

    def watched(self: Compressor, name: str, budget: int) -> object:
        seen.append((self, budget))
        return found(self, name, budget)

    monkeypatch.setattr(Compressor, "at", watched)
    recipe = replace(compression.RECIPE, steps=300, save_at=(300,))
    task = task_of(1)
    ((_, net),) = [one for one in training(recipe, task) if one[0] == 300]
    _, plain, _ = compressibility(net, task, seed=1)
    work = seen[0][0]
    assert smallest(work, ("energy",)) == plain
    least = (work.original.accuracy or 0.0) - compression.LOST

    def keeps(percent: int) -> bool:
        one = found(work, "energy", percent * work.total // 100)
        return one is not None and (one.scores.accuracy or 0.0) >= least

    assert keeps(round(100 * plain))
    assert not keeps(round(100 * plain) - 1)


def table(*, decay: float, without: float) -> pd.DataFrame:
    rows = []
    for seed in (0, 1):
        for weight_decay, share, rank in ((0.002, decay, 20.0), (0.0, without, 30.0)):
            for step in (100, 200):
                row = {
                    "run": f"{weight_decay}_{seed}",
                    "step": step,
                    "seed": seed,
                    "weight_decay": weight_decay,
                    "train_accuracy": 1.0 if step == 200 else 0.5,
                    "share_two_sided": share,
                    "share_plain": 2 * share,
                    "weights_rank": rank,
                }
                rows += [row | {"layer_index": layer, "local_rank": rank / 2} for layer in (0, 1)]
    return pd.DataFrame(rows)


def test_the_verdict_is_that_of_the_last_step() -> None:
    found = judge(table(decay=0.2, without=0.25))
    assert found.holds
    assert found.claims[0].measured == "1.25 times fewer"
    assert found.claims[1].measured == "1.50 times lower"
    # Two groups of checkpoints in the same order: of four trained ones, each pair is tied.
    assert found.claims[3].measured == "1.00 over 4 checkpoints"
    assert not judge(table(decay=0.25, without=0.2)).holds


def test_the_picture_has_a_panel_for_each_rank() -> None:
    frame = table(decay=0.2, without=0.25).assign(tolerance="rtol=0.1")
    first, second = panels_of("compression", frame)
    assert first.get_xlabel() == "local rank, summed over layers"
    assert second.get_xlabel() == "effective rank of the weights, summed over layers"
    points = [tuple(map(float, xy)) for one in first.collections for xy in one.get_offsets()]
    assert sorted(set(points)) == [(20.0, 0.2), (30.0, 0.25)]


def test_the_command_writes_shares_beside_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(compression.RECIPE, steps=20, save_at=(0, 20))
    monkeypatch.setattr(compression, "RECIPE", recipe)
    out = tmp_path / "out"
    outcome = invoke("reproduce", "compression", "--out", str(out), "--seeds", "1", "-q", "--full")
    assert outcome.code in (0, 4)
    assert outcome.stdout == (out / "verdict.txt").read_text()
    metrics = pd.read_csv(out / "decay_seed_0" / "metrics.csv")
    assert metrics["step"].tolist() == [0, 20]
    assert metrics["share_two_sided"].between(0.01, 1).all()
    assert (out / "picture.png").exists()


def test_full_is_for_compression_alone() -> None:
    for words in (("gaussian", "--full"), ("compression", "--full", "--quick")):
        outcome = invoke("reproduce", *words)
        assert outcome.code == 2
        assert "--full is for" in outcome.error
