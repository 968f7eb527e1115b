from typing import Any

import pytest
import torch

from localrank_cli.checkpoints.content import epoch_in, integer, step_in


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, 7),
        (7.0, 7),
        ("7", 7),
        (" 7 ", 7),
        (torch.tensor(7), 7),
        (torch.tensor([7]), 7),
        (torch.tensor(7.0), 7),
        (7.5, None),
        (float("nan"), None),
        (float("inf"), None),
        (True, None),
        (torch.tensor(True), None),
        ("9" * 5000, None),  # more digits than Python reads
        ("7.5", None),
        ("seven", None),
        ("", None),
        (None, None),
        ([7], None),
        (torch.tensor([7, 8]), None),
    ],
)
def test_integer(value: Any, expected: int | None) -> None:
    assert integer(value) == expected


def test_the_clearest_key_tells_the_step() -> None:
    assert step_in({"iteration": 3, "step": 2, "global_step": 1}) == (1, "global_step")
    assert step_in({"iteration": 3, "step": 2}) == (2, "step")
    assert step_in({"iter": "3"}) == (3, "iter")


def test_what_is_no_step_is_passed_over() -> None:
    assert step_in({"global_step": None, "step": -1, "iteration": 5}) == (5, "iteration")
    assert step_in({"steps_per_epoch": 100}) == (None, "")
    assert step_in({}) == (None, "")


def test_epoch() -> None:
    assert epoch_in({"epoch": 4}) == 4
    assert epoch_in({"epoch": -1}) is None
    assert epoch_in({"epoch": 0.5}) is None
    assert epoch_in({"step": 4}) is None
