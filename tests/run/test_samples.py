"""`--information` and `--labels-key`, from a data file to the table."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from localrank_cli import analyze
from localrank_cli.errors import DataError, LocalrankError, ModelError, SettingsError, UsageError
from localrank_cli.results.columns import COLUMNS
from tests.cli.program import invoke
from tests.helpers import mlp, save_series
from tests.information.test_kernel import naive_entropy

Array = npt.NDArray[np.float64]
N = 40


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_series(tmp_path / "run", steps=(0, 5), widths=(4, 6, 3))
    generator = np.random.default_rng(0)
    np.savez(
        tmp_path / "run" / "data.npz",
        x=generator.normal(size=(N, 4)),
        y=generator.integers(0, 3, N),
        column=generator.integers(0, 3, (N, 1)),
        target=generator.normal(size=(N, 3)),
        many=np.arange(N) % 4,
        negative=np.arange(N) - 1,
        few=np.zeros(3, dtype=np.int64),
        pairs=np.zeros((N, 2), dtype=np.int64),
        broken=np.full(N, np.nan),
    )
    return tmp_path / "run"


def asked(run: Path, **options: Any) -> pd.DataFrame:
    return analyze(run, data=str(run / "data.npz"), data_key="x", points=8, **options)


def outputs(run: Path, step: int) -> tuple[Array, Array]:
    """Pre-activations of both layers at all points."""
    net = mlp(4, 6, 3)
    net.load_state_dict(load_file(run / f"step_{step}.safetensors"))
    with np.load(run / "data.npz") as file:
        x = torch.from_numpy(file["x"])
    first = net.double()[0](x)
    return first.detach().numpy(), net[2](first.relu()).detach().numpy()


def noise_entropy(n: int, variance: float) -> float:
    return 0.5 * n * math.log(2 * math.pi * math.e * variance)


def test_information_is_that_of_the_pre_activations(run: Path) -> None:
    frame = asked(run, information=True, noise=0.5)
    for _, row in frame.iterrows():
        hidden = outputs(run, row["step"])[row["layer_index"]]
        for width, name in ((8, "lower"), (2, "upper")):
            expected = naive_entropy(hidden, 0.25, width) - noise_entropy(hidden.shape[1], 0.25)
            assert row[f"information_xt_{name}_nats"] == pytest.approx(expected, rel=1e-9)
    assert (frame["information_points"] == N).all()
    assert (frame["information_noise_variance"] == 0.25).all()
    assert frame["information_ceiling_nats"].iloc[0] == pytest.approx(math.log(N))
    assert frame.columns[len(COLUMNS) :].tolist() == [
        "information_points", "information_noise_variance", "information_ceiling_nats",
        "information_at_ceiling", "information_xt_lower_nats", "information_xt_upper_nats",
    ]  # fmt: skip


def test_noise_relative_to_the_output(run: Path) -> None:
    frame = asked(run, information=True, information_noise=0.03)
    for _, row in frame.iterrows():
        hidden = outputs(run, row["step"])[row["layer_index"]]
        variance = 0.03 * np.trace(np.cov(hidden, rowvar=False))
        assert row["information_noise_variance"] == pytest.approx(variance, rel=1e-9)


def test_the_ceiling_is_marked(run: Path) -> None:
    fine = asked(run, information=True, noise=1e-4)
    assert (fine["information_at_ceiling"] == "lower+upper").all()
    assert fine["information_xt_upper_nats"].iloc[0] == pytest.approx(math.log(N), rel=1e-6)
    assert (asked(run, information=True, noise=3.0)["information_at_ceiling"] == "").all()


def test_labels(run: Path) -> None:
    frame = asked(run, information=True, labels_key="y")
    with np.load(run / "data.npz") as file:
        labels = file["y"]
    for _, row in frame.iterrows():
        hidden = outputs(run, row["step"])[row["layer_index"]]
        whole, given = ({}, {})
        for width in (8, 2):
            whole[width] = naive_entropy(hidden, 1.0, width)
            given[width] = sum(
                (labels == label).mean() * naive_entropy(hidden[labels == label], 1.0, width)
                for label in range(3)
            )
        assert row["information_ty_lower_nats"] == pytest.approx(whole[8] - given[2], abs=1e-9)
        assert row["information_ty_upper_nats"] == pytest.approx(whole[2] - given[8], abs=1e-9)
        logits = torch.from_numpy(outputs(run, row["step"])[1])
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
        assert row["loss"] == pytest.approx(loss.item(), rel=1e-9)
        assert row["accuracy"] == (logits.argmax(1).numpy() == labels).mean()


def test_labels_without_information(run: Path) -> None:
    frame = asked(run, labels_key="column")
    assert frame.columns[len(COLUMNS) :].tolist() == ["loss", "accuracy"]


def test_targets(run: Path) -> None:
    frame = asked(run, labels_key="target", information=True)
    assert "accuracy" not in frame
    assert "information_ty_lower_nats" not in frame
    with np.load(run / "data.npz") as file:
        target = file["target"]
    for _, row in frame.iterrows():
        expected = ((outputs(run, row["step"])[1] - target) ** 2).mean()
        assert row["loss"] == pytest.approx(expected, rel=1e-9)


def test_the_draw_is_its_own(run: Path) -> None:
    first = asked(run, information=True, information_points=10)
    assert (first["information_points"] == 10).all()
    more = analyze(
        run, data=str(run / "data.npz"), data_key="x", points=20, information=True,
        information_points=10,
    )  # fmt: skip
    name = "information_xt_upper_nats"
    assert first[name].tolist() == more[name].tolist()


def test_points_from_a_distribution(run: Path) -> None:
    frame = analyze(run, data="normal:4", information=True, information_points=50)
    assert (frame["information_points"] == 50).all()
    assert frame["information_xt_upper_nats"].gt(0).all()


def test_a_diverged_network_has_empty_cells(run: Path) -> None:
    state = load_file(run / "step_5.safetensors")
    state["2.bias"][0] = torch.inf
    save_file(state, run / "step_5.safetensors")
    frame = asked(run, information=True, labels_key="y")
    last = frame[frame["step"] == 5]
    assert last["loss"].isna().all()
    assert last["accuracy"].isna().all()
    assert last["information_xt_lower_nats"].isna().tolist() == [False, True]
    assert frame[frame["step"] == 0]["loss"].notna().all()


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        ("none", SettingsError, "no array 'none'"),
        ("many", ModelError, "labels go up to 3"),
        ("negative", DataError, "a negative class label"),
        ("few", DataError, "for 40 points"),
        ("pairs", DataError, "one integer for each point"),
        ("broken", DataError, "a target is not finite"),
        ("x", ModelError, "has 3 entries for a point, but the targets have 4"),
    ],
)
def test_unusable_labels_are_refused(
    run: Path, key: str, error: type[LocalrankError], message: str
) -> None:
    with pytest.raises(error, match=message):
        asked(run, labels_key=key)


def test_refused(run: Path) -> None:
    with pytest.raises(SettingsError, match="not a file with named arrays"):
        analyze(run, data="normal:4", labels_key="y")
    with pytest.raises(DataError, match="41 points were asked for, but there are 40"):
        asked(run, information=True, information_points=41)
    for options, message in (
        ({"information_points": 5}, "--information-points without --information"),
        ({"information_noise": 0.1}, "--information-noise without --information"),
        ({"information": True, "information_points": 1}, "expected at least 2"),
        ({"information": True, "information_noise": -1.0}, "expected more than 0"),
    ):
        with pytest.raises(UsageError, match=message):
            asked(run, **options)


def test_a_budget_too_small_for_the_sample_is_refused(tmp_path: Path) -> None:
    save_series(tmp_path, steps=(0,), widths=(4, 1000, 2))
    with pytest.raises(SettingsError, match=r"1000 outputs of layer '0' need 23 MiB"):
        analyze(tmp_path, data="normal:4", information=True, memory="16MiB")


def test_on_the_command_line(run: Path) -> None:
    outcome = invoke(
        "analyze", str(run), "--data", str(run / "data.npz"), "--data-key", "x", "--points", "5",
        "--information", "--information-points", "30", "--information-noise", "0.1",
        "--labels-key", "y", "--device", "cpu",
    )  # fmt: skip
    assert outcome.code == 0
    header, first, *_ = outcome.stdout.splitlines()
    cells = dict(zip(header.split(","), first.split(","), strict=True))
    assert cells["information_points"] == "30"
    assert header.endswith("information_ty_lower_nats,information_ty_upper_nats")
