"""`localrank report` as a command."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from tests.cli.program import QUICK, invoke
from tests.figures.tables import save_spectra, table
from tests.helpers import entries, save_series, weights
from tests.report.test_page import data_of


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


def test_failed_rows_get_a_note(tmp_path: Path) -> None:
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


def test_files_that_are_not_tables(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("")
    outcome = invoke("report", str(tmp_path / "a.csv"))
    assert outcome.code == 1
    assert "is empty" in outcome.error


TEACHER = Path(__file__).parents[2] / "sample_checkpoints/gaussian_teacher"
TOLERANCES = (
    "--atol", "0.01", "--atol", "0.3333333333", "--rtol", "0.1", "--rtol", "0.00957",
    "--rtol", "0.1000001", "--rtol", "eps",
)  # fmt: skip


def analyzed(folder: Path, checkpoints: Path, *words: str) -> Path:
    """Analyze into a table, with its singular values in the folder `sigma` next to it."""
    command = ("-o", str(folder / "ranks.csv"), "--spectra", str(folder / "sigma"), "-q")
    outcome = invoke("analyze", str(checkpoints), *words, *command)
    assert outcome.code in {0, 3}, outcome.stderr
    return folder / "ranks.csv"


def paged(ranks: Path, *words: str) -> Any:
    """Return the data of the page of a table and its singular values."""
    outcome = invoke("report", str(ranks), "--spectra", str(ranks.with_name("sigma")), *words)
    assert outcome.code == 0, outcome.stderr
    assert "the slider does not match the table" not in outcome.stderr
    return data_of(ranks.with_suffix(".html").read_text(encoding="utf-8"))


def slid(data: Any, kind: str, number: float, run: str, layer: str, step: str) -> float:
    """Return the rank that the slider shows at one of its tolerances."""
    grid = data["spectra"][kind]["grid"]
    # The table holds 9 digits of eps.
    (at,) = [i for i, one in enumerate(grid) if math.isclose(one, number, rel_tol=5e-9)]
    return float(data["spectra"][kind]["runs"][run][layer][step][at])


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--output-slice", "0:4", "--sigma-1", "full"),
        ("--output-slice", "0:4"),
        ("--input-slice", "0:3", "--sigma-1", "full"),
        ("--input-metric", "data", "--allow-small-cov"),
        ("--dtype", "float32"),
    ],
    ids=" ".join,
)
def test_slider_and_table_count_the_same(tmp_path: Path, words: tuple[str, ...]) -> None:
    ranks = analyzed(tmp_path, TEACHER, "--last", "2", "--points", "9", *TOLERANCES, *words)
    data, compared = paged(ranks), 0
    with ranks.open() as stream:
        for row in csv.DictReader(stream):
            kind = row["tolerance"].partition("=")[0]
            place = row["run"], row["layer"], row["step"]
            shown = slid(data, kind, float(row[kind]), *place)
            assert shown == float(f"{float(row['local_rank']):.5g}"), (row["tolerance"], place)
            compared += 1
    assert compared == 2 * 3 * 6


def test_slider_beside_points_that_are_not_finite(tmp_path: Path) -> None:
    series = save_series(tmp_path / "run")
    state = {key: torch.full_like(value, float("nan")) for key, value in weights().items()}
    save_file(state, series / "step_7.safetensors")
    ranks = analyzed(tmp_path, series, *QUICK, *TOLERANCES)
    data = paged(ranks)
    assert data["runs"][0]["layers"][0]["steps"] == [0, 5, 10]
    assert set(data["spectra"]["atol"]["runs"]["run"]["0"]) == {"0", "5", "10"}


def test_slider_under_a_slice_refers_to_the_whole_jacobian(tmp_path: Path) -> None:
    words = ("--last", "1", "--layers", "0", "--points", "2", "--output-slice", "40:44")
    ranks = analyzed(tmp_path, TEACHER, *words, "--sigma-1", "full", "--rtol", "0.1")
    data = paged(ranks)
    # The first layer's Jacobian is its weight.
    weight = load_file(TEACHER / "step_12000.safetensors")["0.weight"].astype(np.float64)
    part, whole = (np.linalg.svd(one, compute_uv=False) for one in (weight[40:44], weight))
    for number in (0.1, 0.0501, 0.2):
        expected = int((part > number * whole[0]).sum())
        assert slid(data, "rtol", number, "gaussian_teacher", "0", "12000") == expected
    assert int((part > 0.1 * whole[0]).sum()) != int((part > 0.1 * part[0]).sum())


def test_singular_values_of_another_analysis_get_a_note(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    ranks = analyzed(tmp_path / "a", TEACHER, "--last", "1", "--points", "4", "--rtol", "0.1")
    words = ("--output-slice", "0:4", "--rtol", "0.1")
    other = analyzed(tmp_path, TEACHER, "--last", "1", "--points", "4", *words)
    outcome = invoke("report", str(other), "--spectra", str(ranks.with_name("sigma")))
    assert "note: the slider does not match the table: at rtol=0.1, layer" in outcome.stderr
    assert "the slider does not match the table" in other.with_suffix(".html").read_text()


def test_a_table_made_by_hand_may_have_other_tolerances(ranks: Path) -> None:
    frame = table(tolerances=("loose", "atol=0", "atol=0.02"))
    frame.to_csv(ranks, index=False)
    spectra = save_spectra(ranks.with_name("s.safetensors"), layers=3)
    assert invoke("report", str(ranks), "--spectra", str(spectra)).code == 0
    page = data_of(ranks.with_suffix(".html").read_text(encoding="utf-8"))
    assert 0.02 in page["spectra"]["atol"]["grid"]
