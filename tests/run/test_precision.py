"""Rows from before float64 answered requests for float32 are not mixed with those from after."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

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


def analyze(folder: Path, steps: list[int], *words: str) -> Outcome:
    """Analyze checkpoints of these steps with the code that is in the folder."""
    for step in steps:
        torch.manual_seed(step)
        layers = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        path = folder / f"step_{step}.pt"
        torch.save({f"layers.{key}": one for key, one in layers.state_dict().items()}, path)
    model = ("--model", f"{folder / 'net.py'}:Net", "--data", "normal:4", "--points", "2")
    return invoke("analyze", str(folder), *model, "-o", str(folder / "ranks.csv"), *words)


def begun_before(folder: Path, asks: str, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Return the table of one checkpoint, made as an earlier version made it."""
    (folder / "net.py").write_text(CODE.format(asks=asks))
    with monkeypatch.context() as patch:
        patch.setattr(
            "localrank_cli.layers.setting.float64_throughout", lambda *_: nullcontext(None)
        )
        patch.setattr("localrank_cli.run.plan.FLOAT64_THROUGHOUT", None)
        assert analyze(folder, [1]).code == 0
    return (folder / "ranks.csv").read_bytes()


def test_a_table_with_rows_in_float32_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = begun_before(tmp_path, ".float()", monkeypatch)
    assert b"exact(float32)" in before
    outcome = analyze(tmp_path, [2])
    assert outcome.code == 1
    assert "step_1.pt was computed in part in float32" in outcome.stderr
    assert "--overwrite" in outcome.stderr
    assert (tmp_path / "ranks.csv").read_bytes() == before
    assert analyze(tmp_path, [], "--overwrite").code == 0
    assert b"exact(float32)" not in (tmp_path / "ranks.csv").read_bytes()


def test_a_table_of_float64_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun_before(tmp_path, "", monkeypatch)
    outcome = analyze(tmp_path, [2])
    assert outcome.code == 0, outcome.stderr
    assert "1 of 2 checkpoints are finished already" in outcome.stderr
