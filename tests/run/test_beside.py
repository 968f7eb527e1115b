"""`--beside` from checkpoints to the table: numbers by numpy, and cells that are empty."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import prune

from localrank_cli import analyze
from localrank_cli.errors import BudgetError, LocalrankError, SettingsError
from tests.helpers import mlp, save_series
from tests.measures.test_beside import entropy_rank

Array = npt.NDArray[np.float64]
N = 40
BOTH = ("activations", "weights")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_series(tmp_path / "run", steps=(0, 5), widths=(4, 6, 3))
    random = np.random.default_rng(0)
    np.savez(
        tmp_path / "run" / "data.npz",
        x=random.normal(size=(N, 4)),
        y=random.integers(0, 3, N),
        lone=np.where(np.arange(N) == 7, 5, np.arange(N) % 2),
        target=random.normal(size=(N, 3)),
    )
    return tmp_path / "run"


def asked(run: Path, **options: Any) -> Any:
    return analyze(run, data=str(run / "data.npz"), data_key="x", points=8, **options)


def outputs(run: Path, step: int, layer: int) -> Array:
    net = mlp(4, 6, 3)
    net.load_state_dict(load_file(run / f"step_{step}.safetensors"))
    with np.load(run / "data.npz") as file:
        x = torch.from_numpy(file["x"])
    found: Array = net.double()[: 2 * layer + 1](x).detach().numpy()
    return found


def rank_of(samples: Array) -> float:
    return entropy_rank(np.linalg.svd(samples - samples.mean(0), compute_uv=False))


def test_ranks_of_outputs_and_weights(run: Path) -> None:
    frame = asked(run, beside=BOTH)
    assert len(frame) == 4
    for _, row in frame.iterrows():
        hidden = outputs(run, row["step"], row["layer_index"])
        assert row["activation_effective_rank"] == pytest.approx(rank_of(hidden), rel=1e-9)
        assert row["activation_samples"] == N
        assert row["activation_ceiling"] == hidden.shape[1]
        weight = load_file(run / f"step_{row['step']}.safetensors")[f"{row['layer']}.weight"]
        norm = np.linalg.norm(weight.double().numpy(), 2)
        assert row["weight_spectral_norm"] == pytest.approx(norm, rel=1e-12)
        assert row["beside_note"] == ""


def test_each_class_has_its_own(run: Path) -> None:
    frame = asked(run, beside="activations", labels_key="y")
    with np.load(run / "data.npz") as file:
        labels = file["y"]
    for _, row in frame.iterrows():
        hidden = outputs(run, row["step"], row["layer_index"])
        expected = [rank_of(hidden[labels == label]) for label in range(3)]
        assert row["activation_class_effective_rank"] == pytest.approx(np.mean(expected), rel=1e-9)
        parts = [part.split("=") for part in row["activation_effective_rank_by_class"].split()]
        assert [label for label, _ in parts] == ["0", "1", "2"]
        # Cells of text have 9 digits.
        assert [float(value) for _, value in parts] == pytest.approx(expected, rel=1e-8)


def test_a_class_of_one_point_has_none(run: Path) -> None:
    # No output of the network stands for class 5, which labels of a loss would need.
    state = {step: load_file(run / f"step_{step}.safetensors") for step in (0, 5)}
    for step, tensors in state.items():
        tensors["2.weight"] = torch.cat([tensors["2.weight"], tensors["2.weight"]])
        tensors["2.bias"] = torch.cat([tensors["2.bias"], tensors["2.bias"]])
        save_file(tensors, run / f"step_{step}.safetensors")
    frame = asked(run, beside="activations", labels_key="lone")
    assert (frame["beside_note"] == "activations: one sample of class 5").all()
    for text in frame["activation_effective_rank_by_class"]:
        assert [part.split("=")[0] for part in text.split()] == ["0", "1"]


def test_targets_are_no_classes(run: Path) -> None:
    frame = asked(run, beside="activations", labels_key="target")
    assert not any("class" in name for name in frame.columns)


def test_values_that_are_not_finite_leave_cells_empty_with_a_reason(run: Path) -> None:
    state = load_file(run / "step_5.safetensors")
    state["2.weight"][0, 0] = torch.nan
    save_file(state, run / "step_5.safetensors")
    frame = asked(run, beside=BOTH)
    bad = frame[(frame["step"] == 5) & (frame["layer"] == "2")].iloc[0]
    assert bad["beside_note"] == "activations: not finite; weights: not finite"
    names = ["activation_effective_rank", "weight_effective_rank", "weight_spectral_norm"]
    assert bad[names].isna().all()
    assert frame.drop(bad.name)[names].notna().all(axis=None)


class Tied(nn.Module):
    """Two layers of one weight, one without any, and one whose weight is a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.norm = nn.LayerNorm(4)
        self.act = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(self.second(self.act(self.first(x))))
        return found


