"""Training is reproducible, and saves the checkpoints of its recipe."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from localrank_cli import analyze
from localrank_cli.errors import OutputError
from localrank_cli.experiments.gaussian import TEACHER_RANK, gaussian_task
from localrank_cli.experiments.series import SeriesText, settings_text, train_series
from localrank_cli.experiments.training import LANDMARK, Recipe, Task, batches, mlp, training

RECIPE = Recipe((32, 16, 10), 0.01, 1e-3, 64, 20, seed=1, save_at=(0, 5, 20))


def classes() -> Task:
    """Return two classes that a line separates, learned at once."""
    x = torch.cat([torch.randn(100, 4) + 5, torch.randn(100, 4) - 5])
    y = torch.arange(200) // 100
    return Task(
        (x, y),
        (x, y),
        nn.functional.cross_entropy,
        lambda output, label: (output.argmax(1) == label).double().mean(),
        "accuracy",
    )


def weights(recipe: Recipe) -> list[Tensor]:
    *_, (_, net) = training(recipe, gaussian_task(0))
    return [parameter.detach().clone() for parameter in net.parameters()]


def test_a_seed_decides_everything() -> None:
    first = weights(RECIPE)
    torch.manual_seed(99)
    assert all(torch.equal(a, b) for a, b in zip(first, weights(RECIPE), strict=True))
    other = weights(replace(RECIPE, seed=2))
    assert not torch.equal(first[0], other[0])


def test_decay_shrinks_weights() -> None:
    free, decayed = (weights(replace(RECIPE, weight_decay=decay)) for decay in (0.0, 1.0))
    assert decayed[0].norm() < free[0].norm()


def test_batches_see_everything_once_an_epoch() -> None:
    drawn = batches(10, 3, torch.Generator().manual_seed(0))
    epochs = [torch.cat([next(drawn) for _ in range(3)]).tolist() for _ in range(2)]
    assert all(len(set(epoch)) == 9 for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_the_landmark_is_kept_where_there_are_labels() -> None:
    recipe = Recipe((4, 8, 2), 0.1, 0.0, 50, 100, seed=0, save_at=(0, 100))
    task = classes()
    found = [(step, task.score(net(task.train[0]), task.train[1]).item())
             for step, net in training(recipe, task)]  # fmt: skip
    assert [step for step, _ in found][0::2] == [0, 100]
    landmark, accuracy = found[1]
    assert 0 < landmark < 100
    assert landmark % 10 == 0
    assert accuracy >= LANDMARK


def test_the_teacher_has_its_rank() -> None:
    x, y = gaussian_task(3).train
    solution = torch.linalg.lstsq(x.double(), y.double()).solution
    sigma = torch.linalg.svdvals(solution)
    # Noise of 0.1 over 2,000 pairs leaves about 0.1 sqrt(32 / 2000) = 0.013 beside the teacher.
    assert int((sigma > 0.05).sum()) == TEACHER_RANK
    assert gaussian_task(3).test[0].shape == (2_000, 32)


def test_mlp_names_and_ends() -> None:
    net = mlp((3, 4, 2), nn.Tanh)
    assert [name for name, _ in net.named_parameters()] == [
        "0.weight", "0.bias", "2.weight", "2.bias",
    ]  # fmt: skip
    assert isinstance(net[1], nn.Tanh)
    assert isinstance(net[-1], nn.Linear)


def series(folder: Path) -> None:
    task = gaussian_task(0)
    text = SeriesText(
        settings_text({"data": "inputs.npz", "rtol": [0.1, 0.2]}, {"seed": 1, "kind": 'a "b"'}),
        "inputs.npz",
        {"x": task.train[0][:100].numpy()},
    )
    for _ in train_series(RECIPE, task, text, folder):
        pass


def test_a_series_analyses_itself(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    series(folder)
    frame = analyze(folder)
    assert frame["step"].unique().tolist() == [0, 5, 20]
    assert frame["tolerance"].unique().tolist() == ["rtol=0.1", "rtol=0.2"]
    assert (frame["seed"] == 1).all()
    assert (frame["kind"] == 'a "b"').all()
    with (folder / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["step"]) for row in rows] == [0, 5, 20]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])


def test_a_second_run_replaces_the_first(tmp_path: Path) -> None:
    (tmp_path / "step_3.safetensors").write_bytes(b"old")
    series(tmp_path)
    first = load_file(tmp_path / "step_20.safetensors")
    series(tmp_path)
    second = load_file(tmp_path / "step_20.safetensors")
    assert not (tmp_path / "step_3.safetensors").exists()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Choose another folder with --out"):
        series(tmp_path / "file" / "run")
