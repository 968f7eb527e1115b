import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from localrank_cli.checkpoints import reading
from localrank_cli.checkpoints.reading import Twins, read_checkpoint
from localrank_cli.errors import UnreadableError
from tests.helpers import weights


def same(first: Path, second: Path) -> bool:
    return Twins("raw", trust_pickle=False).same(first, second)


def test_links_are_the_same_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(b"not a checkpoint")
    (tmp_path / "b.pt").symlink_to(path)
    os.link(path, tmp_path / "c.pt")
    assert same(path, tmp_path / "b.pt")
    assert same(path, tmp_path / "c.pt")


def test_equal_tensors_in_other_wrapping(tmp_path: Path) -> None:
    torch.save({"state_dict": weights(), "loss": 1.0}, tmp_path / "a.ckpt")
    save_file(weights(), tmp_path / "b.safetensors")
    assert same(tmp_path / "a.ckpt", tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"2.bias": torch.tensor([1.0, 2.0])},
        {"2.bias": weights()["2.bias"].double()},
        {"2.bias": weights()["2.bias"][:1]},
        {"3.bias": torch.ones(1)},
    ],
)
def test_one_difference_suffices(tmp_path: Path, change: dict[str, torch.Tensor]) -> None:
    torch.save(weights(), tmp_path / "a.pt")
    torch.save(weights() | change, tmp_path / "b.pt")
    assert not same(tmp_path / "a.pt", tmp_path / "b.pt")


@pytest.mark.parametrize("key", ["model", "best"])
def test_a_set_beside_equal_statistics_counts(tmp_path: Path, key: str) -> None:
    beside = {"stats.cov": torch.eye(3)}
    for name, seed in (("a", 0), ("b", 1), ("c", 0)):
        torch.save({**beside, key: weights(seed=seed)}, tmp_path / f"{name}.pt")
    assert not same(tmp_path / "a.pt", tmp_path / "b.pt")
    assert same(tmp_path / "a.pt", tmp_path / "c.pt")


def test_nan_is_equal_to_itself(tmp_path: Path) -> None:
    state = weights() | {"2.bias": torch.tensor([float("nan"), 1.0])}
    torch.save(state, tmp_path / "a.pt")
    torch.save({**state, "2.bias": state["2.bias"].clone()}, tmp_path / "b.pt")
    assert same(tmp_path / "a.pt", tmp_path / "b.pt")


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "a.pt")
    with pytest.raises(UnreadableError, match=r"b\.pt: cannot be read \(No such file"):
        same(tmp_path / "a.pt", tmp_path / "b.pt")


def test_the_second_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(4):
        torch.save(weights(seed=seed), tmp_path / f"{seed}.pt")
    read = []

    def watch(path: Path, **keywords: Any) -> Any:
        read.append(path.stem)
        return read_checkpoint(path, **keywords)

    monkeypatch.setattr(reading, "read_checkpoint", watch)
    comparing = Twins("raw", trust_pickle=False)
    assert not any(comparing.same(tmp_path / f"{n}.pt", tmp_path / "3.pt") for n in range(3))
    assert sorted(read) == ["0", "1", "2", "3"]
