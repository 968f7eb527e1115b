"""Presets and slices, from the options to the table."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from localrank_cli import analyze
from localrank_cli.errors import LayerError, ModelError, SettingsError, UsageError
from localrank_cli.results.columns import COLUMNS
from tests.cli.program import invoke
from tests.helpers import save_series

CODE = """
from torch import nn

def net(stride={stride}):
    last = nn.Linear(2 * 18 * 22 // stride**2, 5)
    return nn.Sequential(nn.Conv2d(3, 2, 3, stride), nn.ReLU(), nn.Flatten(), last)
"""


def write_images(folder: Path, stride: int) -> None:
    """Write a network of images of 20 x 24 pixels, and a checkpoint."""
    code = CODE.format(stride=stride)
    (folder / "net.py").write_text(code)
    (folder / "run").mkdir(exist_ok=True)
    space: dict[str, Any] = {}
    exec(code, space)
    torch.manual_seed(0)
    save_file(space["net"]().state_dict(), folder / "run" / "step_0.safetensors")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_images(tmp_path, stride=2)
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


def test_feng2022_is_the_count_on_the_patch(images: Path) -> None:
    points = torch.rand(3, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    frame = analyze(
        images / "run", model=f"{images / 'net.py'}:net", data=points, points=3, preset="feng2022"
    )
    net = nn.Sequential(nn.Conv2d(3, 2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 9 * 11, 5))
    net.load_state_dict(load_file(images / "run" / "step_0.safetensors"))
    net = net.double().requires_grad_(False)
    for layer, last in (("0", 1), ("3", 4)):
        counts, theirs = [], []
        for point in points.double():
            whole = torch.func.jacrev(net[:last])(point[None])
            patch = whole.flatten(0, -5).flatten(0, -4)[..., 2:18, 4:20].reshape(-1, 768).numpy()
            sigma = np.linalg.svd(patch, compute_uv=False)
            counts.append((sigma > (768 * 2.0**-23) ** 0.5 * sigma[0]).sum())
            # Their own words: numpy's default rule on the float32 Gram matrix of the patch.
            theirs.append(np.linalg.matrix_rank((patch.T @ patch).astype(np.float32)))
        row = frame[frame["layer"] == layer].iloc[0]
        assert row["local_rank"] == np.mean(counts) == np.mean(theirs)


def test_numpy(tmp_path: Path) -> None:
    save_series(tmp_path, steps=(0,))
    frame = analyze(tmp_path, data="normal:4", preset="numpy")
    assert (frame["tolerance"] == "rtol=eps").all()
    assert frame["rtol"].iloc[0] == 4 * torch.finfo(torch.float32).eps


def test_a_preset_beats_the_folders_own_settings(tmp_path: Path) -> None:
    save_series(tmp_path, steps=(0,), widths=(4, 6, 5, 3))
    (tmp_path / "localrank.toml").write_text('data = "normal:4"\natol = 0.5\npoints = 3\n')
    frame = analyze(tmp_path, preset="patel2024")
    assert frame["atol"].tolist() == [0.01] * 2
    assert (frame["n_points"] == 128).all()


def test_slices_are_columns_of_the_table(images: Path) -> None:
    frame = analyze(
        images / "run", model=f"{images / 'net.py'}:net", data="normal:3x20x24", points=2,
        input_slice="1, :4", output_slice=":1",
    )  # fmt: skip
    assert frame["n_in"].tolist() == [96, 96]
    assert frame["n_out"].tolist() == [9 * 11, 1]
    assert (frame["input_slice"] == "1, :4").all()


def test_sigma_1_of_the_whole(images: Path, tmp_path: Path) -> None:
    keywords = {"model": f"{images / 'net.py'}:net", "data": "normal:3x20x24", "points": 2}
    keywords |= {"input_slice": "0,:4,:4", "output_slice": ":1", "rtol": 0.3, "atol": 0.01}
    run = images / "run"
    own, full = (analyze(run, **keywords, sigma_1=word) for word in ("slice", "full"))
    assert (own["sigma_1_of"] == "slice").all()
    assert (full["sigma_1_of"] == "full").all()
    same = own.columns.difference(["sigma_1_of", "local_rank", "local_rank_se", "rank_min",
                                   "rank_max", "near_tol"])  # fmt: skip
    pd.testing.assert_frame_equal(own[same], full[same])
    absolute = own["tolerance"] == "atol=0.01"
    pd.testing.assert_series_equal(own["local_rank"][absolute], full["local_rank"][absolute])
    # The last layer sees the whole image: a corner of it is small beside the whole.
    assert own["local_rank"].iloc[-1] == 1
    assert full["local_rank"].iloc[-1] == 0
    with pytest.raises(UsageError, match="sigma_1='half': unknown"):
        analyze(run, **keywords, sigma_1="half")
    feng = analyze(
        run, model=str(keywords["model"]), data="normal:3x20x24", points=2, preset="feng2022"
    )
    assert (feng["sigma_1_of"] == "slice").all()


def test_sigma_1_full_needs_a_comparable_slice(tmp_path: Path) -> None:
    save_series(tmp_path, steps=(0,))
    with pytest.raises(SettingsError, match="without --input-slice or --output-slice"):
        analyze(tmp_path, data="normal:4", sigma_1="full")
    with pytest.raises(SettingsError, match="are two metrics"):
        analyze(tmp_path, data="normal:4", sigma_1="full", input_slice=":2", input_metric="data")


def test_the_whole_must_fit(tmp_path: Path) -> None:
    write_images(tmp_path, stride=1)
    keywords = {"model": f"{tmp_path / 'net.py'}:net", "data": "normal:3x20x24", "points": 1}
    keywords |= {"output_slice": ":1", "memory": 2**24, "rtol": 0.1}
    assert len(analyze(tmp_path / "run", **keywords)) == 2
    with pytest.raises(ModelError, match="Jacobian of 792 x 1440; its reduction needs"):
        analyze(tmp_path / "run", **keywords, sigma_1="full")


def test_kept_singular_values_keep_their_scale(images: Path, tmp_path: Path) -> None:
    words = [
        "analyze", str(images / "run"), "--model", f"{images / 'net.py'}:net", "--data",
        "normal:3x20x24", "--points", "3", "--input-slice", "0,:4,:4", "--sigma-1", "full", "-q",
    ]  # fmt: skip
    other = ["--rtol", "0.02", "--rtol", "0.3"]
    expected = invoke(*words, *other).stdout
    assert invoke(*words, "--spectra", str(tmp_path / "kept")).code == 0
    found = invoke("rethreshold", str(tmp_path / "kept"), *other)
    assert found.stdout == expected


def test_refused(tmp_path: Path) -> None:
    save_series(tmp_path, steps=(0,))
    with pytest.raises(UsageError, match="preset='moon': unknown"):
        analyze(tmp_path, data="normal:4", preset="moon")
    for option in ("--input-slice", "--output-slice"):
        outcome = invoke("analyze", str(tmp_path), "--data", "normal:4", option, "x")
        assert outcome.code == 2
        assert "'x' is not an index" in outcome.error
