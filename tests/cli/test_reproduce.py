"""`localrank reproduce`: its verdict, files and exit status, on trainings of a few steps."""

import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from localrank_cli.experiments import gaussian, generalization
from localrank_cli.experiments.experiment import Claim, Verdict
from localrank_cli.experiments.generalization import Cell
from tests.cli.program import invoke


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(gaussian.RECIPE, steps=4, save_at=(0, 4))
    monkeypatch.setattr(gaussian, "RECIPE", recipe)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.mark.usefixtures("short")
def test_a_verdict_that_does_not_hold(tmp_path: Path) -> None:
    out = tmp_path / "here"
    outcome = invoke("reproduce", "gaussian", "--out", str(out), "--seeds", "2")
    assert outcome.code == 4  # nothing is learned in four steps
    assert outcome.stdout == (out / "verdict.txt").read_text()
    assert outcome.stdout.endswith("verdict: NOT every claim holds\n")
    assert "no picture: matplotlib is not installed" in outcome.stderr
    assert f"wrote {out / 'ranks.csv'}" in outcome.stderr
    frame = pd.read_csv(out / "ranks.csv")
    assert sorted(frame["run"].unique()) == [
        "decay_seed_0", "decay_seed_1", "no_decay_seed_0", "no_decay_seed_1",
    ]  # fmt: skip
    assert sorted(frame["weight_decay"].unique()) == [0.0, 0.005]
    assert (out / "ranks.csv.json").exists()


@pytest.mark.usefixtures("short")
def test_a_verdict_that_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = []

    def judge(frame: pd.DataFrame) -> Verdict:
        frames.append(frame)
        return Verdict("gaussian", "SGD", (Claim("rank", "3", "3", holds=True),))

    monkeypatch.setattr(gaussian, "judge", judge)
    outcome = invoke("reproduce", "gaussian", "--out", str(tmp_path), "--seeds", "1", "--quiet")
    assert (outcome.code, outcome.stderr) == (0, "")
    assert outcome.stdout.endswith("verdict: every claim holds\n")
    # What is judged is the table, with the figures of the training beside.
    (frame,) = frames
    assert len(frame) == 2 * 2 * 3
    assert frame["test_error"].notna().all()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep of 6 networks and one control, in this process."""
    swept = [Cell(width=width, samples=60) for width in (16, 32, 64)]
    monkeypatch.setattr(generalization, "cells", lambda quick: swept)
    random = [replace(swept[0], label_noise=generalization.RANDOM)]
    monkeypatch.setattr(generalization, "controls", lambda quick: random)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.mark.usefixtures("small")
def test_a_sweep_resumes_and_its_parts_are_trained_once(tmp_path: Path) -> None:
    words = ("reproduce", "generalization", "--quick", "--seeds", "2", "--out", str(tmp_path))
    outcome = invoke(*words, "--shard", "1/2")
    assert (outcome.code, outcome.stdout) == (0, "")
    done = sorted(tmp_path.glob("*/metrics.csv"))
    assert len(done) == 3
    assert not (tmp_path / "ranks.csv").exists()
    before = [path.stat().st_mtime_ns for path in done]
    outcome = invoke(*words)
    assert outcome.code in {0, 4}, outcome.stderr
    assert [path.stat().st_mtime_ns for path in done] == before
    frame = pd.read_csv(tmp_path / "ranks.csv")
    assert frame["run"].nunique() == 2 * 3 + 1
    verdict = (tmp_path / "verdict.txt").read_text()
    # After a stop before the verdict, the table of the first analysis serves.
    (tmp_path / "verdict.txt").unlink()
    assert invoke(*words).stdout == verdict
    outcome = invoke(*words)
    assert (outcome.code, "verdict.txt: already exists" in outcome.error) == (1, True)


@pytest.mark.long
def test_workers_train_the_sweep_of_a_single_process(tmp_path: Path) -> None:
    words = ("reproduce", "generalization", "--quick", "-q", "--out")
    texts = []
    for name, more in (("one", ()), ("two", ("--workers", "2"))):
        outcome = invoke(*words, str(tmp_path / name), *more)
        assert outcome.code == 0, outcome.stderr
        texts.append(outcome.stdout)
    assert texts[0] == texts[1]


def test_an_existing_table_is_kept(tmp_path: Path) -> None:
    (tmp_path / "ranks.csv").write_text("mine")
    outcome = invoke("reproduce", "gaussian", "--out", str(tmp_path))
    assert outcome.code == 1
    assert outcome.error.endswith("already exists. Choose another folder with --out.")
    assert [path.name for path in tmp_path.iterdir()] == ["ranks.csv"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["mnist"], 2, "needs the digits: --mnist FILE. Give an .npz archive"),
        (["mnist", "--mnist", "none.npz"], 1, "--mnist none.npz: there is no such file."),
        (
            ["gaussian", "--mnist", "none.npz"],
            2,
            "--mnist is for `localrank reproduce mnist` and `patel2024`",
        ),
        (["patel2024"], 2, "reproduce patel2024 needs the digits: --mnist FILE."),
        (["patel2024", "--mnist", "none.npz"], 1, "--mnist none.npz: there is no such file."),
        (["patel2024", "--steps", "0"], 2, "--steps 0: expected at least 1."),
        (["patel2024", "--steps", "5", "--quick"], 2, "--steps is for `localrank reproduce patel"),
        (["mnist", "--steps", "5"], 2, "--steps is for `localrank reproduce patel2024`"),
        (["gaussian", "--seeds", "0"], 2, "--seeds 0: expected at least 1."),
        (["moon"], 2, "Choose gaussian, mnist, vib, patel2024, generalization or compression."),
        (["vib", "--workers", "2"], 2, "--workers is for `localrank reproduce generalization`"),
        (["generalization", "--workers", "2", "--shard", "0/2"], 2, "--workers with --shard"),
    ],
)
def test_refused(tmp_path: Path, words: list[str], code: int, message: str) -> None:
    outcome = invoke("reproduce", *words, "--out", str(tmp_path / "out"))
    assert outcome.code == code
    assert message in outcome.error
    assert not (tmp_path / "out").exists()
