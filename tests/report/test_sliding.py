from pathlib import Path

import numpy as np
import pytest

from localrank_cli.report.sliding import slider_data
from localrank_cli.results.kept import SpectraFile
from tests.figures.tables import save_spectra


def test_ranks_at_every_tolerance(tmp_path: Path) -> None:
    file = SpectraFile(save_spectra(tmp_path / "s.safetensors"))
    kept, notes = slider_data(file, {"run": [0, 1000]})
    assert notes == ()
    assert kept is not None
    absolute = kept["atol"]
    grid = np.array(absolute["grid"])
    assert {1e-6, 0.01, 0.1, 1.0} <= set(grid)
    assert (np.diff(grid) > 0).all()
    ranks = absolute["runs"]["run"]["layer1"]  # 0.5, 0.05, 0.005, ...
    assert set(ranks) == {"0", "1000"}
    for tolerance, rank in ((0.01, 2), (0.1, 1), (1.0, 0), (1e-6, 5)):
        assert ranks["0"][list(grid).index(tolerance)] == rank
    relative = kept["rtol"]["runs"]["run"]["layer1"]["0"]  # halving all does not change these
    assert relative == kept["rtol"]["runs"]["run"]["layer0"]["0"]


def test_other_runs(tmp_path: Path) -> None:
    file = SpectraFile(save_spectra(tmp_path / "s.safetensors"))
    kept, (note,) = slider_data(file, {"other": [0]})
    assert kept is None
    assert "belong to other runs" in note


@pytest.mark.parametrize("steps", [200])
def test_a_long_run_stays_small(tmp_path: Path, steps: int) -> None:
    file = SpectraFile(save_spectra(tmp_path / "s.safetensors", steps=range(steps), layers=20))
    kept, _ = slider_data(file, {"run": list(range(steps))})
    assert kept is not None
    assert len(kept["atol"]["grid"]) * steps * 20 * 2 <= 400_000
