"""A network whose outputs change from call to call: what it does, and which layers are left."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from localrank_cli import analyze
from localrank_cli.errors import ModelError
from tests.naive import naive_jacobians, naive_spectra

CODE = """
import torch
from torch import nn
from torch.ao.quantization import (
    FakeQuantize, MovingAverageMinMaxObserver, PerChannelMinMaxObserver, QConfig, QuantStub,
    disable_observer, get_default_qat_qconfig, prepare_qat,
)
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.o = nn.Linear(6, 6), nn.Linear(6, 5), nn.Linear(5, 4)
        self.begin()

    def begin(self):
        pass

    def forward(self, x):
        return self.o(self.between(self.b(torch.tanh(self.a(x)))))

    def between(self, h):
        return torch.tanh(h)

class Recurrent(Net):
    def begin(self):
        self.r, self.memory = nn.GRUCell(5, 5), None

    def between(self, h):
        self.memory = self.r(h, self.memory)
        return self.memory

class Reset(Recurrent):
    def forward(self, x):
        self.memory = None
        return super().forward(x)

class Cache(Net):
    def begin(self):
        self.cache = []

    def between(self, h):
        self.cache.append(h)
        return torch.stack(self.cache).tanh().mean(0)

class Mean(Net):
    def begin(self):
        self.register_buffer("mean", torch.zeros(5))

    def between(self, h):
        self.mean.mul_(0.9).add_(0.1 * h.detach().mean(0))
        return torch.tanh(h - self.mean)

class Last(Net):
    def begin(self):
        self.last = None

    def between(self, h):
        out = h if self.last is None or self.last.shape != h.shape else h - self.last
        self.last = h.detach()
        return out

class Counter(Net):
    def begin(self):
        self.n = 0

    def between(self, h):
        self.n += 1
        return h * self.n

class Third(Counter):
    def between(self, h):
        self.n += 1
        return h * (1 if self.n % 3 else 2)

class Harmless(Counter):
    def between(self, h):
        self.n += 1
        return torch.tanh(h)

class Observed(Net):
    def begin(self):
        self.q = FakeQuantize(MovingAverageMinMaxObserver)

    def between(self, h):
        return self.q(h)

class Unobserved(Observed):
    def forward(self, x):
        self.apply(disable_observer)
        return super().forward(x)

def hooked():
    model = Observed()
    model.register_forward_pre_hook(lambda model, _: model.apply(disable_observer) and None)
    return model

class Aware(nn.Module):
    def __init__(self):
        super().__init__()
        self.quant, self.a, self.b = QuantStub(), nn.Linear(6, 7), nn.Linear(7, 5)

    def forward(self, x):
        return self.b(torch.relu(self.a(self.quant(x))))

class Still(Aware):
    def forward(self, x):
        self.apply(disable_observer)
        return super().forward(x)

def prepared(kind, weight=None):
    model = kind().train()
    model.qconfig = get_default_qat_qconfig("fbgemm") if weight is None else QConfig(
        FakeQuantize.with_args(observer=MovingAverageMinMaxObserver), weight)
    return prepare_qat(model)

per_channel = FakeQuantize.with_args(
    observer=PerChannelMinMaxObserver, dtype=torch.qint8, quant_min=-128, quant_max=127,
    qscheme=torch.per_channel_symmetric)
fused = lambda: prepared(Aware)
fused_still = lambda: prepared(Still)
unfused = lambda: prepared(Aware, per_channel)
unfused_still = lambda: prepared(Still, per_channel)

class Hidden(Net):
    def begin(self):
        n = 0
        def tick():
            nonlocal n
            n += 1
            return n
        self.tick = tick

    def between(self, h):
        return h * self.tick()

class Sampling(Net):
    def between(self, h):
        return h + torch.randn_like(h)

class Rsample(Net):
    def between(self, h):
        return torch.distributions.Normal(h, h.exp()).rsample()

class Dropped(Net):
    def between(self, h):
        return F.dropout(h)
