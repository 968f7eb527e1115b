"""`--beside` on the command line: however a run is divided, stopped or counted again."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from localrank_cli import analyze
from localrank_cli.results.columns import (
    BESIDE_ACTIVATIONS,
    BESIDE_CLASSES,
    BESIDE_NOTE,
    BESIDE_WEIGHTS,
    COLUMNS,
)
from tests.cli.program import invoke
from tests.helpers import save_series

PLAIN = ("--data", "normal:4", "--device", "cpu", "--points", "20")
WORDS = (*PLAIN, "--beside", "activations,weights", "--information-points", "30")


@pytest.fixture
def series(tmp_path: Path) -> Path:
    return save_series(tmp_path / "run", (0, 5), (4, 9, 5, 3))


def at_once(series: Path, *words: str) -> str:
    outcome = invoke("analyze", str(series), *WORDS, *words)
    assert outcome.code == 0, outcome.stderr
    return outcome.stdout


def test_the_columns_are_beside_an_unchanged_table(series: Path) -> None:
    header, *lines = csv.reader(io.StringIO(at_once(series)))
    own = [*BESIDE_ACTIVATIONS, *BESIDE_WEIGHTS, BESIDE_NOTE]
    assert header[len(COLUMNS) :] == own
    plain = csv.reader(io.StringIO(invoke("analyze", str(series), *PLAIN).stdout))
    assert [header[: len(COLUMNS)], *(line[: len(COLUMNS)] for line in lines)] == list(plain)


# Of two checkpoints, 4 shards have parts of the points.
@pytest.mark.parametrize("count", [2, 4])
def test_any_division_gives_the_table_of_a_single_run(
    series: Path, tmp_path: Path, count: int
) -> None:
    parts = tmp_path / "parts"
    for index in range(count):
        shard = ("-o", str(parts), "--shard", f"{index}/{count}")
        assert invoke("analyze", str(series), *WORDS, *shard).code == 0
    target = tmp_path / "merged.csv"
    assert invoke("merge", str(parts), "-o", str(target)).code == 0
    assert target.read_text() == at_once(series)


def test_it_resumes_and_is_not_resumed_without(series: Path, tmp_path: Path) -> None:
    target = tmp_path / "ranks.csv"
    first = invoke("analyze", str(series), *WORDS, "--last", "1", "-o", str(target))
    assert first.code == 0
    assert invoke("analyze", str(series), *WORDS, "-o", str(target)).code == 0
    assert target.read_text() == at_once(series)
    outcome = invoke("analyze", str(series), *PLAIN, "-o", str(target))
    assert outcome.code == 1
    assert "--beside was activations,weights and is now not set" in outcome.stderr


def test_rethreshold_and_plot_keep_them(series: Path, tmp_path: Path) -> None:
    table, spectra = tmp_path / "ranks.csv", tmp_path / "spectra"
    outcome = invoke("analyze", str(series), *WORDS, "-o", str(table), "--spectra", str(spectra))
    assert outcome.code == 0, outcome.stderr
    counted = tmp_path / "counted.csv"
    outcome = invoke("rethreshold", str(spectra), "--atol", "0.3", "-o", str(counted))
    assert outcome.code == 0, outcome.stderr
    before, after = pd.read_csv(table), pd.read_csv(counted)
    names = [*BESIDE_ACTIVATIONS, *BESIDE_WEIGHTS]
    pd.testing.assert_frame_equal(before[names], after[names])
    figure = tmp_path / "figure.png"
    words = ("--y", "activation_effective_rank", "-o", str(figure))
    assert invoke("plot", str(table), *words).code == 0
    assert figure.is_file()


def test_the_folder_may_ask_for_it(series: Path) -> None:
    text = 'data = "normal:4"\npoints = 20\nbeside = ["weights"]\n[columns]\ndecay = 0.1\n'
    (series / "localrank.toml").write_text(text)
    frame = analyze(series)
    assert frame.columns[len(COLUMNS) :].tolist() == [*BESIDE_WEIGHTS, BESIDE_NOTE, "decay"]
    assert (frame["decay"] == 0.1).all()
    (series / "localrank.toml").write_text(text + "weight_stable_rank = 1\n")
    outcome = invoke("analyze", str(series))
    assert outcome.code == 1
    assert "weight_stable_rank" in outcome.stderr


def test_labels_add_those_of_each_class(series: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    path = tmp_path / "data.npz"
    np.savez(path, x=random.normal(size=(40, 4)), y=np.arange(40) % 3)
    outcome = invoke(
        "analyze", str(series), "--data", str(path), "--beside", "activations", "--labels-key", "y",
    )  # fmt: skip
    header = outcome.stdout.splitlines()[0].split(",")
    own = [*BESIDE_ACTIVATIONS, *BESIDE_CLASSES, BESIDE_NOTE]
    assert header[len(COLUMNS) :] == ["loss", "accuracy", *own]


def test_inspect_counts_its_memory(series: Path) -> None:
    outcome = invoke("inspect", str(series), *WORDS, "--json")
    assert outcome.code == 0, outcome.stderr
    (found,) = json.loads(outcome.stdout)["series"]
    assert [(one["layer"], one["what"]) for one in found["beside"]] == [
        (layer, what) for layer in ("0", "2", "4") for what in ("30 outputs", "the weight")
    ]
    # The 30 outputs of 9 entries alone are 30 * 9 float64.
    assert found["beside"][0]["n_bytes"] >= 30 * 9 * 8
    assert "30 outputs of 0 need" in invoke("inspect", str(series), *WORDS).stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            ("--beside", "gradients"),
            2,
            "--beside gradients: unknown. Choose activations or weights.",
        ),
        (("--beside", "weights", "--information-points", "9"), 2, "--information-points without"),
    ],
)
def test_refused(series: Path, words: tuple[str, ...], code: int, message: str) -> None:
    outcome = invoke("analyze", str(series), *PLAIN, *words)
    assert (outcome.code, message in outcome.stderr) == (code, True), outcome.stderr
