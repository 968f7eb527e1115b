from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from localrank_cli.errors import DataError, LocalrankError, SettingsError, UsageError
from localrank_cli.points.source import DataSource, check_source, load_points
from localrank_cli.userimport import CodeError


@pytest.mark.parametrize(
    "text",
    [
        "a.npz",
        "dir.x/a.npy",
        "a.SAFETENSORS",
        "a.pt",
        "a.pth",
        "normal:784",
        "uniform:3x32x32",
        "file.py:points",
        "pkg.mod:make",
        "file.py:Data.points",
    ],
)
def test_known_forms(text: str) -> None:
    check_source(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "digits",
        "a.txt",
        "a.csv",
        "a.py",
        "a.py:",
        ":name",
        "a.py:x-y",
        "normal",
        "normal:",
        "normal:-3",
        "normal:3x",
        "normal:3X3",
        "Normal:3",
        "gauss:3x3",
        "normal:0",
        "uniform:3x0x2",
    ],
)
def test_unknown_forms(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_source(text)
    assert f"--data {text}" in caught.value.what


def test_more_axes_than_a_tensor_has() -> None:
    """A tensor has at most 64 axes, one of which is that of the points."""
    check_source("normal:" + "x".join("1" * 63))
    with pytest.raises(UsageError, match="expected at most 63 axes, got 64"):
        check_source("normal:" + "x".join("1" * 64))


def test_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(140, dtype=np.uint8).reshape(70, 2), y=np.ones(70))
    points, facts = load_points(DataSource(str(tmp_path / "a.npz"), scale=0.5, count=70))
    assert torch.equal(points.tensor, torch.arange(140).reshape(70, 2) * 0.5)
    assert facts["data"] == str(tmp_path / "a.npz")
    assert facts["data_key"] == "x"
    assert isinstance(facts["data_sha256"], str)
    assert len(facts["data_sha256"]) == 64


def test_a_distribution() -> None:
    points, facts = load_points(DataSource("normal:3x2", scale=2.0, count=5, seed=3))
    plain, _ = load_points(DataSource("normal:3x2", count=5, seed=3))
    assert points.tensor.shape == (5, 3, 2)
    assert torch.equal(points.tensor, plain.tensor * 2)
    assert facts == {"data": "normal:3x2"}


CODE = """
import numpy as np, torch
array = np.arange(20.0).reshape(10, 2)
short = np.arange(20, dtype=np.uint16).reshape(10, 2)
tensor = torch.arange(20.0, requires_grad=True).reshape(10, 2)
def make(): return tensor
def broken(): raise ValueError("no\\nnetwork")
def leaves(): raise SystemExit(0)
def wants(size): return tensor
def pair(): return tensor, np.arange(10)
def same(): return [tensor, tensor + 1]
def dataset(): return torch.utils.data.TensorDataset(tensor.detach(), torch.arange(10))
text = "hello"
class Holder:
    points = tensor
"""


@pytest.mark.parametrize("name", ["array", "short", "tensor", "make", "Holder.points"])
def test_code(tmp_path: Path, name: str) -> None:
    (tmp_path / "data.py").write_text(CODE)
    points, facts = load_points(DataSource(f"{tmp_path}/data.py:{name}", count=10))
    assert points.tensor.double().flatten().tolist() == list(range(20))
    assert not points.tensor.requires_grad
    assert "data_sha256" in facts


@pytest.mark.parametrize("name", ["pair", "same", "dataset"])
def test_inputs_and_labels_from_code_are_chosen_by_place(tmp_path: Path, name: str) -> None:
    (tmp_path / "data.py").write_text(CODE)
    source = DataSource(f"{tmp_path}/data.py:{name}", key="0", count=10)
    points, facts = load_points(source)
    assert points.tensor.flatten().tolist() == list(range(20))
    assert facts["data_key"] == "0"
    with pytest.raises(SettingsError, match="several arrays: 0, 1") as caught:
        load_points(replace(source, key=""))
    assert "--data-key 0 if these are inputs and labels" in caught.value.advice
    with pytest.raises(SettingsError, match="has no array 'x'"):
        load_points(replace(source, key="x"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "failed: ValueError: no network"),
        ("leaves", "failed: SystemExit"),
        ("wants", "failed: TypeError"),
        ("text", "returned a str"),
        ("nope", "has no 'nope'"),
    ],
)
def test_code_that_gives_no_points(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "data.py").write_text(CODE)
    with pytest.raises(LocalrankError, match=message) as caught:
        load_points(DataSource(f"{tmp_path}/data.py:{name}"))
    assert isinstance(caught.value, DataError | CodeError)
    assert "--data" in caught.value.what


def test_a_tensor_from_python() -> None:
    data = torch.arange(20.0, requires_grad=True).reshape(10, 2)
    points, facts = load_points(DataSource("", array=data, count=10))
    assert torch.equal(points.tensor, data.double())
    assert not points.tensor.requires_grad
    assert facts["data"] == "from Python"
    _, again = load_points(DataSource("", array=data.clone(), count=10))
    _, other = load_points(DataSource("", array=data + 1, count=10))
    assert facts == again != other  # so that a monitor does not resume with other points


@pytest.mark.parametrize(
    "source",
    [DataSource("normal:3", key="x"), DataSource("", key="x", array=torch.ones(3, 2))],
)
def test_a_key_where_arrays_have_no_names(source: DataSource) -> None:
    with pytest.raises(SettingsError, match="--data-key x"):
        load_points(source)


DRAWS = """
import random
import numpy as np
import torch

here = torch.randn(8, 4)

def torchs():
    return torch.randn(8, 4)

def numpys():
    return np.random.randn(8, 4)

def pythons():
    return np.array([[random.random() for _ in range(4)] for _ in range(8)])

def restless():
    return np.random.default_rng().normal(size=(8, 4))
"""


@pytest.mark.parametrize("name", ["here", "torchs", "numpys", "pythons"])
def test_code_that_draws_gives_the_same_whatever_the_callers_seed(
    tmp_path: Path, name: str
) -> None:
    found = []
    for seed in (1, 2):
        (tmp_path / f"draws_{seed}.py").write_text(DRAWS)
        torch.manual_seed(seed)
        np.random.seed(seed)  # what a user's code draws from
        state = torch.get_rng_state()
        found.append(load_points(DataSource(f"{tmp_path}/draws_{seed}.py:{name}", count=5)))
        assert torch.equal(torch.get_rng_state(), state)
    (first, facts), (second, others) = found
    assert torch.equal(first.tensor, second.tensor)
    assert facts["data_values_sha256"] == others["data_values_sha256"]


def test_the_values_that_code_returns_are_known_by_their_content(tmp_path: Path) -> None:
    (tmp_path / "draws.py").write_text(DRAWS)
    source = DataSource(f"{tmp_path}/draws.py:restless", count=5)
    hashes = {str(load_points(source)[1]["data_values_sha256"]) for _ in range(2)}
    assert len(hashes) == 2