"""


def points() -> Tensor:
    return torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("stateful")
    (folder / "net.py").write_text(CODE)
    return folder


def run(
    folder: Path, tmp_path: Path, name: str, layers: str = "", code: str = "", **options: Any
) -> dict[str, float]:
    """The spectral norms of layers; `code` builds the network where it is not of that name."""
    space: dict[str, type[nn.Module]] = {}
    exec(compile(CODE, "net.py", "exec"), space)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = space[name]()
        model(torch.randn(8, 6))
        torch.save(model.state_dict(), tmp_path / "step_1.pt")
    frame = analyze(
        tmp_path, model=f"{folder / 'net.py'}:{code or name}", data=points(), device="cpu",
        **({"layers": layers} if layers else {}), **options,
    )  # fmt: skip
    return dict(zip(frame["layer"], frame["spectral_norm"], strict=True))


def truth(tmp_path: Path) -> dict[str, float]:
    """Of the layers before anything that changes, from the weights."""
    state = torch.load(tmp_path / "step_1.pt")
    plain = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 5))
    weights = {"0": "a", "2": "b"}
    plain.load_state_dict(
        {f"{ours}.{key}": state[f"{theirs}.{key}"] for ours, theirs in weights.items()
         for key in ("weight", "bias")}
    )  # fmt: skip
    spectra = naive_spectra(naive_jacobians(plain.double(), points().double()))
    return {theirs: float(spectra[ours][:, 0].mean()) for ours, theirs in weights.items()}


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("Recurrent", "memory"), ("Cache", "cache"), ("Mean", "mean"), ("Last", "last"),
        ("Counter", "n"), ("Observed", "q.scale"),
    ],
)  # fmt: skip
def test_a_network_that_keeps_state_is_not_called_random(
    folder: Path, tmp_path: Path, name: str, kept: str
) -> None:
    message = rf"keeps state between calls \({kept}[,)].* layer 'o' gives a different output"
    with pytest.raises(ModelError, match=message) as caught:
        run(folder, tmp_path, name)
    assert "random" not in str(caught.value)
    assert caught.value.advice.endswith("--layers 'a,b'.")


def test_state_that_shows_later_or_is_out_of_reach(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"keeps state between calls \(n\)"):
        run(folder, tmp_path, "Third")
    with pytest.raises(ModelError, match="is random in eval mode or keeps state between calls"):
        run(folder, tmp_path, "Hidden")


def test_a_counter_that_changes_no_output_is_no_state(folder: Path, tmp_path: Path) -> None:
    assert list(run(folder, tmp_path, "Harmless")) == ["a", "b", "o"]


@pytest.mark.parametrize("name", ["Sampling", "Rsample", "Dropped"])
def test_sampling_names_the_layers_before_it_which_can_be_analyzed(
    folder: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(ModelError, match="random in eval mode: layer 'o'") as caught:
        run(folder, tmp_path, name)
    assert caught.value.advice.endswith("--layers 'a,b'.")
    # Both in float64; tables hold 9 digits.
    found = run(folder, tmp_path, name, layers="a,b")
    assert found == pytest.approx(truth(tmp_path), rel=1e-8)


def test_the_ways_out(folder: Path, tmp_path: Path) -> None:
    """To start from the same state, and to disable observers, in forward or in a hook."""
    found = run(folder, tmp_path, "Recurrent", code="Reset")
    assert {key: found[key] for key in "ab"} == pytest.approx(truth(tmp_path), rel=1e-8)
    for code in ("Unobserved", "hooked"):
        (tmp_path / code).mkdir()
        found = run(folder, tmp_path / code, "Observed", code=code)
        state = torch.load(tmp_path / code / "step_1.pt")
        # The derivative of a fake quantization within its range is the identity.
        expected = truth(tmp_path / code)
        assert {key: found[key] for key in "ab"} == pytest.approx(expected, rel=1e-8)
        assert found["o"] > 0
        assert state["q.observer_enabled"].item() == 1


@pytest.mark.parametrize("name", ["fused", "unfused"])
@pytest.mark.filterwarnings("ignore")  # torch.ao.quantization is deprecated
class TestPreparedForQuantization:
    """Models of prepare_qat: their observers take shape when they are loaded or run."""

    def test_what_is_wrong_and_what_to_do(self, folder: Path, tmp_path: Path, name: str) -> None:
        with pytest.raises(ModelError, match="found Double") as caught:
            run(folder, tmp_path, name)
        assert caught.value.advice.endswith("give --dtype float32.")
        with pytest.raises(ModelError, match="keeps state between calls") as caught:
            run(folder, tmp_path, name, dtype="float32")
        assert "disable_observer" in caught.value.advice

    def test_the_numbers(self, folder: Path, tmp_path: Path, name: str) -> None:
        found = run(folder, tmp_path, name, code=f"{name}_still", dtype="float32")
        space: dict[str, Any] = {}
        exec(compile(CODE, "net.py", "exec"), space)
        model = space[f"{name}_still"]()
        model.load_state_dict(torch.load(tmp_path / "step_1.pt"))
        spectra = naive_spectra(naive_jacobians(model, points(), layers="ab"))
        truth = {layer: float(values[:, 0].mean()) for layer, values in spectra.items()}
        # In float32: some ten roundings of 6e-8 each.
        assert found == pytest.approx(truth, rel=1e-5)
