from dataclasses import dataclass

import pytest

from localrank_cli.options import parse
from localrank_cli.options.parse import Part, StepRange, UnfitError


@dataclass(frozen=True)
class At:
    step: int | None


SERIES = [At(step) for step in (0, 1, 5, 10, 100, 1000)]


def steps(part: Part) -> list[int | None]:
    return [item.step for item in part.of([*SERIES, At(None)])]


def step_range(text: str) -> StepRange:
    found = parse.steps(text)
    assert isinstance(found, StepRange)
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1:10", [1, 5, 10]),
        ("10:", [10, 100, 1000]),
        (":5", [0, 1, 5]),
        (":", [0, 1, 5, 10, 100, 1000]),
        ("5", [5]),
        ("0:1000:5", [0, 5, 10, 100, 1000]),
        ("1::9", [1, 10, 100, 1000]),
        (" 1 : 10 ", [1, 5, 10]),
        ("7:9", []),
    ],
)
def test_ranges(text: str, expected: list[int]) -> None:
    assert steps(Part(step_range(text))) == expected


@pytest.mark.parametrize("text", ["", " ", "a", "5:1", "1:2:0", "1:2:3:4", "-1:5", "1.5", "1,2"])
def test_texts_that_are_no_range_are_refused(text: str) -> None:
    with pytest.raises(UnfitError):
        parse.steps(text)


def test_first_by_step_then_every_then_last() -> None:
    assert steps(Part()) == [0, 1, 5, 10, 100, 1000, None]
    assert steps(Part(every=3)) == [0, 10, None]
    assert steps(Part(last=2)) == [1000, None]
    assert steps(Part(StepRange(1, 1000), every=2)) == [1, 10, 1000]
    assert steps(Part(StepRange(1, 1000), every=2, last=2)) == [10, 1000]
    assert steps(Part(last=100)) == [0, 1, 5, 10, 100, 1000, None]
