"""Rows from before float64 answered requests for float32 are not mixed with those from after."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from localrank_cli.results.record import FLOAT64_THROUGHOUT
from tests.cli.program import Outcome, invoke

CODE = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))

    def forward(self, x):
        return self.layers[2](self.layers[1](self.layers[0](x){asks}).to(x.dtype))
"""


def save(folder: Path, steps: list[int]) -> None:
    for step in steps:
        torch.manual_seed(step)
        layers = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        path = folder / f"step_{step}.pt"
        torch.save({f"layers.{key}": one for key, one in layers.state_dict().items()}, path)


def analyze(folder: Path, steps: list[int], *words: str, name: str = "ranks.csv") -> Outcome:
    """Analyze checkpoints of these steps with the code that is in the folder."""
    save(folder, steps)
    model = ("--model", f"{folder / 'net.py'}:Net", "--data", "normal:4", "--points", "2")
    return invoke("analyze", str(folder), *model, "-o", str(folder / name), *words)


@contextmanager
def earlier_version(monkeypatch: pytest.MonkeyPatch, claimed: str | None = None) -> Iterator[None]:
    """Compute as before float64 answered requests for float32."""
    with monkeypatch.context() as patch:
        patch.setattr(
            "localrank_cli.layers.setting.float64_throughout", lambda *_: nullcontext(None)
        )
        patch.setattr("localrank_cli.run.plan.FLOAT64_THROUGHOUT", claimed)
        yield


def begun_before(folder: Path, asks: str, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Return the table of one checkpoint, made as an earlier version made it."""
    (folder / "net.py").write_text(CODE.format(asks=asks))
    with earlier_version(monkeypatch):
        assert analyze(folder, [1]).code == 0
    return (folder / "ranks.csv").read_bytes()


def test_a_table_with_rows_in_float32_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = begun_before(tmp_path, ".float()", monkeypatch)
    assert b"exact(float32)" in before
    outcome = analyze(tmp_path, [2])
    assert outcome.code == 1
    assert "step_1.pt was partly computed in float32" in outcome.stderr
    assert "--overwrite" in outcome.stderr
    assert (tmp_path / "ranks.csv").read_bytes() == before
    assert analyze(tmp_path, [], "--overwrite").code == 0
    assert b"exact(float32)" not in (tmp_path / "ranks.csv").read_bytes()


def test_a_table_of_float64_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun_before(tmp_path, "", monkeypatch)
    outcome = analyze(tmp_path, [2])
    assert outcome.code == 0, outcome.stderr
    assert "1 of 2 checkpoints are already finished" in outcome.stderr


def test_rows_of_a_checkpoint_that_is_gone_count_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun_before(tmp_path, ".float()", monkeypatch)
    (tmp_path / "step_1.pt").unlink()
    outcome = analyze(tmp_path, [2])
    assert outcome.code == 1
    assert "step_1.pt was partly computed in float32" in outcome.stderr


def shards_of_two_versions(
    folder: Path, asks: str, steps: list[int], first: int, monkeypatch: pytest.MonkeyPatch
) -> Outcome:
    """Merge two shards, of which one is of an earlier version."""
    (folder / "net.py").write_text(CODE.format(asks=asks))
    save(folder, steps)
    for index in range(2):
        with earlier_version(monkeypatch) if index == first else nullcontext():
            assert analyze(folder, [], "--shard", f"{index}/2", name="shards").code == 0
    return invoke("merge", str(folder / "shards"), "-o", str(folder / "merged.csv"))


@pytest.mark.cover(1)
@pytest.mark.parametrize("steps", [[1, 2], [1]], ids=["checkpoints", "points"])
@pytest.mark.parametrize("first", [0, 1])
def test_shards_with_rows_in_float32_are_not_merged_with_later_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int], first: int
) -> None:
    outcome = shards_of_two_versions(tmp_path, ".float()", steps, first, monkeypatch)
    assert outcome.code == 1
    assert "was partly computed in float32, by an earlier version" in outcome.error
    for index in range(2):
        assert f"shard-{index:05d}-of-00002.csv.journal" in outcome.error
    assert not (tmp_path / "merged.csv").exists()


@pytest.mark.parametrize("first", [0, pytest.param(1, marks=pytest.mark.long)])
def test_shards_of_float64_are_merged_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    outcome = shards_of_two_versions(tmp_path, "", [1, 2], first, monkeypatch)
    assert outcome.code == 0, outcome.stderr
    (series,) = json.loads((tmp_path / "merged.csv.json").read_text())["series"]
    assert series["precision"] is None  # not all rows are of the later version
    assert analyze(tmp_path, [3], name="merged.csv").code == 0


def test_parts_of_a_checkpoint_have_one_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if their settings claim the same precision."""
    (tmp_path / "net.py").write_text(CODE.format(asks=".float()"))
    save(tmp_path, [1])
    for index in range(2):
        with earlier_version(monkeypatch, FLOAT64_THROUGHOUT) if index == 0 else nullcontext():
            assert analyze(tmp_path, [], "--shard", f"{index}/2", name="shards").code == 0
    outcome = invoke("merge", str(tmp_path / "shards"), "-o", str(tmp_path / "merged.csv"))
    assert outcome.code == 1
    assert "differ in their method of layer 'layers." in outcome.error
    for index in range(2):
        assert f"shard-{index:05d}-of-00002.csv.journal" in outcome.error


def test_parts_of_a_checkpoint_have_one_set_of_weights(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(CODE.format(asks=""))
    save(tmp_path, [1])
    assert analyze(tmp_path, [], "--shard", "0/2", name="shards").code == 0
    save(tmp_path, [2])
    (tmp_path / "step_2.pt").replace(tmp_path / "step_1.pt")
    assert analyze(tmp_path, [], "--shard", "1/2", name="shards").code == 0
    outcome = invoke("merge", str(tmp_path / "shards"), "-o", str(tmp_path / "merged.csv"))
    assert outcome.code == 1
    assert "hold parts of step_1.pt (step 1)" in outcome.error
    assert "differ in their weights" in outcome.error


@pytest.mark.cover(1)
@pytest.mark.parametrize(("asks", "code"), [(".float()", 1), ("", 0)])
@pytest.mark.parametrize("first", [1, 2])
def test_kept_singular_values_of_two_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asks: str, code: int, first: int
) -> None:
    (tmp_path / "net.py").write_text(CODE.format(asks=asks))
    kept = ("--spectra", str(tmp_path / "kept"), "--overwrite")
    save(tmp_path, [1, 2])
    for step in (1, 2):
        with earlier_version(monkeypatch) if step == first else nullcontext():
            assert analyze(tmp_path, [], *kept, "--steps", str(step)).code == 0
    outcome = invoke("rethreshold", str(tmp_path / "kept"), "-o", str(tmp_path / "new.csv"))
    assert outcome.code == code
    if code:
        assert f"step_{first}.safetensors: was partly computed in float32" in outcome.error
    else:
        (series,) = json.loads((tmp_path / "new.csv.json").read_text())["series"]
        assert series["precision"] is None
