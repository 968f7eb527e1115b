from typing import Any

import pytest
import torch

from localrank_cli.checkpoints.content import epoch_in, integer, step_in
from localrank_cli.checkpoints.names import NO_NUMBER, TOO_LARGE


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
        # Numbers that are no step are kept, so that the file is refused for them.
        (float("nan"), NO_NUMBER),
        (float("inf"), TOO_LARGE),
        (1e300, int(1e300)),
        (-1.0, -1),
        (torch.tensor(float("nan")), NO_NUMBER),
        (torch.empty((), device="meta"), NO_NUMBER),
        (torch.tensor(2**63, dtype=torch.uint64), 2**63),
        (torch.tensor(-3, dtype=torch.int8), -3),
        ("9" * 5000, TOO_LARGE),  # more digits than Python reads
        ("-5", -5),
        ("1_000", 1000),
        ("1,000", 1000),
        ("1_00", None),
        (torch.tensor(5.0, dtype=torch.bfloat16), 5),
        (torch.tensor(5.0).to(torch.float8_e4m3fn), 5),
        (torch.tensor(5 + 0j), None),
        (True, None),
        (torch.tensor(True), None),
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


def test_the_clearest_key_decides_the_step() -> None:
    assert step_in({"iteration": 3, "step": 2, "global_step": 1}) == (1, "global_step")
    assert step_in({"iteration": 3, "step": 2}) == (2, "step")
    assert step_in({"iter": "3"}) == (3, "iter")


def test_values_that_are_not_steps_are_ignored() -> None:
    assert step_in({"global_step": None, "step": -1, "iteration": 5}) == (5, "iteration")
    assert step_in({"steps_per_epoch": 100}) == (None, "")
    assert step_in({}) == (None, "")


def test_an_invalid_step_is_not_replaced_by_another() -> None:
    assert step_in({"global_step": 2**63, "step": 5}) == (2**63, "global_step")
    assert step_in({"global_step": float("nan"), "step": 5}) == (NO_NUMBER, "global_step")
    assert step_in({"global_step": -1}) == (-1, "global_step")


def test_epoch() -> None:
    assert epoch_in({"epoch": 4}) == 4
    assert epoch_in({"epoch": -1}) is None
    assert epoch_in({"epoch": 0.5}) is None
    assert epoch_in({"step": 4}) is None
