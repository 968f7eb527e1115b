"""`localrank report` as a command."""

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.cli.program import invoke
from tests.figures.tables import save_spectra, table
from tests.helpers import entries
from tests.report.test_page import data_of

TEACHER = Path(__file__).parents[2] / "sample_checkpoints/gaussian_teacher"


@pytest.fixture
def ranks(tmp_path: Path) -> Path:
    """A table."""
    table(tolerances=("atol=0.01", "rtol=eps")).to_csv(tmp_path / "ranks.csv", index=False)
    return tmp_path / "ranks.csv"


def test_a_page_beside_the_table(ranks: Path) -> None:
    for _ in range(2):  # it may be made again
        outcome = invoke("report", str(ranks))
        assert (outcome.code, outcome.stdout) == (0, "")
        size = f"{ranks.with_suffix('.html').stat().st_size / 1e3:.0f} kB"
        assert outcome.stderr == f"localrank: note: wrote {ranks.with_suffix('.html')} ({size})\n"
    assert entries(ranks.parent) == ["ranks.csv", "ranks.html"]
    page = ranks.with_suffix(".html").read_text(encoding="utf-8")
    assert "<title>run: local rank of each layer</title>" in page
    assert "mean over 64 points" in page
    assert "Made from ranks.csv by localrank " in page


def test_title_manifest_and_spectra(ranks: Path) -> None:
    manifest = {"localrank_manifest": 1, "series": [{"run": "run", "model": "a plain MLP"}]}
    ranks.with_name("ranks.csv.json").write_text(json.dumps(manifest), encoding="utf-8")
    spectra = save_spectra(ranks.with_name("s.safetensors"), layers=3)
    target = ranks.with_name("out.html")
    words = ("--spectra", str(spectra), "--title", "My <page>", "-o", str(target), "-q")
    assert invoke("report", str(ranks), *words).stderr == ""
    page = target.read_text(encoding="utf-8")
    assert "<h1>My &lt;page&gt;</h1>" in page
    assert "<dt>model</dt><dd>a plain MLP</dd>" in page
    assert set(data_of(page)["spectra"]) == {"atol", "rtol"}


@pytest.mark.parametrize(
    "words",
    [
        ("--output-slice", "40:44", "--sigma-1", "full", "--layers", "0,2"),
        ("--output-slice", "40:44", "--layers", "0,2"),
        ("--input-metric", "data", "--allow-small-cov"),
        ("--dtype", "float32"),
    ],
)
def test_the_slider_agrees_with_the_table(tmp_path: Path, words: tuple[str, ...]) -> None:
    target, spectra = tmp_path / "r.csv", tmp_path / "spectra"
    tolerances = ("--rtol", "0.1", "--rtol", "0.3", "--atol", "0.05", "--atol", "0.7")
    common = ("--last", "2", "--spectra", str(spectra), "-o", str(target), *tolerances)
    assert invoke("analyze", str(TEACHER), *common, *words).code == 0
    again = ("-o", str(tmp_path / "again.csv"), *tolerances)
    assert invoke("rethreshold", str(spectra), *again).code == 0
    assert (tmp_path / "again.csv").read_text() == target.read_text()
    assert invoke("report", str(target), "--spectra", str(spectra)).code == 0
    sliding = data_of(target.with_suffix(".html").read_text(encoding="utf-8"))["spectra"]
    for row in pd.read_csv(target).itertuples():
        kind, value = str(row.tolerance).split("=")
        slider = sliding[kind]
        ranks = slider["runs"][row.run][str(row.layer)][str(row.step)]
        # The page holds five significant digits.
        assert ranks[slider["grid"].index(float(value))] == float(f"{row.local_rank:.5g}")


def test_failed_rows_are_said(tmp_path: Path) -> None:
    frame = table()
    frame.loc[0, "status"] = "nonfinite"
    frame.to_csv(tmp_path / "a.csv", index=False)
    outcome = invoke("report", str(tmp_path / "a.csv"))
    assert "note: 1 of 12 rows are left out" in outcome.stderr
    assert "1 of 12 rows are left out" in (tmp_path / "a.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["-o", "a.pdf"], 2, "the page is HTML"),
        (["-o", "nope/a.html"], 1, "cannot be written (No such file or directory)"),
        (["--spectra", "none.safetensors"], 1, "cannot be read"),
        (["--input-metric", "data"], 1, "--input-metric data: not in the table"),
    ],
)
def test_what_cannot_be_done(ranks: Path, words: list[str], code: int, message: str) -> None:
    outcome = invoke("report", str(ranks), *words)
    assert outcome.code == code
    assert message in outcome.error
    assert entries(ranks.parent) == ["ranks.csv"]


def test_tables_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("")
    outcome = invoke("report", str(tmp_path / "a.csv"))
    assert outcome.code == 1
    assert "is empty" in outcome.error
