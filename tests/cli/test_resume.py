"""Resuming a run, refusing to mix analyses, and leaving bad checkpoints out."""

import fcntl
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from localrank_cli.results.journal import line_of
from localrank_cli.results.spectra import spectra_path
from localrank_cli.results.write import temporary_path
from tests.cli.program import QUICK, Outcome, analyze, at_once, invoke, rows, run, start_warm
from tests.helpers import NET_CODE, entries, net_weights, save_epochs, save_series, weights


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "ranks.csv"


def computed(outcome: Outcome) -> int:
    """Return how many checkpoints were computed, from the output of -v."""
    return sum(" s, chain" in line for line in outcome.stderr.splitlines())


@pytest.mark.parametrize("name", ["ranks.csv", "ranks.tsv", "ranks.jsonl", "ranks.parquet"])
def test_the_same_command_resumes(series: Path, tmp_path: Path, name: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    target = tmp_path / name
    first = analyze(series, target, "-v", "--last", "1")
    assert (first.code, computed(first)) == (0, 1)
    second = analyze(series, target, "-v")
    assert (second.code, computed(second)) == (0, 2)
    assert "resuming: 1 of 3 checkpoints are already finished" in second.stderr
    third = analyze(series, target, "-v")
    assert (third.code, computed(third)) == (0, 0)
    whole = tmp_path / f"whole{target.suffix}"
    analyze(series, whole)
    assert target.read_bytes() == whole.read_bytes()
    assert json.loads(Path(f"{target}.json").read_text())["complete"] is True


def test_new_checkpoints_are_added_and_vanished_ones_kept(series: Path, target: Path) -> None:
    analyze(series, target)
    save_file(weights(seed=7), series / "step_7.safetensors")
    expected = at_once(series)
    (series / "step_0.safetensors").unlink()
    outcome = analyze(series, target, "-v")
    assert (outcome.code, computed(outcome)) == (0, 1)
    assert "step_0.safetensors no longer exists; its rows are kept" in outcome.stderr
    assert target.read_text() == expected


def test_another_series_is_added(series: Path, target: Path, tmp_path: Path) -> None:
    other = save_series(tmp_path / "other", (1, 2))
    analyze(series, target)
    outcome = invoke("analyze", str(series), str(other), *QUICK, "-o", str(target), "-v")
    assert (outcome.code, computed(outcome)) == (0, 2)
    assert target.read_text() == invoke("analyze", str(series), str(other), *QUICK).stdout


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--atol", "0.5"), "tolerances was ['atol=0.01'] and is now ['atol=0.5']"),
        (("--seed", "1"), "seed was 0 and is now 1"),
        (("--points", "6"), "points was"),
        (("--layers", "0"), "layers was"),
        (("--noise", "2"), "noise was 1.0 and is now 2.0"),
        (("--dtype", "float32"), "dtype was float64 and is now float32"),
        (("--activation", "tanh"), "model was plain MLP inferred from the weights, relu"),
        (("--data", "uniform:4"), "data was normal:4 and is now uniform:4"),
    ],
)
def test_other_settings_are_not_mixed(
    series: Path, target: Path, words: tuple[str, ...], named: str
) -> None:
    analyze(series, target)
    before = {name: (target.parent / name).read_bytes() for name in ("ranks.csv", "ranks.csv.json")}
    outcome = analyze(series, target, *words)
    assert outcome.code == 1
    assert named in outcome.error
    assert "--overwrite" in outcome.error
    assert "rerun the same command" not in outcome.stderr  # it would be refused again
    assert before == {name: (target.parent / name).read_bytes() for name in before}
    assert analyze(series, target, *words, "--overwrite").code == 0
    assert target.read_text() == at_once(series, *words)
    assert entries(target.parent) == ["ranks.csv", "ranks.csv.journal", "ranks.csv.json", "run"]


