"""`analyze --follow` as a real process."""

import signal
import time
from functools import partial
from pathlib import Path

import pytest

from localrank_cli.cli import run_analyze
from localrank_cli.cli.screen import Steps
from localrank_cli.run.follow import Watch
from tests.cli.program import QUICK, invoke, start_warm
from tests.helpers import save_series


def wait_for(path: Path, text: str) -> None:
    for _ in range(1200):
        if path.exists() and text in path.read_text():
            return
        time.sleep(0.05)
    pytest.fail(f"{text!r} never came")


@pytest.mark.processes
def test_until_a_step_and_by_a_signal(tmp_path: Path) -> None:
    run, target = tmp_path / "run", tmp_path / "ranks.csv"
    run.mkdir()
    words = ("analyze", str(run), *QUICK, "--follow", "-o", str(target))
    with start_warm(*words, "--until", "10") as process:
        save_series(run, (0, 5))
        wait_for(Path(f"{target}.journal"), "step_5.safetensors")
        save_series(run, (10,))
        assert process.wait(60) == 0
    assert target.read_text() == invoke("analyze", str(run), *QUICK).stdout
    with start_warm(*words) as process:
        save_series(run, (15,))
        wait_for(Path(f"{target}.journal"), "step_15.safetensors")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert target.read_text() == invoke("analyze", str(run), *QUICK).stdout


def test_progress_within_each_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, later, seen = tmp_path / "run", [5, 10], set[str]()
    save_series(run, (0,))

    def sleep(_: float) -> None:
        if later and "run step 0" in seen:
            save_series(run, (later.pop(0),))

    monkeypatch.setattr(run_analyze, "Watch", partial(Watch, sleep=sleep))
    monkeypatch.setattr(Steps, "within", lambda _, checkpoint, *__: seen.add(checkpoint))
    words = ("--follow", "--until", "10", "-o", str(tmp_path / "ranks.csv"))
    assert invoke("analyze", str(run), *QUICK, *words).code == 0
    assert seen == {"run step 0", "run step 5", "run step 10"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--until", "5"), "--until without --follow"),
        (("--follow", "--every", "2"), "still to come"),
        (("--follow", "--last", "2"), "still to come"),
        (("--follow", "--shard", "0/2", "-o", "a.csv"), "cannot be divided"),
    ],
)
def test_what_does_not_go_together(series: Path, words: tuple[str, ...], message: str) -> None:
    outcome = invoke("analyze", str(series), *QUICK, *words)
    assert outcome.code == 2
    assert message in outcome.error
