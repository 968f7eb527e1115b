"""Odd tensors as a weight, a step or data: a right result, or a clear error."""

import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from localrank_cli.checkpoints.reading import read_checkpoint
from localrank_cli.errors import LocalrankError
from localrank_cli.points import containers, files
from localrank_cli.points.source import DataSource, load_points
from localrank_cli.run.compute import hash_of
from tests.cli.program import QUICK, invoke
from tests.faults.odd_tensors import odd_tensors
from tests.helpers import weights


def saved(thing: object, path: Path) -> bool:
    try:
        with warnings.catch_warnings(action="ignore"):  # that a dtype is deprecated
            torch.save(thing, path)
    except (RuntimeError, NotImplementedError, TypeError, AttributeError, ValueError):
        return False
    return True


def same(found: Tensor, expected: Any) -> bool:
    return torch.equal(found.double(), torch.as_tensor(expected).double())


def test_as_weights(tmp_path: Path) -> None:
    """What is read is what was saved."""
    tried = 0
    for name, thing in odd_tensors():
        path = tmp_path / f"step_{tried}.pt"
        if not saved({"0.weight": thing, "0.bias": torch.zeros(3)}, path):
            continue
        tried += 1
        for header_only in (True, False):
            with suppress(LocalrankError):
                state = read_checkpoint(path, header_only=header_only).states[""]
                if not header_only and "0.weight" in state:
                    assert hash_of(state), name
                    if state["0.weight"].is_floating_point():
                        assert same(state["0.weight"], thing), name
    assert tried > 150


@pytest.mark.parametrize("in_parts", [False, True])
def test_as_data(tmp_path: Path, in_parts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if in_parts:
        for module in (containers, files):
            monkeypatch.setattr(module, "AT_ONCE", 0)
    tried = 0
    for name, thing in odd_tensors():
        path = tmp_path / f"x{tried}.pt"
        if not saved({"x": thing}, path):
            continue
        tried += 1
        with suppress(LocalrankError):
            points, _ = load_points(DataSource(str(path), memory=2**20))
            assert same(points.tensor, thing), name
    assert tried > 150


def test_as_a_step(tmp_path: Path) -> None:
    for number, (name, thing) in enumerate(odd_tensors()):
        path = tmp_path / f"{number}.pt"
        if saved({"state_dict": weights(), "global_step": thing}, path):
            with suppress(LocalrankError):
                step = read_checkpoint(path).step
                assert step is None or isinstance(step, int), name


@pytest.mark.parametrize("words", [(), ("--on-error", "skip")])
def test_a_step_without_a_value(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "run").mkdir()
    step = torch.empty((), device="meta")
    torch.save({"state_dict": weights(), "global_step": step}, tmp_path / "run/a.pt")
    outcome = invoke("analyze", str(tmp_path / "run"), *QUICK, *words)
    assert outcome.code == 1
    assert "its entry 'global_step' is no number" in outcome.error


@pytest.mark.parametrize("view", [torch._neg_view, lambda x: torch.complex(x, -x).conj().imag])
def test_negative_views_are_the_weights_that_they_show(tmp_path: Path, view: Any) -> None:
    tables = []
    for name, change in (("plain", lambda x: view(x).clone()), ("view", view)):
        (tmp_path / name / "run").mkdir(parents=True)
        state = {key: change(value) for key, value in weights().items()}
        torch.save(state, tmp_path / name / "run/step_1.pt")
        outcome = invoke("analyze", str(tmp_path / name / "run"), *QUICK, "-q")
        assert outcome.code == 0, outcome.stderr
        tables.append(outcome.stdout)
    assert tables[0] == tables[1]
