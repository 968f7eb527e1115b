"""`localrank reproduce`: its verdict, files and exit status, on trainings of a few steps."""

import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from localrank_cli.experiments import gaussian
from localrank_cli.experiments.experiment import Claim, Verdict
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


def test_an_existing_table_is_kept(tmp_path: Path) -> None:
    (tmp_path / "ranks.csv").write_text("mine")
    outcome = invoke("reproduce", "gaussian", "--out", str(tmp_path))
    assert outcome.code == 1
    assert outcome.error.endswith("exists already. Choose another folder with --out.")
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
        (
            ["moon"],
            2,
            "EXPERIMENT moon: unknown. Choose gaussian, mnist, vib, patel2024 or compression.",
        ),
    ],
)
def test_refused(tmp_path: Path, words: list[str], code: int, message: str) -> None:
    outcome = invoke("reproduce", *words, "--out", str(tmp_path / "out"))
    assert outcome.code == code
    assert message in outcome.error
    assert not (tmp_path / "out").exists()