def test_weights_that_are_tied_or_no_matrix_are_said_to_be(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(Tied().state_dict(), tmp_path / "step_0.pt")
    frame = analyze(tmp_path, model=Tied, data="normal:4", layers="*", beside="weights")
    notes = dict(zip(frame["layer"], frame["beside_note"], strict=True))
    assert notes == {
        "first": "weights: tied to second.weight",
        "second": "weights: tied to first.weight",
        "norm": "weights: a weight of shape 4, no matrix",
        "act": "weights: no tensor named weight",
    }
    ranks = frame.set_index("layer")["weight_effective_rank"]
    assert ranks["first"] == ranks["second"]
    assert ranks[["norm", "act"]].isna().all()


class Normed(nn.Module):
    """Layers whose weights hooks compute from other tensors at each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():  # of old weight_norm, which saved networks have
            warnings.simplefilter("ignore")
            self.old = nn.utils.weight_norm(nn.Linear(4, 5))
        self.new = nn.utils.parametrizations.weight_norm(nn.Linear(5, 5))
        self.cut = prune.l1_unstructured(nn.Linear(5, 3), "weight", 0.5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.cut(self.new(self.old(x).tanh()).tanh())
        return found


def test_weights_that_hooks_compute_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    expected = {}
    for step in (0, 1):
        torch.manual_seed(step)
        net = Normed().double()
        torch.save(net.state_dict(), tmp_path / f"step_{step}.pt")
        net(torch.zeros(1, 4, dtype=torch.float64))
        for name in ("old", "new", "cut"):
            weight = getattr(net, name).weight.detach().numpy()
            expected[step, name] = np.linalg.norm(weight, 2)
    frame = analyze(tmp_path, model=Normed, data="normal:4", beside="weights")
    for _, row in frame.iterrows():
        norm = expected[row["step"], row["layer"]]
        assert row["weight_spectral_norm"] == pytest.approx(norm, rel=1e-12)


class Image(nn.Module):
    """A convolution and a Linear layer over its places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.head = nn.Linear(3 * 16, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.conv(x).tanh().flatten(1))
        return found


def test_with_positions_each_is_a_sample(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Image()
    torch.save(net.state_dict(), tmp_path / "step_0.pt")
    x = torch.randn(10, 2, 4, 4, dtype=torch.float64)
    torch.save(x, tmp_path / "x.pt")

    def rows(**options: Any) -> Any:
        return analyze(
            tmp_path, pattern="step*", model=Image, data=str(tmp_path / "x.pt"),
            beside="activations", **options,
        ).set_index("layer")  # fmt: skip

    out = net.double().conv(x).detach().numpy()  # (10, 3, 4, 4)
    whole, each = rows(), rows(positions="each:4")
    assert whole.loc["conv", "activation_samples"] == 10
    assert whole.loc["conv", "activation_at_ceiling"] == ""
    expected = rank_of(out.reshape(10, -1))
    assert whole.loc["conv", "activation_effective_rank"] == pytest.approx(expected, rel=1e-9)
    assert each.loc["conv", "activation_samples"] == 160
    assert each.loc["conv", "activation_ceiling"] == 3
    expected = rank_of(out.transpose(0, 2, 3, 1).reshape(160, 3))
    assert each.loc["conv", "activation_effective_rank"] == pytest.approx(expected, rel=1e-9)
    assert each.loc["head", "activation_samples"] == 10


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"data": "normal:4", "memory": "16MiB"}, BudgetError, "1000 outputs of layer '0' need"),
        ({"data": "one.npy"}, SettingsError, "there is only one point"),
    ],
)
def test_refused(
    tmp_path: Path, options: dict[str, Any], error: type[LocalrankError], message: str
) -> None:
    save_series(tmp_path, steps=(0,), widths=(4, 1000, 2))
    np.save(tmp_path / "one.npy", np.ones((1, 4)))
    if options["data"] == "one.npy":
        options = options | {"data": str(tmp_path / "one.npy")}
    with pytest.raises(error, match=message):
        analyze(tmp_path, beside="activations", points=1, **options)
