"""Names of files, layers and runs may hold anything: no command lets them forge or steer."""

import csv
import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import save_file

from localrank_cli.results.read import read_table
from tests.cli.program import QUICK, Outcome, invoke, run
from tests.cli.test_terminal import ESCAPE, at_terminal
from tests.helpers import save_series, weights

NAME = "a\nlocalrank: error: forged\x1b[31m\r\x1b]0;title\x07 [bold]"
SHOWN = "a localrank: error: forged\\x1b[31m \\x1b]0;title\\x07 [bold]"


def check(outcome: Outcome, code: int, *, shows: bool = True) -> None:
    """Check that each message is one line of localrank, without control sequences."""
    assert outcome.code == code, outcome.stderr
    for line in outcome.stderr.splitlines():
        assert line.startswith("localrank: "), outcome.stderr
        assert not line.startswith("localrank: error: forged"), outcome.stderr
        assert line.isprintable(), outcome.stderr
    assert not shows or SHOWN in outcome.stderr


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder of such a name, with a table of such a name in it."""
    series = save_series(tmp_path / NAME / NAME)
    target = series.parent / f"{NAME}.csv"
    words = ("-o", str(target), "--spectra", str(series.parent / "sigma"))
    check(invoke("analyze", str(series), *QUICK, *words), 0)
    return target


def test_merge(hostile: Path) -> None:
    folder, merged = hostile.parent, hostile.with_name(f"m{NAME}.csv")
    check(invoke("merge", str(hostile), "-o", str(merged)), 0)
    check(invoke("merge", str(hostile), "-o", str(merged)), 1)
    check(invoke("merge", str(folder / "none.csv"), "-o", str(merged)), 1)
    check(invoke("merge", str(folder / "sigma"), "-o", str(merged)), 1)


def test_merge_of_what_is_missing_or_flawed(tmp_path: Path) -> None:
    series = save_series(tmp_path / NAME)
    state = {key: torch.full_like(value, float("nan")) for key, value in weights().items()}
    save_file(state, series / f"step_20_{NAME}.safetensors")
    words = ("-o", str(tmp_path / f"parts{NAME}"), "--step-regex", r"step_(\d+)")
    check(run("analyze", str(series), *QUICK, *words, "--shard", "1/2"), 3)
    merge = ("merge", str(tmp_path / f"parts{NAME}"), "-o", str(tmp_path / f"{NAME}.csv"))
    check(invoke(*merge), 1)
    partial = invoke(*merge, "--partial")
    check(partial, 3)
    assert "warning: missing: shard 0/2" in partial.stderr


def test_the_command_that_merge_suggests_works(tmp_path: Path) -> None:
    series, parts = save_series(tmp_path / "a run"), tmp_path / "parts"
    words = ("analyze", str(series), *QUICK, "-o", str(parts), "--shard")
    assert run(*words, "0/2").code == 0
    error = invoke("merge", str(parts), "-o", str(tmp_path / "m.csv")).stderr
    assert f"analyze '{series}' --data" in error


@pytest.mark.parametrize("command", ["show", "report", "plot", "rethreshold", "inspect", "submit"])
def test_every_command(hostile: Path, command: str) -> None:
    folder, sigma = hostile.parent, hostile.with_name("sigma")
    new = str(folder / f"new{NAME}.csv")
    words = {
        "show": [str(hostile)],
        "report": [str(hostile), "--spectra", str(sigma)],
        "plot": [str(hostile), "--kind", "tolerance", "--spectra", str(sigma)],
        "rethreshold": [str(sigma), "-o", new],
        "inspect": [str(folder / NAME), *QUICK, "--no-time"],
        "submit": [str(folder / NAME), *QUICK, "--workers", "1", "-o", new],
    }[command]
    outcome = (run if command == "submit" else invoke)(command, *words)
    check(outcome, 0, shows=command not in {"show", "inspect"})
    if command in {"show", "inspect"}:
        assert "\x1b" not in outcome.stdout
        assert "localrank: error: forged" not in outcome.stdout.splitlines()
    shutil.rmtree(sigma)
    hostile.write_text("")
    failing = {"inspect": [str(hostile)], "submit": [str(hostile), "--workers", "1", "-o", new]}
    check(invoke(command, *failing.get(command, words)), 1)


def test_reproduce(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "ranks.csv").write_text("mine")
    check(invoke("reproduce", "gaussian", "--out", str(tmp_path / NAME)), 1)


def test_debug(tmp_path: Path) -> None:
    outcome = invoke("show", str(tmp_path / f"{NAME}.csv"), "--debug")
    assert outcome.code == 1
    lines = outcome.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert all(line.isprintable() for line in lines)
    assert [line for line in lines if line.startswith("localrank: error: ")] == lines[-1:]


def test_cells_of_a_table_at_a_terminal(hostile: Path, tmp_path: Path) -> None:
    with hostile.open() as stream:
        rows = list(csv.DictReader(stream))
    with (tmp_path / "t.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        changes = {"run": NAME, "layer": NAME, "tolerance": NAME}
        writer.writerows(row | changes for row in rows[::2])
    code, screen, _ = at_terminal("show", str(tmp_path / "t.csv"), columns=300)
    assert code == 0
    assert "[bold]" in screen
    assert "\x1b[31m" not in screen
    assert "\x1b]" not in screen
    assert not any(ESCAPE.sub("", line).startswith("localrank:") for line in screen.splitlines())


def test_the_progress_bar(tmp_path: Path) -> None:
    series = save_series(tmp_path / NAME)
    code, screen, _ = at_terminal("analyze", str(series), *QUICK, columns=300, stderr=True)
    assert code == 0
    assert "\x1b]0;title" not in screen
    assert "\x1b[31m" not in screen


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_table_holds_nothing_that_steers_a_terminal(tmp_path: Path, suffix: str) -> None:
    name = "a\x1b]0;title\x07\x9b31m\x7f"
    series = save_series(tmp_path / name)
    target = tmp_path / f"ranks{suffix}"
    check(invoke("analyze", str(series), *QUICK, "-o", str(target)), 0, shows=False)
    text = target.read_text("utf-8")
    lines = text.replace("\t", "").splitlines()
    assert [line for line in lines if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in line)] == []
    if suffix == ".jsonl":  # the names themselves come back
        assert {json.loads(line)["run"] for line in lines} == {name}
    else:
        assert "a\\x1b]0;title\\x07\\x9b31m\\x7f" in text
    assert "resuming: 3 of 3" in invoke("analyze", str(series), *QUICK, "-o", str(target)).stderr


def test_csv_at_a_terminal(tmp_path: Path) -> None:
    series = save_series(tmp_path / NAME)
    code, screen, _ = at_terminal("analyze", str(series), *QUICK, "-o", "-", columns=300)
    assert code == 0
    assert "\\x1b[31m" in screen
    assert "\x1b[31m" not in screen
    assert "\x1b]0;" not in screen


def test_pictures_of_every_format_show_the_names_of_csv(tmp_path: Path) -> None:
    series = save_series(tmp_path / NAME)
    for suffix in (".csv", ".jsonl", ".parquet"):
        table, sigma = tmp_path / f"ranks{suffix}", tmp_path / "sigma"
        words = ("-o", str(table), "--spectra", str(sigma))
        check(invoke("analyze", str(series), *QUICK, *words), 0, shows=False)
        for kind in ("ranks", "heatmap", "spectrum"):
            picture = tmp_path / f"{suffix[1:]}-{kind}.svg"
            spectra = ("--spectra", str(sigma)) * (kind == "spectrum")
            given = (str(table), "--kind", kind, "-o", str(picture), *spectra)
            check(invoke("plot", *given), 0, shows=False)
            ElementTree.parse(picture)
            assert picture.read_bytes() == (tmp_path / f"csv-{kind}.svg").read_bytes()


FORMULA = "=HYPERLINK(1)"


def test_a_name_that_is_a_formula_stays_what_it_is_and_is_noted(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    series = save_series(tmp_path / FORMULA)
    note = f"note: the name '{FORMULA}' begins like a formula"
    for suffix in (".csv", ".tsv", ".jsonl", ".parquet"):
        target = tmp_path / f"out/ranks{suffix}"
        outcome = invoke("analyze", str(series), *QUICK, "-o", str(target))
        check(outcome, 0, shows=False)
        assert (note in outcome.stderr) is (suffix in {".csv", ".tsv"})
        assert set(read_table(target)["run"]) == {FORMULA}
        merged = tmp_path / f"out/merged{suffix}"
        check(invoke("merge", str(target), "-o", str(merged)), 0, shows=False)
        assert merged.read_bytes() == target.read_bytes()
