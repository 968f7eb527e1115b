"""What several commands have in common."""

from pathlib import Path

import numpy as np

from tests.cli.program import invoke

WRONG = "--data-scale 255th: expected a number, or a fraction such as 1/255."


def test_pixels_by_the_factor_that_the_help_names(series: Path, tmp_path: Path) -> None:
    pixels = np.arange(40, dtype=np.uint8).reshape(10, 4)
    np.save(tmp_path / "pixels.npy", pixels)
    np.save(tmp_path / "scaled.npy", pixels * (1 / 255))
    words = ("analyze", str(series), "--points", "5", "--device", "cpu", "--data")
    scaled = invoke(*words, str(tmp_path / "pixels.npy"), "--data-scale", "1/255")
    assert scaled.code == 0
    assert scaled.stdout == invoke(*words, str(tmp_path / "scaled.npy")).stdout
    wrong = invoke(*words, str(tmp_path / "pixels.npy"), "--data-scale", "255th")
    assert (wrong.code, wrong.error) == (2, WRONG)
