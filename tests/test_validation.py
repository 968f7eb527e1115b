"""What comes from outside is read strictly, and what is wrong with it fits one sentence."""

from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from localrank_cli.validation import DEEPEST, complaint, loads


class Inner(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")

    run: str
    points: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    scale: Annotated[float, Field(gt=0)] = 1.0
    is_done: bool = False


class Outer(BaseModel):
    model_config = ConfigDict(strict=True)

    series: list[Inner] = []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "Expecting property name"),
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "the key 'c' appears twice"),
        ('{"a": NaN}', "expected finite numbers, got NaN"),
        ('{"a": -Infinity}', "expected finite numbers, got -Infinity"),
        ('{"a": 1e999}', "expected finite numbers, got 1e999"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "nested more than"),
        ('{"a":' * (DEEPEST + 1) + "1" + "}" * (DEEPEST + 1), "nested more than"),
        ("[" * 1_000_000, "nested more than"),
        ("9" * 5000, "digits"),
        ("", "Expecting value"),
    ],
)
def test_what_json_must_not_be(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        loads(text)


def test_sound_json_is_read_as_it_stands() -> None:
    assert loads('{"a": [1, 2.5, null, "x"]}') == {"a": [1, 2.5, None, "x"]}
    assert loads("[" * DEEPEST + "]" * DEEPEST)
    assert loads("[" + "[]," * 1000 + "[]]") == [[]] * 1001
    assert str(loads("[NaN, 1e999]", non_finite=True)) == "[nan, inf]"


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({}, "series[0].run: is missing"),
        ({"run": 1}, "series[0].run: expected a string, got 1"),
        ({"run": "r", "points": "x"}, "series[0].points: expected a list, got 'x'"),
        (
            {"run": "r", "points": [1]},
            "series[0].points: expected at least 2 items, got a list of 1",
        ),
        (
            {"run": "r", "points": [1] * 3},
            "series[0].points: expected at most 2 items, got a list of 3",
        ),
        ({"run": "r", "points": [1, 2.0]}, "series[0].points[1]: expected an integer, got 2.0"),
        ({"run": "r", "scale": "2"}, "series[0].scale: expected a number, got '2'"),
        ({"run": "r", "scale": 0}, "series[0].scale: expected more than 0, got 0"),
        (
            {"run": "r", "scale": float("nan")},
            "series[0].scale: expected a finite number, got nan",
        ),
        ({"run": "r", "is_done": 1}, "series[0].is_done: expected true or false, got 1"),
        ({"run": "r", "rum": 1}, "series[0].rum: is not a known key"),
        (7, "series[0]: expected keys with values, got 7"),
        ({"run": ["\n"]}, "series[0].run: expected a string, got a list of 1"),
        ({"run": "r", "points": "\n\x1b"}, r"series[0].points: expected a list, got '\n\x1b'"),
        ({"run": 1 << 20000}, "series[0].run: expected a string, got an integer of 20001 bits"),
    ],
)
def test_a_complaint_names_key_expected_and_got(value: Any, sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"series": [value]})
    assert complaint(caught.value) == sentence
