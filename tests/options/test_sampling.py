"""Slices, presets and samples from localrank.toml: read, overridden by flags, and compared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from localrank_cli import analyze
from localrank_cli.errors import UsageError
from tests.cli.program import invoke
from tests.helpers import save_series

N = 40
SAMPLED = 'data = "data.npz"\ndata-key = "x"\npoints = 8\n'


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    save_series(folder, steps=(0, 5), widths=(4, 6, 5, 3))
    generator = np.random.default_rng(0)
    np.savez(
        folder / "data.npz",
        x=generator.normal(size=(N, 4)),
        y=generator.integers(0, 3, N),
        z=generator.integers(0, 3, N),
    )
    return folder


def write_settings(run: Path, text: str) -> None:
    (run / "localrank.toml").write_text(SAMPLED + text, encoding="utf-8")


def same(run: Path, text: str, flags: dict[str, Any]) -> pd.DataFrame:
    """Check that settings in the file and as flags give one table, and return it."""
    write_settings(run, "")
    by_flags = analyze(run, **flags)
    write_settings(run, text)
    frame = analyze(run)
    pd.testing.assert_frame_equal(frame, by_flags)
    return frame


def test_information_and_labels(run: Path) -> None:
    text = (
        'information = true\ninformation-points = 20\ninformation-noise = 0.1\nlabels-key = "y"\n'
    )
    flags = {"information": True, "information_points": 20, "information_noise": 0.1}
    frame = same(run, text, flags | {"labels_key": "y"})
    assert (frame["information_points"] == 20).all()
    assert frame["information_ty_lower_nats"].notna().all()
    assert frame["accuracy"].notna().all()


def test_slices_and_their_scale(run: Path) -> None:
    text = 'rtol = 0.3\ninput-slice = ":3"\noutput-slice = ":2"\nsigma-1 = "full"\n'
    flags = {"rtol": 0.3, "input_slice": ":3", "output_slice": ":2", "sigma_1": "full"}
    frame = same(run, text, flags)
    assert (frame["sigma_1_of"] == "full").all()
    assert (frame["n_in"] == 3).all()


def test_a_preset(run: Path) -> None:
    write_settings(run, 'preset = "patel2024"\n')
    frame = analyze(run)
    assert frame["layer"].unique().tolist() == ["0", "2"]
    assert (frame["n_points"] == 8).all()  # the file's own key beats its preset
    assert (frame["atol"] == 0.01).all()
    assert analyze(run, layers="4")["layer"].tolist() == ["4", "4"]
    write_settings(run, 'preset = "numpy"\natol = 0.5\n')
    assert (analyze(run)["tolerance"] == "atol=0.5").all()
    # A preset that is asked for beats the file and its preset.
    write_settings(run, 'preset = "patel2024"\n')
    frame = analyze(run, preset="numpy")
    assert (frame["tolerance"] == "rtol=eps").all()
    assert frame["layer"].unique().tolist() == ["0", "2", "4"]


def test_flags_beat_the_file(run: Path) -> None:
    write_settings(
        run, 'information = true\nlabels-key = "y"\ninput-slice = ":3"\nsigma-1 = "full"\n'
    )
    frame = analyze(
        run, information=False, labels_key="z", input_slice="", output_slice=":1", sigma_1="slice"
    )
    assert not any(name.startswith("information") for name in frame.columns)
    assert (frame["n_in"] == 4).all()
    assert (frame["sigma_1_of"] == "slice").all()
    write_settings(run, 'labels-key = "z"\n')
    pd.testing.assert_series_equal(analyze(run)["accuracy"], frame["accuracy"])
    assert "accuracy" not in analyze(run, labels_key="").columns
    # Labels belong to the data of the file: other data override them.
    assert "accuracy" not in analyze(run, data="normal:4").columns


def test_points_of_information_that_the_file_asks_for(run: Path) -> None:
    write_settings(run, "information = true\n")
    assert (analyze(run, information_points=10)["information_points"] == 10).all()
    with pytest.raises(UsageError, match="--information-points without --information"):
        analyze(run, information=False, information_points=10)


def test_they_are_recorded_and_compared(run: Path, tmp_path: Path) -> None:
    table = tmp_path / "ranks.csv"
    text = 'information = true\ninput-slice = ":3"\nlabels-key = "y"\n'
    words = ["analyze", str(run), "-q", "-o", str(table)]
    write_settings(run, text)
    assert invoke(*words).code == 0
    (series,) = json.loads((tmp_path / "ranks.csv.json").read_text())["series"]
    assert series["slices"] == {"input_slice": ":3", "output_slice": "", "sigma_1_of": "slice"}
    assert series["labels_key"] == "y"
    assert len(series["information_point_indices"]) == N
    assert invoke(*words).code == 0
    for line, other, named in (
        ('labels-key = "y"', 'labels-key = "z"', "labels key was y and is now z"),
        ("information = true", "information = true\ninformation-noise = 0.5", "information noise"),
        ("information = true", "information = true\ninformation-points = 9", "information point"),
        ("information = true", "information = false", "information point indices"),
        ('":3"', '":2"', "slices"),
        ('":3"', '":3"\nsigma-1 = "full"', "slices"),
    ):
        write_settings(run, text.replace(line, other))
        outcome = invoke(*words)
        assert outcome.code == 1, other
        assert "was started with different settings" in outcome.error
        assert named in outcome.error


def test_no_information_on_the_command_line(run: Path) -> None:
    write_settings(run, "information = true\n")
    assert "information_points" in invoke("analyze", str(run), "-q").stdout
    assert "information_points" not in invoke("analyze", str(run), "-q", "--no-information").stdout
