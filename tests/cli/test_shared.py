"""What several commands have in common."""

from pathlib import Path

import numpy as np
import pytest

from localrank_cli.cli.command import factor, globs
from localrank_cli.errors import UsageError
from tests.cli.program import invoke


def test_patterns_are_taken_apart() -> None:
    assert globs(None) == ()
    assert globs(["a, b*", "!c,"]) == ("a", "b*", "!c")
    with pytest.raises(UsageError, match="--exclude: is empty"):
        globs([" ,"], "--exclude")


@pytest.mark.parametrize(
    ("text", "value"), [("0.5", 0.5), ("1/255", 1 / 255), ("-2e3", -2000.0), ("3 / 4", 0.75)]
)
def test_factors(text: str, value: float) -> None:
    assert factor(text) == value


@pytest.mark.parametrize("text", ["", "x", "1/0", "1/x", "1/2/3", "/"])
def test_what_is_no_factor(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        factor(text)
    assert caught.value.what == f"--data-scale {text}: is no number."


def test_pixels_by_the_factor_that_the_help_names(series: Path, tmp_path: Path) -> None:
    pixels = np.arange(40, dtype=np.uint8).reshape(10, 4)
    np.save(tmp_path / "pixels.npy", pixels)
    np.save(tmp_path / "scaled.npy", pixels * (1 / 255))
    words = ("analyze", str(series), "--points", "5", "--device", "cpu", "--data")
    scaled = invoke(*words, str(tmp_path / "pixels.npy"), "--data-scale", "1/255")
    assert scaled.code == 0
    assert scaled.stdout == invoke(*words, str(tmp_path / "scaled.npy")).stdout
    wrong = invoke(*words, str(tmp_path / "pixels.npy"), "--data-scale", "255th")
    assert (wrong.code, wrong.error.split(". ")[0]) == (2, "--data-scale 255th: is no number")
