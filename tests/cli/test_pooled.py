"""`--pooled` on the command line: the same table however a run is divided, stopped or resumed."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from localrank_cli import analyze
from localrank_cli.results.pooled import sums_path
from localrank_cli.results.write import temporary_path
from tests.cli.program import Outcome, invoke, rows, run, start_warm
from tests.helpers import entries, save_series

POOLED = ("pooled_rank", "active_rank", "pooled_undecided", "active_effective_rank")
TOLERANCES = ("--atol", "0.3", "--rtol", "0.5")
PLAIN = ("--data", "normal:4", "--device", "cpu", "--points", "20", "--pooled")
WORDS = (*PLAIN, *TOLERANCES)


def shard(series: Path, folder: Path, index: int, count: int, *words: str) -> Outcome:
    part = ("-o", str(folder), "--shard", f"{index}/{count}")
    return invoke("analyze", str(series), *WORDS, *part, *words)


@pytest.fixture
def single(tmp_path: Path) -> Path:
    return save_series(tmp_path / "run", (0, 5), (4, 9, 5, 3))


@pytest.fixture
def parts(single: Path, tmp_path: Path) -> Path:
    """Three shards of each of two checkpoints, as blocks of 8 points allow of 20."""
    for index in range(6):
        assert shard(single, tmp_path / "parts", index, 6).code == 0
    return tmp_path / "parts"


def merged(parts: Path, *words: str) -> str:
    target = parts.parent / "merged.csv"
    outcome = invoke("merge", str(parts), "-o", str(target), *words)
    assert outcome.code == 0, outcome.stderr
    return target.read_text()


def at_once(series: Path, *words: str) -> str:
    return invoke("analyze", str(series), *WORDS, *words).stdout


def test_the_columns(single: Path) -> None:
    first, second, *_ = rows(at_once(single))
    names = list(first)
    assert names[names.index("message") + 1 :] == ["positions", "n_positions", "jacobian", *POOLED]
    assert (first["tolerance"], second["tolerance"]) == ("atol=0.3", "rtol=0.5")
    # Layer 0 is linear: at every point its Jacobian is its weight.
    values = np.linalg.svd(
        load_file(single / "step_0.safetensors")["0.weight"].double().numpy(), compute_uv=False
    )
    for row, tolerance in ((first, 0.3), (second, 0.5 * values[0])):
        count = str(sum(values > tolerance))
        assert (row["pooled_rank"], row["active_rank"], row["pooled_undecided"]) == (
            count, count, "0",
        )  # fmt: skip
    shares = values / values.sum()
    assert float(first["active_effective_rank"]) == pytest.approx(
        np.exp(-(shares * np.log(shares)).sum()), rel=1e-6
    )


def test_other_columns_are_those_without_it(single: Path) -> None:
    words = ("--information", "--input-metric", "data", "--allow-small-cov")
    data = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    save_file({"x": data}, single.parent / "data.safetensors")
    plain = ["--data", str(single.parent / "data.safetensors"), "--points", "20", *words]
    without = rows(invoke("analyze", str(single), *plain).stdout)
    pooled = rows(invoke("analyze", str(single), *plain, "--pooled").stdout)
    for row, other in zip(without, pooled, strict=True):
        assert set(other) - set(row) == {*POOLED, "positions", "n_positions", "jacobian"}
        for name, cell in row.items():
            # Another route to the Jacobian: other measures agree to 1e-6.
            assert cell == other[name] or float(cell) == pytest.approx(float(other[name]), rel=1e-6)


@pytest.mark.parametrize(
    "count", [3, 11, *(pytest.param(count, marks=pytest.mark.long) for count in (1, 2, 4, 6))]
)
def test_any_division_gives_the_table_of_a_single_run(
    single: Path, tmp_path: Path, count: int
) -> None:
    for index in reversed(range(count)):
        assert shard(single, tmp_path / "parts", index, count).code == 0
    assert merged(tmp_path / "parts") == at_once(single)


def test_shards_divide_points_between_blocks(parts: Path) -> None:
    found = set()
    for path in parts.glob("*.journal"):
        heads = [json.loads(line)["head"] for line in path.read_text().splitlines()]
        found |= {tuple(head["points"]) for head in heads if head["kind"] == "checkpoint"}
        assert path.stat().st_size < 20_000
    assert found == {(0, 8), (8, 16), (16, 20)}
    assert rows((parts / "shard-00000-of-00006.csv").read_text())[0]["pooled_rank"] == ""


@pytest.mark.processes
def test_workers_on_this_machine(single: Path, tmp_path: Path) -> None:
    target = tmp_path / "ranks.csv"
    words = ("submit", str(single), *WORDS, "--workers", "3", "-o", str(target))
    outcome = run(*words)
    assert outcome.code == 0, outcome.stderr
    assert target.read_text() == at_once(single)
    assert entries(tmp_path) == ["ranks.csv", "ranks.csv.journal", "ranks.csv.json", "run"]


def test_a_shard_without_its_sums_is_computed_again(single: Path, parts: Path) -> None:
    expected = merged(parts)
    table = parts / "shard-00001-of-00006.csv"
    path = sums_path(table, "run", "step_0.safetensors", (8, 16))
    path.unlink()
    outcome = invoke("merge", str(parts), "-o", str(parts.parent / "other.csv"))
    assert outcome.code == 1
    assert f"{path}: is missing, with the sums for --pooled over points 8 to 15" in outcome.error
    assert f"Run the shard that writes {table.name} again" in outcome.error
    left = temporary_path(path)
    left.write_bytes(b"half a file")
    assert shard(single, parts, 1, 6).code == 0
    assert not left.exists()
    assert merged(parts, "--overwrite") == expected
    path.write_bytes(path.read_bytes()[:-5])
    outcome = invoke("merge", str(parts), "-o", str(parts.parent / "other.csv"))
    assert outcome.code == 1
    assert f"{path}: cannot be read as the sums over points 8 to 15" in outcome.error
    path.unlink()
    assert shard(single, parts, 1, 6).code == 0
    assert merged(parts, "--overwrite") == expected


def test_sums_of_another_part_are_refused(parts: Path) -> None:
    one = sums_path(parts / "shard-00000-of-00006.csv", "run", "step_0.safetensors", (0, 8))
    other = sums_path(parts / "shard-00001-of-00006.csv", "run", "step_0.safetensors", (8, 16))
    other.write_bytes(one.read_bytes())
    outcome = invoke("merge", str(parts), "-o", str(parts.parent / "other.csv"))
    assert outcome.code == 1
    assert "points: expected [8, 16], got [0, 8]" in outcome.error


def test_a_new_start_discards_the_sums(single: Path, parts: Path) -> None:
    table = parts / "shard-00000-of-00006.csv"
    assert len(list(parts.glob(f"{table.name}.sums-*"))) == 1
    assert shard(single, parts, 0, 6, "--overwrite", "--no-pooled").code == 0
    assert not list(parts.glob(f"{table.name}.sums-*"))


def test_a_partial_merge_is_of_the_points_that_are_there(single: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    assert shard(single, folder, 0, 6).code == 0
    found = rows(merged(folder, "--partial"))
    first = rows(at_once(single, "--last", "2"))[0]
    assert found[0]["n_points"] == "8"
    assert found[0]["pooled_rank"] == first["pooled_rank"]  # the first layer is linear


@pytest.mark.processes
@pytest.mark.parametrize("delay", [0.03, pytest.param(0.2, marks=pytest.mark.long)])
def test_a_shard_that_was_killed_resumes(tmp_path: Path, delay: float) -> None:
    series = save_series(tmp_path / "run", range(12), (4, 9, 5))
    folder = tmp_path / "parts"
    words = ("analyze", str(series), *WORDS, "-q", "-o", str(folder), "--shard", "0/24")
    journal = folder / "shard-00000-of-00024.csv.journal"
    with start_warm(*words) as process:
        while process.poll() is None and not (journal.exists() and journal.stat().st_size > 4000):
            time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    for index in range(24):
        assert shard(series, folder, index, 24).code == 0
    assert merged(folder) == at_once(series)
    assert not list(folder.glob(".*"))


def test_it_is_not_resumed_without(single: Path, tmp_path: Path) -> None:
    target = tmp_path / "ranks.csv"
    assert invoke("analyze", str(single), *WORDS, "-o", str(target)).code == 0
    outcome = invoke("analyze", str(single), *WORDS, "--no-pooled", "-o", str(target))
    assert outcome.code == 1
    assert "pooled was True and is now not set" in outcome.error
    again = invoke("analyze", str(single), *WORDS, "-o", str(target))
    assert "resuming: 2 of 2" in again.stderr


def test_rethreshold_counts_them_again(single: Path, tmp_path: Path) -> None:
    spectra = tmp_path / "spectra"
    assert invoke("analyze", str(single), *WORDS, "--spectra", str(spectra)).code == 0
    words = ("--atol", "0.1", "--rtol", "0.2", "--rtol", "0.01")
    expected = rows(invoke("analyze", str(single), *PLAIN, *words).stdout)
    found = rows(invoke("rethreshold", str(spectra), *words).stdout)
    assert [[row[name] for name in POOLED] for row in found] == [
        [row[name] for name in POOLED] for row in expected
    ]
    assert all(row["pooled_rank"] for row in found)


def test_the_folder_and_python_may_ask_for_it(single: Path) -> None:
    (single / "localrank.toml").write_text("pooled = true\n")
    data = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    frame = analyze(single, data=data)
    assert frame["pooled_rank"].notna().all()
    assert "pooled_rank" not in analyze(single, data=data, pooled=False).columns


def test_what_it_cannot_be_combined_with(single: Path, tmp_path: Path) -> None:
    outcome = invoke("analyze", str(single), *WORDS, "--input-slice", ":2", "--sigma-1", "full")
    assert outcome.code == 1
    assert "--sigma-1 full with --pooled" in outcome.error
    outcome = invoke("analyze", str(single), *WORDS, "--input-slice", ":2")
    assert (outcome.code, rows(outcome.stdout)[0]["n_in"]) == (0, "2")
    wide = save_series(tmp_path / "wide", (0,), (8200, 2))
    words = ("analyze", str(wide), "--data", "normal:8200", "--points", "1", "--pooled")
    for kind in ("all", "each"):
        outcome = invoke(*words, "--positions", kind)
        assert outcome.code == 1
        assert (
            f"--pooled with --positions {kind}: layer '0' has Jacobians with 8200" in outcome.error
        )
