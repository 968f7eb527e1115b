"""`localrank show` as a command."""

import os
from pathlib import Path

import numpy as np
import pytest

from tests.cli.program import invoke, run
from tests.cli.test_terminal import ESCAPE, at_terminal
from tests.figures.tables import many, table


@pytest.fixture
def ranks(tmp_path: Path) -> Path:
    """A table of two runs and two tolerances."""
    frame = table(runs=("decay", "none"), tolerances=("atol=0.01", "rtol=eps"))
    frame.to_csv(tmp_path / "ranks.csv", index=False)
    return tmp_path / "ranks.csv"


def test_summary_and_chart_for_each_run_and_tolerance(ranks: Path) -> None:
    outcome = invoke("show", str(ranks))
    assert (outcome.code, outcome.stderr) == (0, "")
    lines = outcome.stdout.splitlines()
    titles = [line for line in lines if "(64 points" in line]
    assert titles == [
        f"{name}: local rank at {tolerance} (64 points, steps 0 to 1000)"
        for name in ("decay", "none")
        for tolerance in ("atol=0.01", "rtol=eps")
    ]
    assert lines.count("local rank at atol=0.01") == 2
    assert lines.count("a layer0   b layer1   c layer2") == 4
    assert max(map(len, lines)) <= 80


def test_one_tolerance_some_layers_another_measure(ranks: Path) -> None:
    words = ("--tolerance", "rtol=eps", "--layers", "!layer1", "--y", "effective_rank")
    text = invoke("show", str(ranks), *words).stdout
    assert "atol" not in text
    assert "layer1" not in text
    assert text.splitlines().count("effective rank") == 2


def test_the_summary_is_that_of_analyze(tmp_path: Path) -> None:
    table(layers=1).to_csv(tmp_path / "a.csv", index=False)
    row = invoke("show", str(tmp_path / "a.csv")).stdout.splitlines()[3].split()
    assert row[:4] == ["layer0", "40", "x", "50"]
    assert row[4:8] == ["10.0", "13.0", "1000", "13.0"]


def test_plain_ascii_in_a_log(ranks: Path) -> None:
    outcome = run("show", str(ranks), env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert outcome.code == 0
    assert outcome.stdout.isascii()
    assert "+--" in outcome.stdout
    assert "\x1b" not in run("show", str(ranks)).stdout


def test_at_a_terminal(ranks: Path) -> None:
    status, screen, stderr = at_terminal("show", str(ranks), columns=60, NO_COLOR="1")
    assert (status, stderr) == (0, "")
    assert max(map(len, ESCAPE.sub("", screen).splitlines())) <= 62


def test_failed_rows_get_a_note_and_are_not_drawn(tmp_path: Path) -> None:
    frame = table(layers=1)
    frame.loc[1, ["local_rank", "effective_rank"]] = np.nan
    frame.loc[1, "status"] = "nonfinite"
    frame.to_csv(tmp_path / "a.csv", index=False)
    outcome = invoke("show", str(tmp_path / "a.csv"))
    assert outcome.code == 0
    assert "note: 1 of 4 rows are left out" in outcome.stderr
    chart = outcome.stdout.split("local rank at atol=0.01\n")[-1]
    assert sum(line.count("a") for line in chart.splitlines()[:17]) == 3


def test_infinite_values_get_a_note_and_are_not_drawn(tmp_path: Path) -> None:
    frame = table(layers=1)
    frame.loc[1, "local_rank"] = np.inf
    frame.to_csv(tmp_path / "a.csv", index=False)
    outcome = invoke("show", str(tmp_path / "a.csv"))
    assert (outcome.code, outcome.stderr) == (
        0,
        "localrank: note: the chart leaves out infinite values of local_rank: 1\n",
    )
    chart = outcome.stdout.split("local rank at atol=0.01\n")[-1]
    assert sum(line.count("a") for line in chart.splitlines()[:17]) == 3


def test_many_layers(tmp_path: Path) -> None:
    frame = many(30, 5).assign(effective_rank=1.0, n_in=300, n_out=300)
    frame.to_csv(tmp_path / "a.csv", index=False)
    outcome = invoke("show", str(tmp_path / "a.csv"))
    assert outcome.code == 0
    assert "24 of 30 layers" in outcome.stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--y", "nope"], 1, "--y nope: no such column"),
        (["--y", "layer"], 1, "--y layer: holds no numbers"),
        (["--tolerance", "atol=1"], 1, "--tolerance atol=1: not in the table"),
        (["--layers", "conv"], 1, "--layers conv: matches no layer"),
        (["--layers", ","], 2, "--layers ,: is empty"),
    ],
)
def test_unknown_choices_are_refused(
    ranks: Path, words: list[str], code: int, message: str
) -> None:
    outcome = invoke("show", str(ranks), *words)
    assert (outcome.code, outcome.stdout) == (code, "")
    assert message in outcome.error


def test_files_that_are_not_tables(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("step,x\n1,2\n")
    outcome = invoke("show", str(tmp_path / "a.csv"))
    assert outcome.code == 1
    assert "has no column run, layer" in outcome.error
    table().assign(odd=-1.0).to_csv(tmp_path / "b.csv", index=False)
    assert "has negative values" in invoke("show", str(tmp_path / "b.csv"), "--y", "odd").error
    table().assign(status="unreadable").to_csv(tmp_path / "c.csv", index=False)
    assert "no row whose status is ok" in invoke("show", str(tmp_path / "c.csv")).error
