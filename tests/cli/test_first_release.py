"""What the first release left unfinished is resumed, and gives the table that it would have given.

`first_release/` holds its files as it wrote them, but for the names of folders: a table of one of
three checkpoints, the shards of an analysis that Ctrl-C stopped, and the whole table.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.program import Outcome, invoke, rows, run, run_cold

FILES = Path(__file__).parent / "first_release"
WORDS = ("--data", "normal:4", "--points", "3")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "place"
    shutil.copytree(FILES, folder)
    plan = folder / "div.csv.shards/plan.json"
    plan.write_text(plan.read_text().replace("@FOLDER@", str(folder)))
    (folder / "run").mkdir()
    for step in (0, 5, 10):
        generator = torch.Generator().manual_seed(step)
        first = torch.randn(3, 4, generator=generator)
        second = torch.randn(2, 3, generator=generator)
        state = {"0.weight": first, "0.bias": torch.zeros(3)}
        state |= {"2.weight": second, "2.bias": torch.zeros(2)}
        path = folder / f"run/step_{step}.safetensors"
        save_file(state, path)
        os.utime(path, ns=(10**18, 10**18))  # as it was then: the plan file lists it
    return folder


def test_a_journal_is_resumed(place: Path) -> None:
    outcome = invoke(
        "analyze", str(place / "run"), *WORDS, "--device", "cpu", "-o", str(place / "ranks.csv")
    )
    assert outcome.code == 0, outcome.stderr
    assert "1 of 3 checkpoints are already finished" in outcome.stderr
    assert (place / "ranks.csv").read_bytes() == (place / "whole.csv").read_bytes()


def test_half_finished_shards_are_resumed(place: Path) -> None:
    outcome = run(
        "submit", str(place / "run"), *WORDS, "--workers", "2", "-o", str(place / "div.csv")
    )
    assert outcome.code == 0, outcome.stderr
    assert "1 of 3 checkpoints are already finished" in outcome.stderr
    assert (place / "div.csv").read_bytes() == (place / "whole.csv").read_bytes()


def facts(table: Path) -> dict[str, dict[str, object]]:
    """The manifest's entries of checkpoints, by name."""
    manifest = json.loads(table.with_name(f"{table.name}.json").read_text())
    return {one["checkpoint"]: one for one in manifest["checkpoints"]}


def test_a_manifest_is_continued_and_hashes_are_the_same(place: Path) -> None:
    table, fresh = place / "ranks.csv", place / "fresh.csv"
    before = facts(table)["step_10.safetensors"]
    for target in (table, fresh):
        words = (*WORDS, "--device", "cpu", "-q", "-o", str(target))
        assert invoke("analyze", str(place / "run"), *words).code == 0
    assert len(facts(table)) == 3
    assert facts(table)["step_10.safetensors"] == before  # what it took then, too
    hashes = {name: one["sha256_of_tensors"] for name, one in facts(fresh).items()}
    assert hashes["step_10.safetensors"] == before["sha256_of_tensors"]
    assert hashes == {name: one["sha256_of_tensors"] for name, one in facts(table).items()}


@pytest.mark.parametrize("command", ["analyze", "submit"])
def test_other_settings_are_refused_by_name(place: Path, command: str) -> None:
    """By the journal of a table, and by the plan file of half-finished shards."""
    table = place / {"analyze": "ranks.csv", "submit": "div.csv"}[command]
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    more = ("--workers", "2") if command == "submit" else ("--device", "cpu")
    words = ("--data", "normal:4", "--points", "2", *more, "-o", str(table))
    outcome = invoke(command, str(place / "run"), *words)
    assert outcome.code == 1
    assert "points was [0, 1, 2] and is now [0, 1]" in outcome.stderr
    assert "--overwrite" in outcome.stderr
    # The shards' finished part may have been written into a table: nothing is lost or changed.
    assert {path: path.read_bytes() for path in before} == before


_NEW = """
import importlib.util, pathlib, sys
name = "localrank_cli.measures.table"
module = importlib.util.module_from_spec(importlib.util.find_spec(name))
sys.modules[name] = module
path = pathlib.Path(module.__file__)
text = path.read_text()
entry = 'Measure(Meaning("new", "New."), "", "", stable_rank, _stable_rank_bound)'
head, body = text.split("MEASURES: Mapping[str, Measure] = {", 1)
body = body.replace("\\n}\\n", "\\n    'new_rank': " + entry + ",\\n}\\n", 1)
exec(compile(head + "MEASURES: Mapping[str, Measure] = {" + body, str(path), "exec"), vars(module))
"""

_INVOKE = """
import json, sys
from tests.cli.program import invoke
outcomes = [invoke(*words) for words in json.loads(sys.argv[1])]
print(json.dumps([[one.code, one.stderr] for one in outcomes]))
"""
TABLES = ("fresh.csv", "ranks.csv")


@pytest.mark.processes
def test_a_new_measure_is_one_entry_and_what_was_begun_before_it_is_resumed(
    place: Path, tmp_path: Path
) -> None:
    """Processes with one more entry in the table of measures: localrank as it may be next."""
    (tmp_path / "sitecustomize.py").write_text(_NEW)
    later = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    common = (str(place / "run"), *WORDS)
    # One process for both, since its start takes several times as long as they do.
    words = [["analyze", *common, "--device", "cpu", "-o", str(place / name)] for name in TABLES]
    done = subprocess.run(
        [sys.executable, "-c", _INVOKE, json.dumps(words)],
        check=True, capture_output=True, text=True, env=later, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    (code, stderr), (code_of_resumed, stderr_of_resumed) = json.loads(done.stdout)
    assert code == 0, stderr
    fresh_rows = rows(place / "fresh.csv")
    assert [row["new_rank"] for row in fresh_rows] == [row["stable_rank"] for row in fresh_rows]
    earlier = [dict.fromkeys(fresh_rows[0], "") | row for row in rows(place / "whole.csv")]
    assert "1 of 3 checkpoints are already finished" in stderr_of_resumed
    divided = run_cold("submit", *common, "--workers", "1", "-o", str(place / "div.csv"), env=later)
    resumed = Outcome(code_of_resumed, "", stderr_of_resumed)
    for outcome, table in ((resumed, "ranks.csv"), (divided, "div.csv")):
        assert outcome.code == 0, outcome.stderr
        assert "before localrank had new_rank" in outcome.stderr
        assert rows(place / table) == earlier


def test_a_table_is_merged_and_shown(place: Path) -> None:
    shards = str(place / "div.csv.shards/shard-00000-of-00002.csv")
    outcome = invoke("merge", shards, "--partial", "-o", str(place / "merged.csv"))
    assert outcome.code == 0, outcome.stderr
    assert invoke("show", str(place / "ranks.csv")).code == 0
