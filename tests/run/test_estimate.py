"""What takes hours is announced before it starts; what does not is not even measured."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from localrank_cli.cli import run_analyze
from localrank_cli.jacobian import probe
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
    assert " for 3 checkpoints, judging by a few timed products" in line


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
        before_qr = width
        width = min(width, active) if active < n_out else width
        product = 2.0 * n_out * active * width
        if width < before_qr:
            product += 2.0 * before_qr * active**2  # of the QR
        short, long = sorted((n_out, width))
        expected.append(5 * (product + 2.0 * long * short**2))
        assert state[f"{name}.weight"].shape[0] == n_out
    assert [one.seconds for one in found.pairs] == expected


@pytest.mark.parametrize("network", ["chain", "convolutions"])
def test_products_for_intervals_are_timed_as_they_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str
) -> None:
    """With two seconds for J^T (J v) of each vector, and none for what is done with it."""
    taken: list[int] = []

    def seconds(push: Callable[[int], object], count: int) -> float:
        push(count)
        taken.append(count)
        return 2.0 * count

    monkeypatch.setattr(probe, "_seconds", seconds)
    monkeypatch.setattr(estimate, "_solving", lambda *_: (0.0, 0.0))
    monkeypatch.setattr(estimate, "_CHECKS", 0)
    bounded = partial(plan, method="interval", products=60, rtol=(0.1,))
    if network == "chain":
        planned = bounded(save_series(tmp_path / "run", (0,), (20, 30, 3)), data="normal:20")
    else:
        code = "from torch import nn\ndef net():\n    return nn.Sequential(nn.Conv2d(1, 2, 3))\n"
        (tmp_path / "net.py").write_text(code)
        (tmp_path / "run").mkdir()
        model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3))
        torch.save(model.state_dict(), tmp_path / "run" / "step_0.pt")
        planned = bounded(tmp_path / "run", data="normal:1x6x6", model=f"{tmp_path}/net.py:net")
    (series,) = planned.series
    found = estimate.estimate(planned, series, may_compute=False)
    # Of one probe for the counts and two for sigma_1.
    assert set(taken) == {3}
    n_points = len(series.points.indices)
    assert n_points > 1
    assert found.pairs[-1].seconds == pytest.approx(n_points * 60 * 1.0)
