"""What takes hours is announced before it starts; what does not is not even measured."""

from functools import partial
from pathlib import Path

import pytest

from localrank_cli.cli import run_analyze
from localrank_cli.run import estimate
from localrank_cli.run.estimate import long_time
from tests.cli.program import QUICK, invoke
from tests.helpers import save_series
from tests.run.test_plan import plan


def test_a_small_network_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "estimate", lambda *_, **__: pytest.fail("measured"))
    assert long_time(plan(save_series(tmp_path / "run", range(40)))) is None


def test_a_long_analysis_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_analyze, "long_time", partial(long_time, limit=0.0))
    outcome = invoke("analyze", str(save_series(tmp_path / "run")), *QUICK)
    assert outcome.code == 0
    (line,) = [line for line in outcome.stderr.splitlines() if "takes about" in line]
    assert line.startswith("localrank: note: the analysis takes about ")
    assert " for 3 checkpoints, by a few timed products" in line
