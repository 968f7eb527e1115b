"""What the sample checkpoints are there to show, and spot checks against numpy alone."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from safetensors.numpy import load_file

from localrank_cli import analyze

SAMPLES = Path(__file__).resolve().parents[1] / "sample_checkpoints"
Array = npt.NDArray[np.float64]


def checkpoint(name: str, step: int) -> Path:
    return SAMPLES / name / f"step_{step}.safetensors"


def ranks(frame: pd.DataFrame, layer: int) -> "pd.Series[float]":
    """Local rank over steps; layers are counted from 1 as in the issue."""
    chosen = frame[frame["layer_index"] == layer - 1]
    return chosen.set_index("step")["local_rank"]


def steps(name: str) -> list[int]:
    found = sorted(int(path.stem.split("_")[1]) for path in (SAMPLES / name).glob("step_*"))
    assert found
    return found


@pytest.fixture(scope="module")
def mnist() -> pd.DataFrame:
    return analyze(SAMPLES / "mnist_mlp")


@pytest.fixture(scope="module")
def teacher() -> pd.DataFrame:
    return analyze(SAMPLES / "gaussian_teacher")


def test_the_series_are_as_long_as_promised() -> None:
    assert len(steps("mnist_mlp")) >= 14
    assert {60, 800} <= set(steps("mnist_mlp"))
    assert all(path.stat().st_size for path in SAMPLES.rglob("*") if path.is_file())
    size = sum(p.stat().st_size for p in SAMPLES.rglob("*") if "__pycache__" not in p.parts)
    assert size <= 16 * 2**20


@pytest.mark.parametrize("name", ["mnist_mlp", "mnist_mlp_no_decay", "gaussian_teacher"])
def test_each_has_what_belongs_to_it(name: str) -> None:
    there = {path.name for path in (SAMPLES / name).iterdir()}
    assert {"localrank.toml", "metrics.csv", "README.md"} <= there
    with (SAMPLES / name / "metrics.csv").open() as stream:
        recorded = {int(row["step"]) for row in csv.DictReader(stream)}
    assert set(steps(name)) <= recorded


def test_weight_decay_lets_the_rank_fall(mnist: pd.DataFrame) -> None:
    assert (mnist["tolerance"] == "atol=0.01").all()
    assert (mnist["n_points"] == 64).all()
    assert (mnist["status"] == "ok").all()
    assert mnist["step"].drop_duplicates().tolist() == steps("mnist_mlp")
    second, third = ranks(mnist, 2), ranks(mnist, 3)
    assert second.max() > 60
    assert second.iloc[-1] < 30
    assert third.max() > 45
    assert third.iloc[-1] < 15


def test_without_it_the_rank_stays() -> None:
    name = "mnist_mlp_no_decay"
    with (SAMPLES / name / "metrics.csv").open() as stream:
        accuracy = {
            int(row["step"]): float(row["train_accuracy"]) for row in csv.DictReader(stream)
        }
    learned = [step for step in steps(name) if accuracy[step] >= 0.99]
    assert len(learned) >= 3
    frame = analyze(SAMPLES / name)
    for layer in (2, 3):
        found = ranks(frame, layer).loc[learned]
        # From the first checkpoint at 99 % on, no later one is more than 5 % below an earlier one.
        assert (found >= 0.95 * found.cummax()).all()


def test_the_teachers_rank_is_found(teacher: pd.DataFrame) -> None:
    assert (teacher["tolerance"] == "rtol=0.1").all()
    for layer in (2, 3):
        last = teacher[(teacher["layer_index"] == layer - 1)].iloc[-1]
        assert (last["local_rank"], last["rank_min"], last["rank_max"]) == (3, 3, 3)
        assert ranks(teacher, layer).max() > 6


def closed_form(weights: dict[str, Array], point: Array) -> Iterator[Array]:
    """J_l = W_l D_{l-1} W_{l-1} ... D_1 W_1 with D the 0/1 mask of the active units."""
    jacobian, hidden = np.eye(point.size), point
    for name in ("0", "2", "4", "6"):
        if f"{name}.weight" not in weights:
            return
        weight, bias = (weights[f"{name}.{kind}"].astype(np.float64) for kind in ("weight", "bias"))
        jacobian, hidden = weight @ jacobian, weight @ hidden + bias
        yield jacobian
        jacobian, hidden = (hidden > 0)[:, None] * jacobian, np.maximum(hidden, 0)


@pytest.mark.parametrize(
    ("name", "step", "data", "key", "scale", "rule"),
    [
        ("mnist_mlp", 60, "digits.npz", "images", 1 / 255, {"atol": 0.01}),
        ("mnist_mlp", 10500, "digits.npz", "images", 1 / 255, {"atol": 0.01}),
        ("gaussian_teacher", 500, "inputs.npz", None, 1.0, {"rtol": 0.1}),
        ("gaussian_teacher", 12000, "inputs.npz", None, 1.0, {"rtol": 0.1}),
    ],
)
def test_against_numpy(
    name: str, step: int, data: str, key: str | None, scale: float, rule: dict[str, float]
) -> None:
    count = 3
    path = SAMPLES / name / data
    with np.load(path) as file:
        everything = file[key or file.files[0]].astype(np.float64) * scale
    # All the data there is, cut short: the points then are known without the tool's own draw.
    points = everything[:count].reshape(count, -1)
    frame = analyze(checkpoint(name, step), data=points, points=count)
    weights = load_file(checkpoint(name, step))
    counts: dict[int, list[int]] = {}
    effective: dict[int, list[float]] = {}
    for point in points:
        for index, jacobian in enumerate(closed_form(weights, point)):
            sigma = np.linalg.svd(jacobian, compute_uv=False)
            tol = rule.get("atol", 0) or rule["rtol"] * sigma[0]
            # Equality is promised where no value is within the rounding of the tolerance.
            assert np.abs(sigma - tol).min() > 1e-9 * sigma[0]
            counts.setdefault(index, []).append(int((sigma > tol).sum()))
            share = sigma[sigma > 0] / sigma.sum()
            effective.setdefault(index, []).append(float(np.exp(-(share * np.log(share)).sum())))
    for _, row in frame.iterrows():
        expected = counts[row["layer_index"]]
        assert row["local_rank"] == np.mean(expected)
        assert (row["rank_min"], row["rank_max"]) == (min(expected), max(expected))
        wanted = np.mean(effective[row["layer_index"]])
        assert row["effective_rank"] == pytest.approx(wanted, rel=1e-6)
    assert len(frame) == len(counts)