def rewrite_journal(target: Path, edit: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change every line's head and body, with sound checksums."""
    journal = Path(f"{target}.journal")
    lines = []
    for line in journal.read_text().splitlines():
        saved = json.loads(line)
        edit(saved["head"], saved["body"])
        lines.append(line_of(saved["head"], saved["body"]))
    journal.write_bytes(b"".join(lines))


def test_a_journal_of_the_first_release_resumes(series: Path, target: Path) -> None:
    def name_no_measures(head: dict[str, Any], body: dict[str, Any]) -> None:
        if head["kind"] == "settings":
            del body["measures"]

    analyze(series, target, "--last", "1")
    rewrite_journal(target, name_no_measures)
    outcome = analyze(series, target, "-v")
    assert (outcome.code, computed(outcome)) == (0, 2)
    assert target.read_text() == at_once(series)


def layers_of(head: dict[str, Any], body: dict[str, Any]) -> list[dict[str, Any]]:
    return body["layers"] if head["kind"] == "checkpoint" else []


def lack_one(head: dict[str, Any], body: dict[str, Any]) -> None:
    """Make a record as it was before there was a stable rank."""
    if head["kind"] == "settings":
        body["measures"].remove("stable_rank")
    for layer in layers_of(head, body):
        del layer["soft"]["stable_rank"]


def emptied(table: str) -> list[dict[str, str]]:
    return [row | {"stable_rank": "", "stable_rank_se": ""} for row in rows(table)]


def test_a_journal_from_before_a_measure_is_resumed_without_it(series: Path, target: Path) -> None:
    analyze(series, target, "--last", "1")
    rewrite_journal(target, lack_one)
    outcome = analyze(series, target, "-v")
    assert (outcome.code, computed(outcome)) == (0, 2)
    assert "before localrank had stable_rank" in outcome.stderr
    whole = at_once(series)
    assert rows(target) == emptied(whole)
    merged = target.parent / "merged.csv"
    assert invoke("merge", str(target), "-o", str(merged)).code == 0
    assert merged.read_bytes() == target.read_bytes()
    assert analyze(series, target, "--overwrite").code == 0
    assert target.read_text() == whole


def test_tables_with_and_without_a_measure_are_not_merged(series: Path, target: Path) -> None:
    analyze(series, target, "--last", "1")
    rewrite_journal(target, lack_one)
    other = target.with_name("other.csv")
    analyze(series, other, "--steps", "0:0")
    merged = invoke("merge", str(target), str(other), "-o", str(target.with_name("merged.csv")))
    assert merged.code == 1
    assert (
        "they were written by versions of localrank that differ in the measures stable_rank"
        in merged.error
    )


def test_kept_singular_values_serve_a_measure_that_came_later(series: Path, target: Path) -> None:
    words = ("--spectra", str(target.parent / "spectra"))
    analyze(series, target, *words)
    rewrite_journal(target, lack_one)
    outcome = analyze(series, target, "-v", *words)
    assert (outcome.code, computed(outcome)) == (0, 0)


def test_another_choice_of_measures_is_refused_beside_an_earlier_version(
    series: Path, target: Path
) -> None:
    analyze(series, target)
    rewrite_journal(target, lack_one)
    outcome = analyze(series, target, "--measures", "counts")
    assert outcome.code == 1
    assert "--measures was all and is now counts" in outcome.error


def test_a_journal_of_a_later_version_is_refused_by_name(series: Path, target: Path) -> None:
    def have_more(head: dict[str, Any], body: dict[str, Any]) -> None:
        if head["kind"] == "settings":
            body["measures"].append("future_rank")
        for layer in layers_of(head, body):
            layer["soft"]["future_rank"] = layer["soft"]["stable_rank"]

    analyze(series, target)
    before = target.read_bytes()
    rewrite_journal(target, have_more)
    outcome = analyze(series, target)
    assert outcome.code == 1
    assert "differs in the measures future_rank." in outcome.error
    assert target.read_bytes() == before
    merged = invoke("merge", str(target), "-o", str(target.parent / "merged.csv"))
    assert merged.code == 1
    assert "with the measures future_rank, which this one lacks" in merged.error


def test_measures_that_the_settings_do_not_name_are_refused(series: Path, target: Path) -> None:
    def lack_values(head: dict[str, Any], body: dict[str, Any]) -> None:
        for layer in layers_of(head, body):
            del layer["soft"]["stable_rank"]

    analyze(series, target)
    rewrite_journal(target, lack_values)
    merged = invoke("merge", str(target), "-o", str(target.parent / "merged.csv"))
    assert merged.code == 1
    assert "body.layers[0].soft: expected " in merged.error


def test_what_is_no_setting(series: Path, target: Path) -> None:
    analyze(series, target, "--last", "1")
    outcome = analyze(series, target, "--memory", "1GiB", "-v", "--steps", "0:5")
    assert (outcome.code, computed(outcome)) == (0, 2)
    assert target.read_text() == at_once(series)


def test_a_model_file_that_changed_is_another_setting(tmp_path: Path, target: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save(net_weights(), folder / "step_1.pt")
    (tmp_path / "net.py").write_text(NET_CODE)
    words = ("--model", f"{tmp_path}/net.py:Net")
    assert analyze(folder, target, *words).code == 0
    (tmp_path / "net.py").write_text(NET_CODE.replace("relu", "tanh"))
    assert "model sha256 was" in analyze(folder, target, *words).error


def test_data_may_lie_elsewhere_but_not_change(series: Path, target: Path, tmp_path: Path) -> None:
    def with_data(path: Path) -> Outcome:
        return invoke("analyze", str(series), "--data", str(path), "-o", str(target))

    torch.save(torch.rand(9, 4), tmp_path / "a.pt")
    assert with_data(tmp_path / "a.pt").code == 0
    shutil.copy(tmp_path / "a.pt", tmp_path / "b.pt")
    assert with_data(tmp_path / "b.pt").code == 0
    torch.save(torch.rand(9, 4), tmp_path / "a.pt")
    assert "content of the data was" in with_data(tmp_path / "a.pt").error


def test_a_finished_checkpoint_that_changed_is_refused(series: Path, target: Path) -> None:
    analyze(series, target)
    save_file(weights(seed=99), series / "step_5.safetensors")
    outcome = analyze(series, target)
    assert outcome.code == 1
    assert "step_5.safetensors (step 5): its weights changed since" in outcome.error
    assert "rerun the same command" not in outcome.stderr


def test_a_checkpoint_that_was_only_touched_is_hashed_once(series: Path, target: Path) -> None:
    analyze(series, target)
    os.utime(series / "step_5.safetensors", (1, 1))
    for _ in range(2):
        outcome = analyze(series, target, "-v")
        assert (outcome.code, computed(outcome)) == (0, 0)
    lines = Path(f"{target}.journal").read_text().splitlines()
    records = [json.loads(line)["head"] for line in lines]
    assert [head.get("step") for head in records].count(5) == 2


def test_overwrite_that_fails_leaves_the_old(series: Path, target: Path) -> None:
    analyze(series, target)
    before = {name: (target.parent / name).read_bytes() for name in ("ranks.csv", "ranks.csv.json")}
    (series / "step_9.safetensors").write_bytes(b"torn")
    assert analyze(series, target, "--overwrite", "--atol", "1").code == 1
    assert before == {name: (target.parent / name).read_bytes() for name in before}
    (series / "step_9.safetensors").unlink()
    assert analyze(series, target).code == 0


def test_overwrite_needs_a_file(series: Path) -> None:
    assert invoke("analyze", str(series), *QUICK, "--overwrite").code == 2


class TestSkip:
    def broken(self, series: Path) -> None:
        (series / "step_7.safetensors").write_bytes(b"torn")
        save_file(weights(4, 5, 2), series / "step_8.safetensors")

    def test_bad_checkpoints_have_a_row_that_says_why(self, series: Path, target: Path) -> None:
        expected = at_once(series).splitlines()
        self.broken(series)
        assert analyze(series, target).code == 1
        outcome = analyze(series, target, "--on-error", "skip")
        assert outcome.code == 3
        assert "left out: " in outcome.stderr
        table = rows(target)
        assert [row["step"] for row in table] == ["0", "0", "5", "5", "7", "8", "10", "10"]
        bad = [row for row in table if row["status"] != "ok"]
        assert [row["status"] for row in bad] == ["unreadable", "mismatch"]
        for row, word in zip(bad, ("not a readable safetensors file", "0.weight"), strict=True):
            assert word in row["message"]
            filled = {key for key, value in row.items() if value}
            assert filled == {"run", "checkpoint", "step", "status", "message"}
        kept = [line for line in target.read_text().splitlines() if ",ok," in line]
        assert kept == expected[1:]
        assert json.loads(Path(f"{target}.json").read_text())["complete"] is False

    def test_they_are_tried_again_and_replaced(self, series: Path, target: Path) -> None:
        self.broken(series)
        analyze(series, target, "--on-error", "skip")
        for step in (7, 8):
            save_file(weights(seed=step), series / f"step_{step}.safetensors")
        outcome = analyze(series, target, "-v")
        assert (outcome.code, computed(outcome)) == (0, 2)
        assert target.read_text() == at_once(series)

    def test_one_that_is_removed_is_forgotten(self, series: Path, target: Path) -> None:
        expected = at_once(series)
        self.broken(series)
        analyze(series, target, "--on-error", "skip")
        for step in (7, 8):
            (series / f"step_{step}.safetensors").unlink()
        outcome = analyze(series, target)
        assert outcome.code == 0
        assert outcome.stderr.count("its row is dropped") == 2
        assert target.read_text() == expected
        assert "dropped" not in analyze(series, target).stderr

    def test_a_failure_stays_one_without_a_repair(self, series: Path, target: Path) -> None:
        self.broken(series)
        for _ in range(2):
            assert analyze(series, target, "--on-error", "skip").code == 3
        assert len(rows(target)) == 8

    def test_in_a_pipe(self, series: Path) -> None:
        self.broken(series)
        outcome = invoke("analyze", str(series), *QUICK, "--on-error", "skip")
        assert outcome.code == 3
        assert len(outcome.stdout.splitlines()) == 9

    def test_none_is_left(self, series: Path, target: Path) -> None:
        for path in series.iterdir():
            path.write_bytes(b"torn")
        outcome = analyze(series, target, "--on-error", "skip")
        assert outcome.code == 1
        assert "none of its 3 checkpoints can be analyzed; the first:" in outcome.error
        assert entries(target.parent) == ["run"]

    def test_a_fault_that_no_header_shows(self, tmp_path: Path, target: Path) -> None:
        code = NET_CODE.replace(
            "        return self.b",
            "        assert self.a.bias[0] < 9, 'too large'\n        return self.b",
        )
        (tmp_path / "net.py").write_text(code)
        folder = tmp_path / "run"
        folder.mkdir()
        for step in (1, 2, 3):
            bias = {"a.bias": torch.full((3,), 10.0 if step == 2 else 0.0)}
            torch.save(net_weights() | bias, folder / f"step_{step}.pt")
        words = ("--model", f"{tmp_path}/net.py:Net", "--on-error", "skip")
        assert analyze(folder, target, *words).code == 3
        assert [row["status"] for row in rows(target)] == ["ok", "ok", "failed", "ok", "ok"]
        assert "too large" in rows(target)[2]["message"]

    def test_an_unknown_word(self, series: Path) -> None:
        assert invoke("analyze", str(series), *QUICK, "--on-error", "ignore").code == 2


def test_two_processes_on_one_output(series: Path, target: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        NET_CODE.replace("return self.b", "import time; time.sleep(100)\n        return self.b")
    )
    for step in (0, 5, 10):
        torch.save(net_weights(step), series / f"step_{step}.pt")
        (series / f"step_{step}.safetensors").unlink()
    words = ("analyze", str(series), *QUICK, "--model", f"{tmp_path}/net.py:Net", "-o", str(target))
    with start_warm(*words) as first:
        for _ in range(600):
            if Path(f"{target}.lock").exists():
                break
            time.sleep(0.05)
        second = run(*words)
        first.kill()
    assert second.code == 1
    assert f"process {first.pid} on " in second.error


def interrupted(series: Path, target: Path, delay: float) -> int:
    """Kill a run at some instant after its first finished checkpoint; return how many it kept."""
    journal = Path(f"{target}.journal")
    with start_warm("analyze", str(series), *QUICK, "-q", "-o", str(target)) as process:
        while process.poll() is None and not (journal.exists() and journal.stat().st_size > 4000):
            time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    return journal.read_bytes().count(b'"kind":"checkpoint"')


def killed(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    series = save_series(tmp_path / "run", range(60))
    target = tmp_path / "ranks.csv"
    interrupted(series, target, chance.uniform(0, 0.6))
    whole = [line for line in Path(f"{target}.journal").read_bytes().splitlines(True) if line]
    finished = sum(b'"kind":"checkpoint"' in line and line.endswith(b"\n") for line in whole)
    outcome = run("analyze", str(series), *QUICK, "-v", "-o", str(target))
    assert outcome.code == 0, outcome.stderr
    assert computed(outcome) == 60 - finished  # nothing lost, nothing twice
    assert target.read_text() == at_once(series)
    assert entries(tmp_path) == ["ranks.csv", "ranks.csv.journal", "ranks.csv.json", "run"]


@pytest.mark.processes
@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_instant(tmp_path: Path, seed: int) -> None:
    killed(tmp_path, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 50))
def test_killed_at_many_instants(tmp_path: Path, seed: int) -> None:
    killed(tmp_path, seed)


class TestStepsThatTurnOutToBeginAnew:
    """Earlier rows hold the step within the epoch as if it were that of the training."""

    def begun(self, tmp_path: Path, target: Path) -> Path:
        run = save_epochs(tmp_path / "run", [(0, 40)])
        assert analyze(run, target).code == 0
        return save_epochs(run, [(0, 40), (1, 20), (2, 60)])

    def test_the_two_are_not_mixed(self, tmp_path: Path, target: Path) -> None:
        run = self.begun(tmp_path, target)
        before = target.read_bytes()
        refused = analyze(run, target)
        assert refused.code == 1
        assert "the unit of the steps was not set and is now epochs" in refused.error
        assert target.read_bytes() == before
        assert analyze(run, target, "--overwrite").code == 0
        assert [row["step"] for row in rows(target)] == ["0", "0", "1", "1", "2", "2"]

    def test_also_where_the_earlier_ones_are_gone(self, tmp_path: Path, target: Path) -> None:
        run = self.begun(tmp_path, target)
        for name in ("c_00.pt", "c_02.pt"):
            (run / name).unlink()
        refused = analyze(run, target)
        assert "c_01.pt: epoch 1, step 20 after c_00.pt: epoch 0, step 40" in refused.error
        assert analyze(run, target, "--overwrite").code == 0

    def test_another_source_of_steps_is_refused(self, tmp_path: Path, target: Path) -> None:
        run = save_epochs(tmp_path / "run", [(0, 40), (1, 60)])
        assert analyze(run, target).code == 0
        refused = analyze(run, target, "--step-from", "epoch")
        assert "the unit of the steps was not set and is now epochs" in refused.error
        (run / "c_00.pt").unlink()
        refused = analyze(run, target, "--step-regex", r"c_(\d+)")
        assert r"--step-regex (or --step-pattern) was not set and is now c_(\d+)" in refused.error

    def test_a_part_of_the_series_counts_as_the_whole(self, tmp_path: Path, target: Path) -> None:
        run = save_epochs(tmp_path / "run", [(0, 40), (1, 20), (2, 60)])
        assert analyze(run, target, "--steps", "1:2").code == 0
        assert [row["step"] for row in rows(target)] == ["1", "1", "2", "2"]


def left_by_a_kill(target: Path) -> Path:
    path = temporary_path(target)
    path.write_bytes(b"half a file")
    return path


@pytest.mark.parametrize("words", [(), ("--overwrite",)])
def test_the_next_start_removes_what_a_kill_left(
    series: Path, target: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    spectra = tmp_path / "S"
    assert analyze(series, target, "--spectra", str(spectra), "--last", "1").code == 0
    gone = [
        left_by_a_kill(path)
        for path in (
            *(target.with_name(target.name + end) for end in ("", ".json", ".journal")),
            spectra_path(spectra, "run", 0),
            spectra_path(spectra, "run", 10),
            spectra_path(spectra, "run", 77),  # of a checkpoint that is gone too
        )
    ]
    others = [
        left_by_a_kill(path)
        for path in (
            target.with_name("ranks.csv.other.csv"),  # another table, which may be written now
            spectra_path(spectra, "run", 78),  # which another process is writing
            spectra / "run/notes.txt",
            spectra / "run/step_0.safetensors.txt",
        )
    ]
    others.append(spectra / "run/.step_0.safetensors.draft.tmp")
    others[-1].touch()
    with others[1].open("r+b") as writing:
        fcntl.flock(writing, fcntl.LOCK_EX)
        assert analyze(series, target, "--spectra", str(spectra), *words).code == 0
    assert [path.name for path in gone if path.exists()] == []
    assert [path.name for path in others if not path.exists()] == []


@pytest.mark.parametrize("command", ["merge", "rethreshold"])
def test_so_do_merge_and_rethreshold(
    series: Path, target: Path, tmp_path: Path, command: str
) -> None:
    analyze(series, tmp_path / "first.csv", "--spectra", str(tmp_path / "S"))
    source = tmp_path / ("first.csv" if command == "merge" else "S")
    gone = [
        left_by_a_kill(target.with_name(target.name + end)) for end in ("", ".json", ".journal")
    ]
    assert invoke(command, str(source), "-o", str(target)).code == 0
    assert [path.name for path in gone if path.exists()] == []


def test_a_refused_overwrite_leaves_everything_as_it_was(series: Path, target: Path) -> None:
    analyze(series, target)
    before = {path.name: path.read_bytes() for path in target.parent.glob("*.csv*")}
    assert analyze(series, target, "--overwrite", "--layers", "nothing").code == 1
    assert {path.name: path.read_bytes() for path in target.parent.glob("*.csv*")} == before
    assert not list(target.parent.glob(".*"))
