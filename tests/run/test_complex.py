"""Networks with complex parts, from their checkpoints to the table."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from localrank_cli import analyze
from localrank_cli.errors import DataError, MismatchError, ModelError
from localrank_cli.run.compute import hash_of
from tests.networks import paired


class Rotating(nn.Module):
    """Attention whose complex table is in no checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(4, 4, bias=False) for _ in range(4))
        angles = torch.arange(3.0)[:, None] * torch.tensor([1.0, 0.1])
        self.register_buffer("table", torch.polar(torch.ones(3, 2), angles), persistent=False)

    def forward(self, x: Tensor) -> Any:
        table = self.get_buffer("table")
        q, k = (torch.view_as_real(paired(m(x)) * table).flatten(-2) for m in (self.q, self.k))
        return self.o(torch.softmax(q @ k.mT, -1) @ self.v(x))


class Phasors(nn.Module):
    """A complex layer under a real one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4, dtype=torch.cfloat), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        return self.b(torch.view_as_real(torch.tanh(self.a(paired(x)))).flatten(1))


class ComplexOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 4, dtype=torch.cfloat)

    def forward(self, x: Tensor) -> Any:
        return self.a(paired(x))


def saved(folder: Path, model: nn.Module) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(model.state_dict(), folder / "step_1.pt")
    return folder


def numpy_of(tensor: Tensor) -> "np.ndarray[Any, Any]":
    return tensor.detach().to(torch.cdouble if tensor.is_complex() else torch.double).numpy()


def test_a_complex_layer_has_the_jacobian_of_its_two_parts(tmp_path: Path) -> None:
    model, x = Phasors(), torch.randn(3, 6)
    frame = analyze(saved(tmp_path, model), model=Phasors, data=x, atol=0.3).set_index("layer")
    weight, bias = numpy_of(model.a.weight), numpy_of(model.a.bias)
    # z = W (p + i q): dz/dp = W, dz/dq = i W.
    first = np.concatenate([weight, 1j * weight], axis=1)
    stacked = np.concatenate([first.real, first.imag])
    sigma = np.linalg.svd(stacked, compute_uv=False)
    assert list(frame.loc["a", ["n_out", "n_in", "max_rank"]]) == [8, 6, 6]
    assert frame.loc["a", "local_rank"] == (sigma > 0.3).sum()
    assert frame.loc["a", "spectral_norm"] == pytest.approx(sigma[0], rel=1e-6)  # the contract
    counts, norms = [], []
    for point in x.double().numpy():
        z = weight @ (point[0::2] + 1j * point[1::2]) + bias
        second = (1 - np.tanh(z) ** 2)[:, None] * first  # tanh is holomorphic
        parts = np.empty((8, 6))
        parts[0::2], parts[1::2] = second.real, second.imag
        sigma = np.linalg.svd(numpy_of(model.b.weight) @ parts, compute_uv=False)
        counts.append((sigma > 0.3).sum())
        norms.append(sigma[0])
    assert frame.loc["b", "local_rank"] == np.mean(counts)
    assert frame.loc["b", "spectral_norm"] == pytest.approx(np.mean(norms), rel=1e-6)


def test_a_rotary_table_turns(tmp_path: Path) -> None:
    model, x = Rotating(), torch.randn(2, 3, 4)
    frame = analyze(saved(tmp_path, model), model=Rotating, data=x, layers="o")
    # The same rotation in real numbers, and central differences: an error of h^2 |f'''| / 6 and of
    # rounding, 1e-16 / h, both under 1e-9 here.
    weights = [numpy_of(m.weight) for m in (model.q, model.k, model.v, model.o)]
    table = numpy_of(model.get_buffer("table"))

    def forward(flat: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        point = flat.reshape(3, 4)
        turned = []
        for weight in weights[:2]:
            h = point @ weight.T
            even = h[:, 0::2] * table.real - h[:, 1::2] * table.imag
            odd = h[:, 0::2] * table.imag + h[:, 1::2] * table.real
            turned.append(np.stack([even, odd], axis=-1).reshape(3, 4))
        scores = np.exp(turned[0] @ turned[1].T)
        scores /= scores.sum(axis=1, keepdims=True)
        out: np.ndarray[Any, Any] = scores @ (point @ weights[2].T) @ weights[3].T
        return out.ravel()

    norms, step = [], 1e-5
    for point in x.double().numpy():
        moves = np.eye(12) * step
        columns = [(forward(point.ravel() + m) - forward(point.ravel() - m)) for m in moves]
        norms.append(np.linalg.norm(np.stack(columns) / (2 * step), 2))
    assert frame["spectral_norm"].item() == pytest.approx(np.mean(norms), rel=1e-6)


def test_float32_is_complex64(tmp_path: Path) -> None:
    folder, x = saved(tmp_path, Phasors()), torch.randn(3, 6)
    slow = analyze(folder, model=Phasors, data=x)["jacobian_norm"]
    fast = analyze(folder, model=Phasors, data=x, dtype="float32")["jacobian_norm"]
    # Some ten roundings of 6e-8 each.
    assert fast.tolist() == pytest.approx(slow.tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("built", "stored"), [(nn.Linear(3, 4), torch.cfloat), (ComplexOut().a, torch.float32)]
)
def test_weights_of_the_other_kind_are_refused_in_the_plan(
    tmp_path: Path, built: nn.Linear, stored: torch.dtype
) -> None:
    saved(tmp_path, nn.Linear(3, 4))
    saved(tmp_path, nn.Linear(3, 4, dtype=stored)).joinpath("step_1.pt").rename(
        tmp_path / "step_2.pt"
    )
    saved(tmp_path, nn.Linear(3, 4, dtype=built.weight.dtype))
    with pytest.raises(MismatchError, match=r"step_2\.pt \(step 2\): (weight|bias) holds"):
        analyze(tmp_path, model=lambda: nn.Linear(3, 4, dtype=built.weight.dtype), data="normal:3")


def test_a_complex_output_has_no_loss(tmp_path: Path) -> None:
    folder = saved(tmp_path / "run", ComplexOut())
    np.savez(tmp_path / "x.npz", x=np.ones((9, 6)), y=np.arange(9) % 4)
    with pytest.raises(ModelError, match="output is complex") as caught:
        analyze(folder, model=ComplexOut, data=str(tmp_path / "x.npz"), labels_key="y")
    assert "--labels-key" in caught.value.advice


def test_complex_targets_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "run", Phasors())
    np.savez(tmp_path / "x.npz", x=np.ones((9, 6)), y=np.ones((9, 5)) * 1j)
    with pytest.raises(DataError, match="complex"):
        analyze(folder, model=Phasors, data=str(tmp_path / "x.npz"), labels_key="y")


def test_information_of_a_complex_layer_is_that_of_its_parts(tmp_path: Path) -> None:
    folder, x = saved(tmp_path, Phasors()), torch.randn(20, 6)
    frame = analyze(folder, model=Phasors, data=x, information=True, information_noise=0.1)
    model = Phasors()
    model.load_state_dict(torch.load(folder / "step_1.pt"))
    parts = torch.view_as_real(model.a(paired(x))).detach().flatten(1).double()
    variance = 0.1 * parts.var(dim=0).sum().item()
    found = frame.set_index("layer").loc["a", "information_noise_variance"]
    assert found == pytest.approx(variance, rel=1e-5)  # float32 outputs


def test_the_hash_of_a_conjugate_is_that_of_its_numbers() -> None:
    tensor = torch.tensor([1 + 2j, 3 - 4j])
    assert hash_of({"a": tensor.conj()}) == hash_of({"a": tensor.conj().clone().resolve_conj()})
    assert hash_of({"a": tensor.conj()}) != hash_of({"a": tensor})
