"""Commands built from tables of options."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from localrank_cli.cli.command import shared_names, words_of
from localrank_cli.cli.main import app
from tests.cli.program import invoke


@pytest.mark.parametrize(
    "options",
    [
        ["--information"],
        ["--no-information"],
        ["--rtol", "0.1", "--rtol", "eps", "--input-slice", ":,8:24", "--sigma-1", "full"],
        ["--input-slice", "", "--labels-key", "y"],
        [],
    ],
)
def test_words_are_returned_as_typed(options: list[str]) -> None:
    group: Any = typer.main.get_command(app)
    command = group.commands["analyze"]
    with command.make_context("analyze", ["/run", *options]) as context:
        assert words_of(context, shared_names()) == ["/run", *options]


def test_pixels_by_the_factor_that_the_help_names(series: Path, tmp_path: Path) -> None:
    pixels = np.arange(40, dtype=np.uint8).reshape(10, 4)
    np.save(tmp_path / "pixels.npy", pixels)
    np.save(tmp_path / "scaled.npy", pixels * (1 / 255))
    words = ("analyze", str(series), "--points", "5", "--device", "cpu", "--data")
    scaled = invoke(*words, str(tmp_path / "pixels.npy"), "--data-scale", "1/255")
    assert scaled.code == 0
    assert scaled.stdout == invoke(*words, str(tmp_path / "scaled.npy")).stdout
    wrong = invoke(*words, str(tmp_path / "pixels.npy"), "--data-scale", "255th")
    message = "--data-scale 255th: expected a number, or a fraction such as 1/255."
    assert (wrong.code, wrong.error) == (2, message)
