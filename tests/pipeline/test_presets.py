"""Presets and slices, from the options to the table."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from localrank_cli import analyze
from localrank_cli.errors import LayerError, UsageError
from localrank_cli.pipeline.options import AnalyzeOptions, Preset
from localrank_cli.pipeline.presets import with_preset
from localrank_cli.table.columns import COLUMNS
from tests.cli.program import invoke
from tests.helpers import save_series

CODE = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 18 * 22, 5))
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 18 * 22, 5))
    (tmp_path / "net.py").write_text(CODE)
    (tmp_path / "run").mkdir()
    save_file(net.state_dict(), tmp_path / "run" / "step_0.safetensors")
    return tmp_path


def test_patel2024(tmp_path: Path) -> None:
    save_series(tmp_path, steps=(0,), widths=(4, 6, 5, 3))
    frame = analyze(tmp_path, data="normal:4", preset="patel2024")
    assert frame["layer"].tolist() == ["0", "2"]  # the last one is no hidden layer
    assert frame["tolerance"].tolist() == ["atol=0.01"] * 2
    assert (frame["n_points"] == 128).all()


def test_feng2022(images: Path) -> None:
    frame = analyze(
        images / "run", model=f"{images / 'net.py'}:net", data="normal:3x20x24", points=2,
        preset="feng2022",
    )  # fmt: skip
    assert (frame["n_in"] == 768).all()
    assert frame["rtol"].tolist() == [pytest.approx(9.57e-3, rel=1e-3)] * 2
    assert frame.columns[len(COLUMNS) :].tolist() == ["input_slice", "output_slice", "sigma_1_of"]
    assert (frame["input_slice"] == "center:16").all()
    assert (frame["output_slice"] == "").all()
    assert (frame["sigma_1_of"] == "slice").all()
    save_series(images / "flat", steps=(0,))
    with pytest.raises(LayerError, match="no square of 16 x 16"):
        analyze(images / "flat", data="normal:4", preset="feng2022")


def test_numpy(tmp_path: Path) -> None:
    save_series(tmp_path, steps=(0,))
    frame = analyze(tmp_path, data="normal:4", preset="numpy")
    assert (frame["tolerance"] == "rtol=eps").all()
    assert frame["rtol"].iloc[0] == 4 * torch.finfo(torch.float32).eps


def test_a_flag_beats_a_preset() -> None:
    given = AnalyzeOptions(
        (), preset=Preset.patel2024, atol=(0.5,), points=7, layers=("fc*",), hidden=False
    )
    found = with_preset(given)
    assert (found.atol, found.points, found.layers) == ((0.5,), 7, ("fc*",))
    assert not found.hidden
    sliced = with_preset(AnalyzeOptions((), preset=Preset.feng2022, input_slice="0", atol=(1.0,)))
    assert (sliced.input_slice, sliced.rtol) == ("0", ())
    assert with_preset(AnalyzeOptions(())) == AnalyzeOptions(())


def test_a_preset_beats_the_folders_own_settings(tmp_path: Path) -> None:
    save_series(tmp_path, steps=(0,), widths=(4, 6, 5, 3))
    (tmp_path / "localrank.toml").write_text('data = "normal:4"\natol = 0.5\npoints = 3\n')
    frame = analyze(tmp_path, preset="patel2024")
    assert frame["atol"].tolist() == [0.01] * 2
    assert (frame["n_points"] == 128).all()


def test_slices_stand_in_the_table(images: Path) -> None:
    frame = analyze(
        images / "run", model=f"{images / 'net.py'}:net", data="normal:3x20x24", points=2,
        input_slice="1, :4", output_slice=":1",
    )  # fmt: skip
    assert frame["n_in"].tolist() == [96, 96]
    assert frame["n_out"].tolist() == [18 * 22, 1]
    assert (frame["input_slice"] == "1, :4").all()


def test_refused(tmp_path: Path) -> None:
    save_series(tmp_path, steps=(0,))
    with pytest.raises(UsageError, match="--preset moon: not known"):
        analyze(tmp_path, data="normal:4", preset="moon")
    for option in ("--input-slice", "--output-slice"):
        outcome = invoke("analyze", str(tmp_path), "--data", "normal:4", option, "x")
        assert outcome.code == 2
        assert "'x' is no index" in outcome.error
