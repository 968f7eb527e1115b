"""Data that the user's code draws: one table holds one draw, or the run is refused."""

from pathlib import Path

import pandas as pd
import pytest

from localrank_cli import analyze
from tests.cli.program import invoke, run
from tests.helpers import save_series

CODE = """
import numpy as np
import torch

def seeded():
    return torch.randn(10, 4)

def restless():
    return np.random.default_rng().normal(size=(10, 4))
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    save_series(tmp_path / "run", (0, 5))
    (tmp_path / "draws.py").write_text(CODE)
    return tmp_path


def words(place: Path, name: str) -> tuple[str, ...]:
    return (str(place / "run"), "--data", f"{place}/draws.py:{name}", "--points", "3")


def test_every_way_of_starting_gives_one_table(place: Path) -> None:
    alone = invoke("analyze", *words(place, "seeded"), "--device", "cpu")
    again = invoke("analyze", *words(place, "seeded"), "--device", "cpu")
    assert alone.stdout == again.stdout
    target = place / "a.csv"
    options = ("--workers", "2", "-o", str(target))
    assert run("submit", *words(place, "seeded"), *options).code == 0
    assert target.read_text() == alone.stdout


def test_a_draw_that_differs_at_every_start_is_not_resumed(place: Path) -> None:
    command = ("analyze", *words(place, "restless"), "--device", "cpu", "-o", str(place / "a.csv"))
    assert invoke(*command, "--last", "1").code == 0
    before = (place / "a.csv").read_bytes()
    outcome = invoke(*command)
    assert outcome.code == 1
    assert "the return value of the code of --data was" in outcome.error
    assert "Seed its generator" in outcome.error
    assert (place / "a.csv").read_bytes() == before


def test_a_draw_that_differs_at_every_start_is_not_divided(place: Path) -> None:
    options = ("--workers", "1", "-o", str(place / "a.csv"))
    outcome = run("submit", *words(place, "restless"), *options)
    assert outcome.code == 1
    assert "the return value of the code of --data" in outcome.error
    assert "seed" in outcome.error


def test_python_gives_the_same_table(place: Path) -> None:
    folder, _, spec, *_ = words(place, "seeded")
    first, second = (analyze(folder, data=spec, points=3) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)


def test_a_draw_that_differs_at_every_call_gives_no_information(place: Path) -> None:
    outcome = invoke("analyze", *words(place, "restless"), "--device", "cpu", "--information")
    assert outcome.code == 1
    assert "returns different values each time it is called" in outcome.error
    assert invoke("analyze", *words(place, "seeded"), "--device", "cpu", "--information").code == 0
