import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import localrank_cli.report.data
from localrank_cli.errors import DataError
from localrank_cli.report.data import page_data, round_values, slider_data
from localrank_cli.results.kept import SpectraFile
from tests.figures.tables import many, save_spectra, table


def test_every_number_is_on_the_page() -> None:
    frame = table(runs=("a", "b"), tolerances=("atol=0.01", "rtol=eps"))
    data, notes = page_data(frame)
    assert notes == ()
    assert [one["name"] for one in data["measures"]] == [
        "local_rank", "effective_rank", "jacobian_norm",
    ]  # fmt: skip
    assert data["tolerances"] == ["atol=0.01", "rtol=eps"]
    assert data["layers"] == ["layer0", "layer1", "layer2"]
    assert [run["name"] for run in data["runs"]] == ["a", "b"]
    layer = data["runs"][1]["layers"][2]
    assert (layer["name"], layer["max_rank"], layer["size"]) == ("layer2", 40, "40 x 50")
    assert layer["steps"] == [0, 10, 100, 1000]
    rows = frame[(frame["run"] == "b") & (frame["layer"] == "layer2")]
    for label in data["tolerances"]:
        wanted = rows[rows["tolerance"] == label]["local_rank"].tolist()
        assert layer["values"]["local_rank"][label]["y"] == pytest.approx(wanted, rel=1e-4)
        assert layer["values"]["local_rank"][label]["e"] == [0.5] * 4
    assert layer["values"]["effective_rank"] == {
        "": {"y": pytest.approx([15, 15.521, 16.002, 16.5], abs=1e-3), "e": [0.25] * 4}
    }
    assert "e" not in layer["values"]["jacobian_norm"][""]  # all zero
    json.dumps(data, allow_nan=False)


def test_missing_values_are_null_and_steps_stay_aligned() -> None:
    frame = table(tolerances=("atol=0.01", "rtol=eps"))
    frame = frame[~((frame["step"] == 10) & (frame["tolerance"] == "rtol=eps"))]
    frame.loc[frame["step"] == 100, "effective_rank"] = np.nan
    layer = page_data(frame)[0]["runs"][0]["layers"][0]
    assert layer["steps"] == [0, 10, 100, 1000]
    assert [y is None for y in layer["values"]["local_rank"]["rtol=eps"]["y"]] == [0, 1, 0, 0]
    assert [y is None for y in layer["values"]["effective_rank"][""]["y"]] == [0, 0, 1, 0]


def test_a_large_table_is_thinned_and_keeps_its_ends() -> None:
    data, (note,) = page_data(many(100, 4000))
    steps = data["runs"][0]["layers"][0]["steps"]
    assert (steps[0], steps[-1]) == (0, 3999)
    assert 1 in steps  # the first steps are what a log axis shows most of
    assert note == f"the page holds {len(steps)} of 4000 steps to stay small"
    assert len(json.dumps(data)) < 5_000_000


def test_rounding() -> None:
    assert round_values([1.0, 0.1234567, np.nan, np.inf, 0.0]) == [1, 0.12346, None, None, 0]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (table().drop(columns=["local_rank", "effective_rank", "jacobian_norm"]), "no column of a"),
        (pd.concat([table(), table()]), "several rows describe layer layer0 of run at step 0"),
    ],
)
def test_tables_that_make_no_page(frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(DataError, match=message):
        page_data(frame)


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
    assert "belong to different runs" in note


@pytest.mark.parametrize(
    ("steps", "most"), [(20, 30_000), pytest.param(200, 300_000, marks=pytest.mark.long)]
)
def test_a_long_run_stays_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, most: int
) -> None:
    assert localrank_cli.report.data._MOST_RANKS == 300_000
    monkeypatch.setattr(localrank_cli.report.data, "_MOST_RANKS", most)
    file = SpectraFile(save_spectra(tmp_path / "s.safetensors", steps=range(steps), layers=20))
    kept, _ = slider_data(file, {"run": list(range(steps))})
    assert kept is not None
    # The ends of the grids, and tolerances of the table, are beyond the limit.
    assert len(kept["atol"]["grid"]) * steps * 20 * 2 <= most * 4 / 3
