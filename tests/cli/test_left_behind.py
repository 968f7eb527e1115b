"""What `kill -9` leaves half written is removed by the next command on the same output."""

import os
from pathlib import Path

import pytest

from localrank_cli.results.lock import OutputLock, lock_path
from tests.cli.program import QUICK, invoke, run
from tests.helpers import entries, save_series

HALF = ".{}.4194305.tmp"  # a process id that no Linux gives


@pytest.fixture
def series(tmp_path: Path) -> Path:
    return save_series(tmp_path / "run", (0, 5))


def leave(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / HALF.format(name)).write_bytes(b"half")


def test_analyze(series: Path, tmp_path: Path) -> None:
    target, sigma = tmp_path / "out/ranks.csv", tmp_path / "sigma"
    leave(target.parent, "ranks.csv", "ranks.csv.json", "ranks.csv.journal")
    # Step 7 was in the part of another shard, or its checkpoint is gone by now.
    leave(sigma / "run", "step_5.safetensors", "step_7.safetensors")
    (sigma / "run/.mine.1.tmp").touch()
    words = ("-o", str(target), "--spectra", str(sigma))
    assert invoke("analyze", str(series), *QUICK, *words).code == 0
    assert entries(target.parent) == ["ranks.csv", "ranks.csv.journal", "ranks.csv.json"]
    assert entries(sigma / "run") == [".mine.1.tmp", "step_0.safetensors", "step_5.safetensors"]


@pytest.mark.parametrize("command", ["merge", "rethreshold"])
def test_what_writes_tables(series: Path, tmp_path: Path, command: str) -> None:
    words = ("-o", str(tmp_path / "a.csv"), "--spectra", str(tmp_path / "sigma"))
    assert invoke("analyze", str(series), *QUICK, *words).code == 0
    leave(tmp_path / "out", "b.csv", "b.csv.json", "b.csv.journal")
    source = {"merge": "a.csv", "rethreshold": "sigma"}[command]
    target = tmp_path / "out/b.csv"
    assert invoke(command, str(tmp_path / source), "-o", str(target)).code == 0
    assert entries(target.parent) == ["b.csv", "b.csv.journal", "b.csv.json"]


@pytest.mark.parametrize(("command", "name"), [("plot", "a.png"), ("report", "a.html")])
def test_pictures_and_pages(series: Path, tmp_path: Path, command: str, name: str) -> None:
    assert invoke("analyze", str(series), *QUICK, "-o", str(tmp_path / "a.csv")).code == 0
    leave(tmp_path / "out", name)
    target = tmp_path / "out" / name
    assert invoke(command, str(tmp_path / "a.csv"), "-o", str(target)).code == 0
    assert entries(target.parent) == [name]


def test_parts_of_a_submission(series: Path, tmp_path: Path) -> None:
    shards = tmp_path / "out/a.csv.shards"
    leave(shards, "plan.json", "earlier.csv.journal", "shard-00001-of-00002.csv", "submit.sh")
    words = ("-o", str(tmp_path / "out/a.csv"), "--workers", "1")
    outcome = run("submit", str(series), *QUICK, *words)
    assert outcome.code == 0, outcome.stderr
    assert entries(tmp_path / "out") == ["a.csv", "a.csv.journal", "a.csv.json"]


def test_the_temporary_folder_of_a_submission_to_a_pipe(series: Path, tmp_path: Path) -> None:
    for name in ("localrank-dead", "localrank-alive", "localrank-other"):
        (tmp_path / name).mkdir()
    dead, alive = (tmp_path / f"localrank-{name}/ranks.csv.shards" for name in ("dead", "alive"))
    lock_path(dead).touch()
    with OutputLock(alive):
        words = ("analyze", str(series), *QUICK, "--device", "cpu,cpu")
        outcome = run(*words, env=os.environ | {"TMPDIR": str(tmp_path)})
    assert outcome.code == 0, outcome.stderr
    assert entries(tmp_path) == ["localrank-alive", "localrank-other", "run"]
