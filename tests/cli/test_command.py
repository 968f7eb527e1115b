"""The words of a command line, for the workers of one analysis."""

import pytest
import typer

from localrank_cli.cli.command import shared_names, words_of
from localrank_cli.cli.main import app


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
    command = typer.main.get_command(app).commands["analyze"]  # type: ignore[attr-defined]  # of a group
    with command.make_context("analyze", ["/run", *options]) as context:
        assert words_of(context, shared_names()) == ["/run", *options]
