"""Shards and their merge, which gives the table of a single run for any division."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.cli.program import QUICK, Outcome, invoke, rows
from tests.helpers import entries, save_series, weights

STEPS = (0, 5, 10)
EXACT = ("n_points", "n_failed", "local_rank", "local_rank_se", "rank_min", "rank_max", "near_tol")


def shard(series: Path, folder: Path, index: int, count: int, *words: str) -> Outcome:
    part = f"{index}/{count}"
    return invoke("analyze", str(series), *QUICK, "-o", str(folder), "--shard", part, *words)


def assert_equal(found: str, expected: str) -> None:
    """Compare counts exactly and other measures to 1e-6, as the documentation promises."""
    one, other = rows(found), rows(expected)
    assert [list(row) for row in one] == [list(row) for row in other]
    for row, truth in zip(one, other, strict=True):
        for name, cell in row.items():
            if cell != truth[name]:
                assert name not in EXACT
                assert float(cell) == pytest.approx(float(truth[name]), rel=1e-6), name


@pytest.fixture
def expected(series: Path) -> str:
    return invoke("analyze", str(series), *QUICK).stdout


@pytest.mark.parametrize(
    # Below the number of checkpoints, between it and that of points, and above.
    "count",
    [2, 5, 17, *(pytest.param(count, marks=pytest.mark.long) for count in (1, 3, 8, 40))],
)
def test_any_number_of_shards(series: Path, expected: str, tmp_path: Path, count: int) -> None:
    """Fewer than checkpoints, as many, more (then points are divided), more than points."""
    order = list(range(count))
    random.Random(count).shuffle(order)
    for index in order:
        assert shard(series, tmp_path / "shards", index, count).code == 0
    target = tmp_path / "ranks.csv"
    outcome = invoke("merge", str(tmp_path / "shards"), "-o", str(target))
    assert outcome.code == 0, outcome.stderr
    assert_equal(target.read_text(), expected)
    manifest = json.loads(Path(f"{target}.json").read_text())
    assert manifest["complete"] is True
    assert [checkpoint["step"] for checkpoint in manifest["checkpoints"]] == list(STEPS)
    # A run resumes from the merged table.
    again = invoke("analyze", str(series), *QUICK, "-o", str(target))
    assert "resuming: 3 of 3" in again.stderr


@pytest.mark.parametrize("examples", [3, pytest.param(30, marks=pytest.mark.long)])
def test_random_divisions(tmp_path_factory: pytest.TempPathFactory, examples: int) -> None:
    @settings(max_examples=examples)
    @given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 6), st.randoms())
    def check(n_checkpoints: int, count: int, n_points: int, chance: random.Random) -> None:
        check_division(tmp_path_factory, n_checkpoints, count, n_points, chance)

    check()


def check_division(
    tmp_path_factory: pytest.TempPathFactory,
    n_checkpoints: int,
    count: int,
    n_points: int,
    chance: random.Random,
) -> None:
    tmp_path = tmp_path_factory.mktemp("division")
    series = save_series(tmp_path / "run", range(n_checkpoints))
    words = ("analyze", str(series), "--data", "normal:4", "--points", str(n_points))
    order = [*range(count), chance.randrange(count)]  # one of them twice
    chance.shuffle(order)
    for index in order:
        part = ("-o", str(tmp_path / "shards"), "--shard", f"{index}/{count}")
        assert invoke(*words, *part).code == 0
    assert invoke("merge", str(tmp_path / "shards"), "-o", str(tmp_path / "a.csv")).code == 0
    assert_equal((tmp_path / "a.csv").read_text(), invoke(*words).stdout)


def test_files_have_the_names_of_their_shards(series: Path, tmp_path: Path) -> None:
    shard(series, tmp_path / "shards", 1, 3)
    name = "shard-00001-of-00003.csv"
    assert entries(tmp_path / "shards") == [name, f"{name}.journal", f"{name}.json"]
    manifest = json.loads((tmp_path / "shards" / f"{name}.json").read_text())
    assert (manifest["shard"]["index"], manifest["shard"]["count"]) == (1, 3)
    assert manifest["complete"] is True  # of what is this shard's
    assert [row["step"] for row in rows((tmp_path / "shards" / name).read_text())] == ["5", "5"]


def test_tables_of_any_name_and_a_table_twice(series: Path, expected: str, tmp_path: Path) -> None:
    for index in range(2):
        outcome = invoke(
            "analyze", str(series), *QUICK,
            "-o", str(tmp_path / f"part{index}.jsonl"), "--shard", f"{index}/2",
        )  # fmt: skip
        assert outcome.code == 0
    for suffix in ("", ".journal", ".json"):
        shutil.copy(f"{tmp_path}/part0.jsonl{suffix}", f"{tmp_path}/copy.jsonl{suffix}")
    names = [str(tmp_path / name) for name in ("part0.jsonl", "part1.jsonl", "copy.jsonl")]
    outcome = invoke("merge", *names, "-o", str(tmp_path / "ranks.csv"))
    assert outcome.code == 0, outcome.stderr
    assert_equal((tmp_path / "ranks.csv").read_text(), expected)


def test_two_series_in_shards(series: Path, tmp_path: Path) -> None:
    other = save_series(tmp_path / "other", (3, 4))
    words = ("analyze", str(series), str(other), *QUICK)
    for index in range(3):
        invoke(*words, "-o", str(tmp_path / "shards"), "--shard", f"{index}/3")
    invoke("merge", str(tmp_path / "shards"), "-o", str(tmp_path / "a.csv"))
    assert_equal((tmp_path / "a.csv").read_text(), invoke(*words).stdout)


def test_what_is_missing_is_listed_with_the_way_to_get_it(series: Path, tmp_path: Path) -> None:
    folder, target = tmp_path / "shards", tmp_path / "ranks.csv"
    for index in (0, 3):
        shard(series, folder, index, 4)
    outcome = invoke("merge", str(folder), "-o", str(target))
    assert outcome.code == 1
    assert "warning: missing: shard 1/4" in outcome.stderr
    assert "warning: missing: shard 2/4" in outcome.stderr
    assert "2 units are missing" in outcome.stderr
    assert not target.exists()
    outcome = invoke("merge", str(folder), "-o", str(target), "--partial")
    assert outcome.code == 0
    assert json.loads(Path(f"{target}.json").read_text())["complete"] is False
    for index in (1, 2):
        shard(series, folder, index, 4)
    assert invoke("merge", str(folder), "-o", str(target), "--overwrite").code == 0


def test_a_shard_that_was_stopped(series: Path, tmp_path: Path) -> None:
    shard(series, tmp_path / "shards", 0, 2)
    journal = next((tmp_path / "shards").glob("*.journal"))
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]))
    shard(series, tmp_path / "shards", 1, 2)
    outcome = invoke("merge", str(tmp_path / "shards"), "-o", str(tmp_path / "a.csv"))
    assert outcome.code == 1
    assert "run: step_10.safetensors: started by shard 0/2" in outcome.stderr
    assert shard(series, tmp_path / "shards", 0, 2).code == 0  # the same command resumes
    assert invoke("merge", str(tmp_path / "shards"), "-o", str(tmp_path / "a.csv")).code == 0


def test_other_settings_are_refused_by_name(series: Path, tmp_path: Path) -> None:
    shard(series, tmp_path / "shards", 0, 2)
    shard(series, tmp_path / "shards", 1, 2, "--atol", "0.5")
    outcome = invoke("merge", str(tmp_path / "shards"), "-o", str(tmp_path / "a.csv"))
    assert outcome.code == 1
    assert "different settings for 'run': tolerances is" in outcome.stderr


def test_a_series_that_grew_between_shards_is_found_out(series: Path, tmp_path: Path) -> None:
    shard(series, tmp_path / "shards", 0, 2)
    save_file(weights(seed=7), series / "step_7.safetensors")
    shard(series, tmp_path / "shards", 1, 2)
    outcome = invoke("merge", str(tmp_path / "shards"), "-o", str(tmp_path / "a.csv"))
    assert outcome.code == 1
    assert "divided different lists of checkpoints" in outcome.stderr
    again = shard(series, tmp_path / "shards", 0, 2)
    assert "was started as shard 0/2 of 3 units and is now shard 0/2 of 4 units" in again.error


def test_other_numbers_for_one_checkpoint_are_refused(series: Path, tmp_path: Path) -> None:
    shard(series, tmp_path / "a.csv", 0, 3)
    save_file(weights(seed=99), series / "step_0.safetensors")
    shard(series, tmp_path / "b.csv", 0, 3)
    names = (str(tmp_path / "a.csv"), str(tmp_path / "b.csv"))
    outcome = invoke("merge", *names, "-o", str(tmp_path / "c.csv"), "--partial")
    assert outcome.code == 1
    assert "hold different numbers for step_0.safetensors (step 0)" in outcome.stderr


def test_a_failed_checkpoint_is_reported_once(series: Path, tmp_path: Path) -> None:
    (series / "step_7.safetensors").write_bytes(b"torn")
    skip = ("--on-error", "skip")
    codes = [shard(series, tmp_path / "s", index, 3, *skip).code for index in range(3)]
    assert sorted(codes) == [0, 0, 3]
    outcome = invoke("merge", str(tmp_path / "s"), "-o", str(tmp_path / "a.csv"))
    assert outcome.code == 3
    assert outcome.stderr.count("step_7.safetensors") == 1
    whole = invoke("analyze", str(series), *QUICK, "--on-error", "skip").stdout
    assert_equal((tmp_path / "a.csv").read_text(), whole)


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.long), 2, 9])
def test_values_that_are_not_finite_have_the_status_of_a_single_run(
    series: Path, tmp_path: Path, count: int
) -> None:
    broken = weights(seed=7)
    broken["0.weight"][0, 0] = float("nan")
    save_file(broken, series / "step_7.safetensors")
    for index in range(count):
        shard(series, tmp_path / "s", index, count)
    merged = invoke("merge", str(tmp_path / "s"), "-o", str(tmp_path / "a.csv"))
    single = invoke("analyze", str(series), *QUICK)
    assert merged.code == single.code == 3
    flaw = "localrank: warning: run: step_7.safetensors (step 7): non-finite values in 0, 2"
    assert merged.stderr.splitlines()[0] == flaw
    assert merged.stderr.count("step_7") == 1
    assert flaw in single.stderr.splitlines()
    assert_equal((tmp_path / "a.csv").read_text(), single.stdout)


def test_a_shard_and_the_whole_are_not_mixed(series: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.csv"
    shard(series, target, 0, 2)
    outcome = invoke("analyze", str(series), *QUICK, "-o", str(target))
    assert outcome.code == 1
    assert "was started as shard 0/2 and is now no shard" in outcome.error


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--shard", "3/3"), 2, "counting starts at 0. Of 3 shards the first is 0/3"),
        (("--shard", "0/0"), 2, "counting starts at 0"),
        (("--shard", "x"), 2, "not of the form I/N"),
        (("--shard", "0/2"), 2, "merge needs the journal"),
        (("--shard", "auto"), 1, "neither a Slurm array"),
    ],
)
def test_bad_shards(
    series: Path, words: tuple[str, ...], code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_ARRAY_TASK_ID", "SLURM_STEP_ID", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    outcome = invoke("analyze", str(series), *QUICK, *words)
    assert outcome.code == code
    assert message in outcome.error


def test_spectra_want_whole_checkpoints(series: Path, tmp_path: Path) -> None:
    outcome = shard(series, tmp_path / "s", 0, 9, "--spectra", str(tmp_path / "spectra"))
    assert outcome.code == 1
    assert "more shards than checkpoints" in outcome.error


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("nope", "-o", "a.csv"), 1, "there is no such file or folder"),
        (("run/step_0.safetensors", "-o", "a.csv"), 1, "no journal step_0.safetensors.journal"),
        (("run", "-o", "a.csv"), 1, "holds no table written by localrank"),
        (("run",), 2, "Name one with -o FILE"),
        (("run", "-o", "a.xlsx"), 2, "is not a table format"),
    ],
)
def test_bad_merges(
    series: Path,
    tmp_path: Path,
    words: tuple[str, ...],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = invoke("merge", *words)
    assert outcome.code == code
    assert message in outcome.error


def test_an_existing_output_is_kept(series: Path, tmp_path: Path) -> None:
    shard(series, tmp_path / "s", 0, 1)
    (tmp_path / "a.csv").write_text("precious")
    assert invoke("merge", str(tmp_path / "s"), "-o", str(tmp_path / "a.csv")).code == 1
    assert (tmp_path / "a.csv").read_text() == "precious"
    assert not list(tmp_path.glob(".*"))


def test_an_array_without_shards_is_noted(series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "4")
    outcome = invoke("analyze", str(series), *QUICK)
    assert "--shard auto divides the work" in outcome.stderr


def test_values_that_are_not_finite_end_as_in_a_single_run(series: Path, tmp_path: Path) -> None:
    state = {key: torch.full_like(value, float("nan")) for key, value in weights().items()}
    save_file(state, series / "step_7.safetensors")
    assert {shard(series, tmp_path / "shards", index, 2).code for index in (0, 1)} == {0, 3}
    outcome = invoke("merge", str(tmp_path / "shards"), "-o", str(tmp_path / "ranks.csv"))
    assert outcome.code == 3


def test_a_name_that_is_not_there(tmp_path: Path) -> None:
    outcome = invoke("merge", str(tmp_path / "nope"), "-o", str(tmp_path / "ranks.csv"))
    assert outcome.code == 1
    assert outcome.error.startswith(f"{tmp_path}/nope: there is no such file or folder. Name the")


HOSTILE = "a\nlocalrank: error: forged\x1b[31m[bold]"


def test_names_of_files_forge_no_message(tmp_path: Path) -> None:
    series = save_series(tmp_path / "run")
    assert shard(series, tmp_path / HOSTILE, 0, 2).code == 0
    target = tmp_path / f"{HOSTILE}.csv"
    words = ("merge", str(tmp_path / HOSTILE), "-o", str(target))
    assert invoke(*words).code == 1
    partial = invoke(*words, "--partial")
    assert partial.code == 0
    for line in partial.stderr.splitlines():
        assert line.startswith(("localrank: note: ", "localrank: warning: "))
        assert line.isprintable()
    assert "[bold]" in partial.stderr


@pytest.mark.parametrize("command", ["show", "report", "rethreshold", "inspect", "analyze"])
def test_names_of_runs_forge_no_message_of_other_commands(tmp_path: Path, command: str) -> None:
    series = save_series(tmp_path / HOSTILE)
    table, spectra = tmp_path / f"{HOSTILE}.csv", tmp_path / f"{HOSTILE}.s"
    made = invoke("analyze", str(series), *QUICK, "-o", str(table), "--spectra", str(spectra))
    words = {
        "show": (str(table),),
        "report": (str(table), "--spectra", str(spectra)),
        "rethreshold": (str(spectra), "-o", str(tmp_path / f"{HOSTILE}.tsv")),
        "inspect": (str(series), *QUICK),
    }
    outcome = invoke(command, *words[command]) if command in words else made
    assert outcome.code == 0, outcome.stderr
    for line in outcome.stderr.splitlines():
        assert line.startswith(("localrank: note: ", "localrank: warning: ")), line
    for line in (*outcome.stdout.splitlines(), *outcome.stderr.splitlines()):
        assert line.isprintable()
        assert not line.startswith("localrank: error")
