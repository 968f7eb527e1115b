"""Every fault of a file: one clear line, the promised status, and nothing finished is lost."""

from pathlib import Path

import pytest

from tests.cli.program import Outcome, invoke
from tests.faults.cases import FAULTS, HARMLESS, Fault
from tests.helpers import entries, save_series

ENDINGS = ("ranks.csv", "ranks.csv.json", "ranks.csv.journal")


def analyze(run: Path, fault: Fault, *words: str) -> Outcome:
    data = ("--data", fault.data) if fault.data else ()
    target = str(run.parent / "ranks.csv")
    return invoke(
        "analyze", str(run), *data, "--device", "cpu", "--points", "5", "-o", target, *words
    )


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A series of three checkpoints, all of them in a table."""
    run = save_series(tmp_path / "run")
    assert analyze(run, Fault(lambda _: None, "")).code == 0
    return run


@pytest.mark.timeout(60)  # never a hang
@pytest.mark.parametrize("name", FAULTS)
def test_one_clear_line_and_nothing_is_lost(finished: Path, name: str) -> None:
    fault = FAULTS[name]
    kept = ("ranks.csv", "ranks.csv.journal")
    before = {ending: (finished.parent / ending).read_bytes() for ending in kept}
    words = fault.spoil(finished) or ()
    outcome = analyze(finished, fault, *words)
    assert outcome.code == fault.status, outcome.stderr
    assert fault.says in outcome.error
    assert str(finished.parent) in outcome.error  # which file it is
    assert outcome.stdout == ""
    assert not (finished / "marker").exists()  # no code ran
    assert {ending: (finished.parent / ending).read_bytes() for ending in kept} == before
    assert set(entries(finished.parent)) <= {*ENDINGS, "run", "x.pt", "x.npy"}


@pytest.mark.parametrize("name", [name for name in FAULTS if "localrank.toml" not in name])
def test_skipped_where_that_is_asked_for(finished: Path, name: str) -> None:
    """A checkpoint with a fault has a row with the message; the others are as before."""
    fault = FAULTS[name]
    table = (finished.parent / "ranks.csv").read_text().splitlines()
    words = fault.spoil(finished) or ()
    outcome = analyze(finished, fault, *words, "--on-error", "skip")
    now = (finished.parent / "ranks.csv").read_text().splitlines()
    assert [line for line in now if ",ok," in line] == table[1:]
    if outcome.code == 1:  # of the data or an index, seen before any checkpoint is read
        assert fault.says in outcome.error
        return
    assert outcome.code == 3, outcome.stderr
    assert "left out: " in outcome.stderr
    assert len(now) == len(table) + 1


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HARMLESS)
def test_unusual_but_valid_files_are_read(finished: Path, name: str) -> None:
    fault = HARMLESS[name]
    fault.spoil(finished)
    outcome = analyze(finished, fault)
    assert outcome.code == 0, outcome.stderr
    assert "\x1b" not in outcome.stderr
    others = [
        line for line in outcome.stderr.splitlines() if not line.startswith("localrank: note:")
    ]
    assert others == []
