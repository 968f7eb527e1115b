"""What takes hours is announced before it starts; what does not is not even measured."""

from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file

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


def test_a_chain_takes_its_active_units_and_its_first_layer_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a second for each operation of a product, and none for eigenvalues."""
    monkeypatch.setattr(estimate, "_solving", lambda *_: (1.0, 0.0))
    run = save_series(tmp_path / "run", (0,), (20, 30, 30, 3))
    planned = plan(run, data="normal:20", points=5)
    (series,) = planned.series
    found = estimate.estimate(planned, series, may_compute=False)
    state = load_file(run / "step_0.safetensors")
    hidden, width, expected = series.points.tensor[0].double(), 20, [2.0 * 30 * 20**2]
    for n_out, name, before in ((30, "2", "0"), (3, "4", "2")):
        hidden = (state[f"{before}.weight"].double() @ hidden + state[f"{before}.bias"]).relu()
        active = int((hidden > 0).sum())
        product = 2.0 * n_out * active * min(width, active)
        if active < width:
            product += 2.0 * width * active**2  # of the QR
        width = min(width, active)
        short, long = sorted((n_out, width))
        expected.append(5 * (product + 2.0 * long * short**2))
        assert state[f"{name}.weight"].shape[0] == n_out
    assert [one.seconds for one in found.pairs] == expected
