"""`--measures counts`: every column but the effective rank, however a run is divided or resumed."""

import json
from pathlib import Path

import pytest

from localrank_cli.measures.table import MEASURES
from tests.cli.program import QUICK, Outcome, invoke, rows

NEEDING_ALL = [name for name, measure in MEASURES.items() if measure.needs_every_value]
LEFT_OUT = {column for name in NEEDING_ALL for column in (name, f"{name}_se")}
COUNTS = ("--measures", "counts")
# Rounding of another route, as the contract promises.
CLOSE = 1e-6


def analyze(series: Path, *words: str) -> Outcome:
    outcome = invoke("analyze", str(series), *QUICK, *words)
    assert outcome.code == 0, outcome.stderr
    return outcome


def assert_counts(found: str, whole: str) -> None:
    """The rows of an analysis with every measure, without the effective rank."""
    one, other = rows(found), rows(whole)
    assert len(one) == len(other) > 0
    for row, truth in zip(one, other, strict=True):
        assert list(row) == list(truth)
        for name, cell in row.items():
            if name in LEFT_OUT:
                assert (cell, truth[name] != "") == ("", True)
            elif cell != truth[name]:
                assert float(cell) == pytest.approx(float(truth[name]), rel=CLOSE), name


@pytest.fixture
def whole(series: Path) -> str:
    return analyze(series).stdout


def test_only_the_effective_rank_is_empty(series: Path, whole: str) -> None:
    assert_counts(analyze(series, *COUNTS).stdout, whole)


def test_the_folder_may_ask_for_it(series: Path, whole: str) -> None:
    (series / "localrank.toml").write_text('measures = "counts"\n')
    assert_counts(analyze(series).stdout, whole)
    assert analyze(series, "--measures", "all").stdout == whole


def test_resumed_with_the_same_and_refused_with_other_measures(
    series: Path, tmp_path: Path, whole: str
) -> None:
    target = tmp_path / "ranks.csv"
    analyze(series, *COUNTS, "-o", str(target), "--last", "1")
    for words in ((), ("--measures", "all")):
        refused = invoke("analyze", str(series), *QUICK, "-o", str(target), *words)
        assert refused.code == 1
        assert "--measures was counts and is now all" in refused.stderr
    analyze(series, *COUNTS, "-o", str(target))
    assert_counts(target.read_text(), whole)
    measures = json.loads(Path(f"{target}.json").read_text())["series"][0]["measures"]
    assert "effective_rank" not in measures
    analyze(series, "-o", str(target), "--overwrite")
    assert target.read_text() == whole


def test_a_table_with_every_measure_is_not_resumed_with_counts(
    series: Path, tmp_path: Path
) -> None:
    target = tmp_path / "ranks.csv"
    analyze(series, "-o", str(target), "--last", "1")
    refused = invoke("analyze", str(series), *QUICK, "-o", str(target), *COUNTS)
    assert refused.code == 1
    assert "--measures was all and is now counts" in refused.stderr


def test_shards_are_merged(series: Path, tmp_path: Path, whole: str) -> None:
    parts, target = tmp_path / "parts", tmp_path / "merged.csv"
    for index in range(5):
        analyze(series, *COUNTS, "-o", str(parts), "--shard", f"{index}/5")
    assert invoke("merge", str(parts), "-o", str(target)).code == 0
    assert_counts(target.read_text(), whole)


def test_shards_with_other_measures_are_refused(series: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    analyze(series, *COUNTS, "-o", str(parts), "--shard", "0/2")
    shard = ("-o", str(parts), "--shard", "1/2")
    divided = invoke("analyze", str(series), *QUICK, *shard)
    merged = invoke("merge", str(parts), "-o", str(tmp_path / "merged.csv"))
    refused = divided if divided.code else merged
    assert refused.code == 1
    assert "--measures" in refused.stderr


def test_kept_singular_values_have_every_measure(series: Path, tmp_path: Path, whole: str) -> None:
    kept = tmp_path / "kept"
    found = analyze(series, *COUNTS, "--spectra", str(kept), "-o", str(tmp_path / "a.csv"))
    assert_counts((tmp_path / "a.csv").read_text(), whole)
    again = invoke("rethreshold", str(kept), "--atol", "0.01")
    assert again.code == 0, again.stderr
    for row, truth in zip(rows(again.stdout), rows(whole), strict=True):
        for name in LEFT_OUT:
            assert float(row[name]) == pytest.approx(float(truth[name]), rel=CLOSE), name
    assert found.stdout == ""


def test_tables_of_counts_are_shown_and_put_on_a_page(series: Path, tmp_path: Path) -> None:
    target, page = tmp_path / "ranks.csv", tmp_path / "page.html"
    analyze(series, *COUNTS, "-o", str(target))
    shown = invoke("show", str(target))
    assert shown.code == 0, shown.stderr
    assert "trend" in shown.stdout
    assert rows(target.read_text())[0]["layer"] in shown.stdout
    assert invoke("report", str(target), "-o", str(page)).code == 0
    assert "stable_rank" in page.read_text()
    missing = invoke("show", str(target), "--y", "effective_rank")
    assert missing.code == 0, missing.stderr


def test_another_word_is_refused(series: Path) -> None:
    outcome = invoke("analyze", str(series), *QUICK, "--measures", "none")
    assert outcome.code == 2
    assert "all" in outcome.stderr
    assert "counts" in outcome.stderr
