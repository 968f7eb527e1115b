"""Standard streams that are closed, and readers that go away, with and without a file."""

import os
from functools import partial
from pathlib import Path

import pytest

from localrank_cli.results.columns import header
from tests.cli.program import QUICK, invoke, run, run_cold
from tests.helpers import entries, save_series


def test_stderr_closed_and_data_on_stdout(tmp_path: Path) -> None:
    series = save_series(tmp_path / "run")
    outcome = run("analyze", str(series), *QUICK, before=partial(os.close, 2))
    assert outcome.code == 0
    assert outcome.stdout == invoke("analyze", str(series), *QUICK).stdout


def test_stderr_closed_and_an_error(tmp_path: Path) -> None:
    """No message can be printed; the status shows the failure."""
    series = save_series(tmp_path / "run")
    (series / "step_7.pt").write_bytes(b"torn")
    outcome = run("analyze", str(series), *QUICK, before=partial(os.close, 2))
    assert (outcome.code, outcome.stdout) == (1, "")


@pytest.mark.parametrize(
    ("first", "end"), [(1, 2), (2, 3), (1, 3)], ids=["stdout", "stderr", "both"]
)
def test_with_a_file_no_stream_is_needed(tmp_path: Path, first: int, end: int) -> None:
    series = save_series(tmp_path / "run")
    (tmp_path / "out").mkdir()
    target = tmp_path / "out/ranks.csv"
    words = ("analyze", str(series), *QUICK, "-o", str(target))
    assert run(*words, before=partial(os.closerange, first, end)).code == 0
    assert target.read_text().splitlines()[0] == ",".join(header())
    assert entries(target.parent) == ["ranks.csv", "ranks.csv.journal", "ranks.csv.json"]


def test_both_closed_and_data_on_stdout(tmp_path: Path) -> None:
    """Results do not vanish with the status of success."""
    series = save_series(tmp_path / "run")
    assert run("analyze", str(series), *QUICK, before=partial(os.closerange, 1, 3)).code == 1


def test_stderr_full(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    series = save_series(tmp_path / "run")
    with Path("/dev/full").open("w") as full:
        outcome = run_cold("analyze", str(series), *QUICK, "-v", stderr=full)
    assert outcome.code == 0
    assert len(outcome.stdout.splitlines()) == 7
