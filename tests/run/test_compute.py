from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from localrank_cli.errors import LocalrankError, MismatchError, UnreadableError
from localrank_cli.options.table import AnalyzeOptions
from localrank_cli.results.columns import header
from localrank_cli.results.record import CheckpointRecord
from localrank_cli.run.compute import run_plan
from localrank_cli.run.plan import Plan, make_plan
from tests.helpers import ignore, save_series, weights


def make(*folders: Path, **options: Any) -> Plan:
    given: Any = {"data": "normal:4", "device": "cpu", "points": 5} | options
    return make_plan(AnalyzeOptions(checkpoints=folders, **given), ignore)


def results(
    *folders: Path, notes: list[str] | None = None, **options: Any
) -> list[CheckpointRecord]:
    return list(run_plan(make(*folders, **options), (notes if notes is not None else []).append))


def test_order_and_columns(tmp_path: Path) -> None:
    folders = [save_series(tmp_path / name, (10, 9, 100)) for name in "ba"]
    found = results(*folders, atol=(0.5, 0.1), rtol=(0.3,))
    assert [(result.run, result.step) for result in found] == [
        (run, step) for run in "ab" for step in (9, 10, 100)
    ]
    rows = [row for result in found for row in result.rows]
    assert all(tuple(row) == header() for row in rows)
    assert [(row["layer_index"], row["tolerance"]) for row in rows[:6]] == [
        (index, tolerance) for index in (0, 1) for tolerance in ("atol=0.5", "atol=0.1", "rtol=0.3")
    ]
    assert rows[0]["checkpoint"] == "step_9.safetensors"


def test_nothing_is_computed_before_it_is_asked_for(tmp_path: Path) -> None:
    planned = make(save_series(tmp_path))
    running = run_plan(planned, ignore)
    assert next(running).step == 0
    (tmp_path / "step_5.safetensors").unlink()
    with pytest.raises(UnreadableError, match=r"step_5\.safetensors"):
        next(running)


def test_the_order_of_files_does_not_matter(tmp_path: Path) -> None:
    save_series(tmp_path, (1, 2, 3))
    files = [tmp_path / f"step_{step}.safetensors" for step in (3, 1, 2)]
    whole = [row for result in results(tmp_path) for row in result.rows]
    named = [row for result in results(*files) for row in result.rows]
    assert whole == named


def test_one_checkpoint_alone_gives_what_it_gives_among_others(tmp_path: Path) -> None:
    save_series(tmp_path, (1, 2, 3))
    whole = {result.step: result.rows for result in results(tmp_path)}
    (alone,) = results(tmp_path / "step_2.safetensors")
    assert alone.rows == whole[2]


def test_nan_weights_are_a_result(tmp_path: Path) -> None:
    save_series(tmp_path, (0, 10))
    for step, key in ((5, "0.weight"), (6, "2.weight")):
        state = weights()
        state[key] = torch.full_like(state[key], float("nan"))
        save_file(state, tmp_path / f"step_{step}.safetensors")
    found = {result.step: result for result in results(tmp_path)}
    assert [found[step].is_finite for step in (0, 5, 6, 10)] == [True, False, False, True]
    assert [row["status"] for row in found[5].rows] == ["nonfinite", "nonfinite"]
    assert [row["status"] for row in found[6].rows] == ["ok", "nonfinite"]
    broken = found[6].rows[1]
    assert (broken["n_points"], broken["n_failed"]) == (0, 5)
    assert broken["local_rank"] is None
    assert "5 of 5 points" in str(broken["message"])


def test_the_first_checkpoint_may_be_the_broken_one(tmp_path: Path) -> None:
    state = {key: torch.full_like(value, float("inf")) for key, value in weights().items()}
    save_file(state, tmp_path / "step_0.safetensors")
    save_series(tmp_path, (1,))
    found = results(tmp_path)
    assert [result.is_finite for result in found] == [False, True]


def test_equal_weights_are_noted(tmp_path: Path) -> None:
    notes: list[str] = []
    for step in (1, 2):
        save_file(weights(), tmp_path / f"step_{step}.safetensors")
    results(tmp_path, notes=notes)
    assert notes == [
        "step_2.safetensors (step 2) holds the same weights as step_1.safetensors (step 1)"
    ]


def test_facts_for_the_manifest(tmp_path: Path) -> None:
    save_series(tmp_path, (1, 2))
    torch.save(weights(seed=1), tmp_path / "step_3.pt")
    first, second, third = results(tmp_path)
    assert first.facts["bytes"] == (tmp_path / "step_1.safetensors").stat().st_size
    hashes = [str(result.facts["sha256_of_tensors"]) for result in (first, second, third)]
    assert len(hashes[0]) == 64
    assert hashes[0] != hashes[1]
    assert hashes[0] == hashes[2]  # of the tensors, whatever the format


def test_tied_names_that_differ_stop_the_run_with_the_place(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4, bias=False)
            self.b = nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.b(torch.tanh(self.a(x)))
            return out

    torch.save({"a.weight": torch.eye(4)}, tmp_path / "step_1.pt")
    torch.save({"a.weight": torch.eye(4), "b.weight": torch.ones(4, 4)}, tmp_path / "step_2.pt")
    running = run_plan(make(tmp_path, model=Tied), ignore)
    assert [row["local_rank"] for row in next(running).rows] == [4, 4]
    with pytest.raises(MismatchError, match=r"step_2\.pt \(step 2\): a\.weight and b\.weight"):
        next(running)


def test_an_error_in_the_numbers_names_file_and_step(tmp_path: Path) -> None:
    class Moody(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.bias[0] > 0:  # at the second checkpoint
                return super().forward(x) + torch.rand(3, dtype=x.dtype)
            return super().forward(x)

    for step, bias in ((1, -1.0), (2, 1.0)):
        state = {"weight": torch.ones(3, 4), "bias": torch.full((3,), bias)}
        torch.save(state, tmp_path / f"step_{step}.pt")

    def model() -> nn.Module:
        return nn.Sequential(Moody(4, 3))

    for step in (1, 2):
        path = tmp_path / f"step_{step}.pt"
        torch.save({f"0.{k}": v for k, v in torch.load(path).items()}, path)
    running = run_plan(make(tmp_path, model=model), ignore)
    next(running)
    with pytest.raises(LocalrankError, match=r"step_2\.pt \(step 2\): the model is random"):
        next(running)
