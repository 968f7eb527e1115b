"""The sweep on generalization: its cells, its training, and verdicts on planted measures."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from localrank_cli.experiments import correlation
from localrank_cli.experiments.generalization import (
    AXES,
    RANDOM,
    TARGET,
    Cell,
    SweepArm,
    cells,
    controls,
    draw_task,
    judge,
    plan,
)
from localrank_cli.experiments.training import mlp

# One setting at a time, from a cell of the grid, so that a setting has one group of cells.
_BASE = (32, 2, 0.02, 0.0, 0.0, 200)
STAR = {
    _BASE,
    *(
        (*_BASE[:place], other, *_BASE[place + 1 :])
        for place, other in enumerate((128, 3, 0.1, 1e-3, 0.2, 800))
    ),
}


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correlation, "_RESAMPLES", 100)


def planted(rank_follows: str, sign: float = 1.0) -> pd.DataFrame:
    """The table of a sweep whose gap is a noisy measure, and whose rank follows a column."""
    random = np.random.default_rng(0)
    rows = []
    for cell in (*cells(quick=False), *controls(quick=False)):
        for seed in range(3):
            gap = 0.8 * cell.label_noise + 0.1 * random.random()
            norm = 5 + gap + 0.02 * random.random()
            rank = {"gap": 20 * gap, "norm": 20 * norm}[rank_follows] + 0.01 * random.random()
            is_random = cell.label_noise == RANDOM
            shared = {
                "run": f"{cell.name}_{seed}", **asdict(cell), "seed": seed, "loss": TARGET / 2,
                "train_accuracy": 1.0, "test_accuracy": 0.25 if is_random else 1.0 - gap,
                "weight_norm": norm, "jacobian_norm": 1 + random.random(),
            }  # fmt: skip
            rows += [
                {**shared, "layer_index": layer, "local_rank": sign * rank}
                for layer in range(cell.depth + 1)
            ]
    return pd.DataFrame(rows)


def test_the_numbers_of_networks_are_those_that_are_promised() -> None:
    assert len(plan(3, quick=True).arms) == 40
    assert len(plan(3, quick=False).arms) >= 200
    assert {axis for axis in AXES if len({getattr(cell, axis) for cell in cells(True)}) > 1} == set(
        AXES
    )


def test_parts_are_all_networks_once() -> None:
    whole = [arm.folder for arm in plan(3, quick=True).arms]
    parts = [arm.folder for index in range(3) for arm in plan(3, quick=True, part=(index, 3)).arms]
    assert sorted(parts) == sorted(whole)
    assert len(set(whole)) == len(whole)


def test_a_task_is_fixed_but_for_its_seed_and_noise() -> None:
    first, noisy = draw_task(Cell(), 0), draw_task(Cell(label_noise=0.2), 0)
    torch.testing.assert_close(first.train[0], noisy.train[0], rtol=0, atol=0)
    differ = (first.train[1] != noisy.train[1]).float().mean().item()
    # A label that is drawn anew is another one in 3 of 4 cases; of 400, 3 standard deviations.
    assert differ == pytest.approx(0.15, abs=3 * (0.15 * 0.85 / 400) ** 0.5)
    small, large = draw_task(Cell(samples=200), 0), draw_task(Cell(samples=800), 0)
    torch.testing.assert_close(small.train[0], large.train[0][:200], rtol=0, atol=0)


def test_a_network_stops_at_the_loss_and_is_trained_once(tmp_path: Path) -> None:
    arm = SweepArm(Cell(width=32, samples=200), 1)
    (step,) = arm.train(tmp_path)
    folder = tmp_path / arm.folder
    metrics = pd.read_csv(folder / "metrics.csv").iloc[0]
    net, task = mlp((20, 32, 32, 4)), draw_task(arm.cell, arm.seed)
    net.load_state_dict(load_file(folder / f"step_{step}.safetensors"))
    loss = torch.nn.functional.cross_entropy(net(task.train[0]), task.train[1]).item()
    assert loss <= TARGET
    assert metrics["loss"] == pytest.approx(loss, rel=1e-6)
    accuracy = (net(task.test[0]).argmax(1) == task.test[1]).double().mean().item()
    assert metrics["test_accuracy"] == pytest.approx(accuracy, rel=1e-6)
    assert list(arm.train(tmp_path)) == []
    (folder / "metrics.csv").write_text("step,loss\n")  # stopped while it was written
    assert list(arm.train(tmp_path)) == [step]


def test_a_rank_that_follows_the_gap_is_found_and_stays_under_controls() -> None:
    verdict = judge(planted("gap"))
    assert verdict.holds
    assert (
        "over all cells a low local rank goes with a small gap, and the same given"
        in (verdict.text.splitlines()[-1])
    )


def test_a_rank_that_follows_a_control_is_no_longer_shown_under_it() -> None:
    verdict = judge(planted("norm"))
    assert (
        "goes with a small gap, and given the norms and weight decay this is no longer shown"
        in verdict.conclusion
    )


def test_a_rank_that_the_controls_determine_is_said_to_be_unknown_given_them() -> None:
    frame = planted("norm")
    verdict = judge(frame.assign(local_rank=frame["weight_norm"]))
    assert "given the norms and weight decay, nothing can be said" in verdict.conclusion


def test_too_few_cells_to_say_are_not_said_to_show_no_sign() -> None:
    frame = planted("gap")
    one_width = judge(frame[frame["width"] == 32]).conclusion
    assert one_width.endswith("; there are too few cells to say for width")
    few = frame[[cell in STAR for cell in zip(*(frame[axis] for axis in AXES), strict=True)]]
    assert judge(few).conclusion.endswith("setting alone, there are too few cells to say")


def test_the_reverse_is_said_too() -> None:
    verdict = judge(planted("gap", sign=-1.0))
    assert verdict.holds  # a question that is answered
    assert "over all cells a low local rank goes with a large gap" in verdict.conclusion
    assert "the reverse: a low local rank goes with a small gap over all cells" in verdict.text


def test_networks_that_do_not_reach_the_loss_are_left_out_and_counted() -> None:
    frame = planted("gap")
    runs = frame["run"].unique()[:60]
    frame.loc[frame["run"].isin(runs), ["loss", "test_accuracy"]] = [1.0, np.nan]
    verdict = judge(frame)
    assert not verdict.holds
    assert f"measured: {300 - 60} of 300; the others are left out" in verdict.text
    assert verdict.text.endswith("verdict: NOT every claim holds\n")


def test_a_control_that_does_not_reach_the_loss_is_left_out_too() -> None:
    frame = planted("gap")
    is_random = frame["label_noise"] == RANDOM
    bad = frame["run"].isin(frame["run"][is_random].unique()[:3])
    frame.loc[bad, ["loss", "test_accuracy", "local_rank"]] = [1.0, 1.0, 0.0]
    text = judge(frame).text
    assert "25.0% in 9 networks" in text
    assert "higher with random labels in 9 of 9 pairs" in text
    frame.loc[is_random, "loss"] = 1.0
    verdict = judge(frame)
    assert not verdict.holds
    assert verdict.text.count("measured: no network to compare reached the training loss") == 2


def test_a_control_that_is_predicted_is_no_control() -> None:
    frame = planted("gap")
    frame.loc[frame["label_noise"] == RANDOM, "test_accuracy"] = 0.5
    assert not judge(frame).holds
