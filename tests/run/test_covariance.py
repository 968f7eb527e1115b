"""`--input-metric data` from files and distributions to the table."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from localrank_cli import analyze
from localrank_cli.errors import SettingsError, UsageError
from localrank_cli.measures.table import gaussian_information
from tests.cli.program import invoke
from tests.helpers import save_series

Array = npt.NDArray[np.float64]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return save_series(tmp_path / "run", steps=(0, 5), widths=(4, 6, 3))


def data(count: int = 200) -> Array:
    generator = np.random.default_rng(0)
    return generator.normal(size=(count, 4)) @ np.diag([2.0, 1.0, 0.5, 0.1]) + 3


def first_layer(frame: pd.DataFrame, step: int, name: str = "spectral_norm") -> float:
    row = frame[(frame["step"] == step) & (frame["layer_index"] == 0)]
    return float(row[name].iloc[0])


def weight(run: Path, step: int) -> Array:
    return load_file(run / f"step_{step}.safetensors")["0.weight"].double().numpy()


def test_the_covariance_is_that_of_all_the_data(run: Path) -> None:
    x = data()
    # 16 of the 200 points are analyzed; the covariance sees them all.
    frame = analyze(run, data=x, points=16, input_metric="data")
    covariance = np.cov(x, rowvar=False)
    for step in (0, 5):
        matrix = weight(run, step) @ np.linalg.cholesky(covariance)
        sigma = np.linalg.svd(matrix, compute_uv=False)
        assert first_layer(frame, step) == pytest.approx(sigma[0], rel=1e-9)
        information = gaussian_information(torch.from_numpy(sigma)[None], 1.0).item()
        assert first_layer(frame, step, "gaussian_information") == pytest.approx(information)
    assert (frame["input_metric"] == "data").all()
    assert (frame["n_cov"] == 200).all()
    assert (frame["n_in"] == 4).all()
    assert frame.columns[-1] == "n_cov"


def test_scaled_integers(run: Path) -> None:
    x = np.random.default_rng(1).integers(0, 255, (100, 4), dtype=np.uint8)
    frame = analyze(run, data=x, data_scale=1 / 255, input_metric="data")
    factor = np.linalg.cholesky(np.cov(x / 255, rowvar=False))
    sigma = np.linalg.svd(weight(run, 5) @ factor, compute_uv=False)
    assert first_layer(frame, 5) == pytest.approx(sigma[0], rel=1e-9)


@pytest.mark.parametrize(
    ("spec", "scale", "deviation"),
    [("normal:4", None, 1.0), ("normal:4", -2.0, 2.0), ("uniform:4", None, 12**-0.5)],
)
def test_the_covariance_of_a_distribution_is_exact(
    run: Path, spec: str, scale: float | None, deviation: float
) -> None:
    given: dict[str, Any] = {} if scale is None else {"data_scale": scale}
    frame = analyze(run, data=spec, input_metric="data", **given)
    sigma = np.linalg.svd(weight(run, 0), compute_uv=False)
    assert first_layer(frame, 0) == pytest.approx(deviation * sigma[0], rel=1e-9)
    assert frame["n_cov"].isna().all()


def test_a_modules_output_at_each_checkpoint(run: Path) -> None:
    x = data()
    frame = analyze(run, data=x, wrt="0", input_metric="data")
    for step in (0, 5):
        state = load_file(run / f"step_{step}.safetensors")
        first = x @ state["0.weight"].double().numpy().T + state["0.bias"].double().numpy()
        drawn = first[np.sort(torch.randperm(200, generator=torch.Generator().manual_seed(0))[:64])]
        covariance = np.cov(first, rowvar=False)
        values, vectors = np.linalg.eigh(covariance)
        factor = vectors * np.sqrt(np.clip(values, 0, None))
        second = state["2.weight"].double().numpy()
        norms = [
            np.linalg.svd(second @ np.diag((point > 0) * 1.0) @ factor, compute_uv=False)[0]
            for point in drawn
        ]
        found = frame[(frame["step"] == step) & (frame["layer"] == "2")]["spectral_norm"].item()
        assert found == pytest.approx(np.mean(norms), rel=1e-9)
        # Of the module itself the Jacobian is the identity, and L alone is seen.
        own = np.sqrt(values[-1])
        assert first_layer(frame, step) == pytest.approx(own, rel=1e-9)
    assert (frame["n_cov"] == 200).all()


def test_fewer_points_than_entries_need_allow_small_cov(run: Path) -> None:
    x = data(4)
    with pytest.raises(SettingsError, match=r"4 points span at most 3 of the 4.*allow-small-cov"):
        analyze(run, data=x, input_metric="data")
    frame = analyze(run, data=x, input_metric="data", allow_small_cov=True)
    centred = (x - x.mean(axis=0)) / 3**0.5
    sigma = np.linalg.svd(weight(run, 0) @ centred.T, compute_uv=False)
    assert first_layer(frame, 0) == pytest.approx(sigma[0], rel=1e-9)
    assert (frame["rank_max"] <= 3).all()
    with pytest.raises(SettingsError, match="at least 2 points"):
        analyze(run, data=data(1), input_metric="data", allow_small_cov=True)


@pytest.mark.parametrize(("count", "warned"), [(39, True), (40, False)])
def test_a_rough_covariance_is_noted(run: Path, count: int, warned: bool) -> None:
    np.save(run / "x.npy", data(count))
    outcome = invoke(
        "analyze", str(run), "--data", str(run / "x.npy"), "--input-metric", "data",
        "--device", "cpu",
    )  # fmt: skip
    assert outcome.code == 0
    assert ("use 40 points or more" in outcome.stderr) is warned


def test_refused(run: Path) -> None:
    with pytest.raises(SettingsError, match="the points come from a distribution"):
        analyze(run, data="normal:4", wrt="0", input_metric="data")
    with pytest.raises(UsageError, match="Choose identity or data"):
        analyze(run, data="normal:4", input_metric="euclid")


def test_a_budget_too_small_for_the_factor_is_refused(tmp_path: Path) -> None:
    save_series(tmp_path, steps=(0,), widths=(1200, 2))
    x = torch.randn(1300, 1200)
    with pytest.raises(SettingsError, match="covariance of 1200 entries needs 33 MiB"):
        analyze(tmp_path, data=x, input_metric="data", memory="16MiB")


def test_from_a_series_own_settings(run: Path) -> None:
    np.save(run / "x.npy", data())
    (run / "localrank.toml").write_text('data = "x.npy"\ninput-metric = "data"\n[columns]\nb = 2\n')
    frame = analyze(run)
    assert frame.columns[-2:].tolist() == ["n_cov", "b"]
    (run / "localrank.toml").write_text('data = "x.npy"\n[columns]\nn_cov = 2\n')
    with pytest.raises(SettingsError, match="n_cov = 2: the name is taken"):
        analyze(run)


def test_a_diverged_checkpoint_fails_alone(run: Path) -> None:
    state = load_file(run / "step_5.safetensors")
    state["0.bias"][0] = torch.nan
    save_file(state, run / "step_5.safetensors")
    frame = analyze(run, data=data(), wrt="0", input_metric="data")
    assert (frame[frame["step"] == 0]["status"] == "ok").all()
    assert (frame[frame["step"] == 5]["status"] == "nonfinite").all()
    assert (frame[frame["step"] == 5]["n_points"] == 0).all()
