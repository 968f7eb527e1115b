"""Networks whose code compiles, wraps, normalizes or transforms: naive numbers, or a refusal."""

import runpy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from localrank_cli import analyze
from localrank_cli.errors import LayerError, ModelError
from tests.naive import naive_jacobians, naive_spectra

CODE = """
import copy
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.nn import utils

P = utils.parametrizations

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.o = nn.Linear(6, 7), nn.Linear(7, 6), nn.Linear(6, 4)
        self.begin()

    def begin(self):
        pass

    def forward(self, x):
        return self.o(torch.tanh(self.b(torch.tanh(self.a(x)))))

def norm(wrap):
    return lambda: nn.Sequential(wrap(nn.Linear(6, 7)), nn.LeakyReLU(), wrap(nn.Linear(7, 5)))

OldSpectral, NewSpectral = norm(utils.spectral_norm), norm(P.spectral_norm)
OldWeight, NewWeight = norm(utils.weight_norm), norm(P.weight_norm)
Orthogonal = norm(P.orthogonal)
SpectralRoot = lambda: utils.spectral_norm(nn.Linear(6, 5))

def scaled(module, _):
    module.weight = module.weight_orig * 0.5

def equalized(layer):
    weight = layer.weight
    del layer._parameters["weight"]
    layer.register_parameter("weight_orig", nn.Parameter(weight.data))
    layer.weight = weight.data
    layer.register_forward_pre_hook(scaled)
    return layer

Equalized = norm(equalized)

class Ensemble(Net):
    def begin(self):
        self.heads = nn.ModuleList([nn.Linear(7, 2) for _ in range(3)])

    def forward(self, x):
        h = torch.tanh(self.a(x))
        params, buffers = stack_module_state(list(self.heads))
        base = copy.deepcopy(self.heads[0]).to("meta")
        y = vmap(lambda p, b: functional_call(base, (p, b), (h,)))(params, buffers)
        return self.o(torch.tanh(y.permute(1, 0, 2).flatten(1)))

class Force(Net):
    def forward(self, x):
        return self.o(grad(lambda z: self.b(torch.tanh(self.a(z))).square().sum())(x))

class Tangent(Net):
    def forward(self, x):
        return self.o(sum(jvp(lambda z: self.b(torch.tanh(self.a(z))), (x,), (x.cos(),))))

class Vmapped(Net):
    def forward(self, x):
        return self.o(vmap(lambda z: torch.tanh(self.b(torch.tanh(self.a(z)))))(x))

class AllVmapped(Net):
    def forward(self, x):
        return vmap(super().forward)(x)

Compiled = lambda: torch.compile(Net())
Parallel = lambda: nn.DataParallel(Net())
Both = lambda: nn.DataParallel(torch.compile(Net()))
Averaged = lambda: torch.optim.swa_utils.AveragedModel(Net())

class Engine(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = Net()

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)

class Doubling(Engine):
    def forward(self, x):
        return self.module(2 * x)

class CompiledPart(Net):
    def begin(self):
        self.b = torch.compile(self.b)

class CompiledFunction(Net):
    def forward(self, x):
        after = torch.compile(lambda h: self.o(torch.tanh(self.b(torch.tanh(h)))), fullgraph=True)
        return after(self.a(x))

class CompiledForward(Net):
    @torch.compile
    def forward(self, x):
        return super().forward(x)

Scripted = lambda: torch.jit.script(Net())
Traced = lambda: torch.jit.trace(Net(), torch.zeros(1, 6))

class ScriptedPart(Net):
    def begin(self):
        self.b = torch.jit.script(self.b)
"""


# Torch's own, when torch._dynamo is imported, and about what is tested here.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit"),
    pytest.mark.filterwarnings("ignore:.*weight_norm"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("wrapped")
    (folder / "net.py").write_text(CODE)
    return folder


def points() -> Tensor:
    return torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


def network(folder: Path, name: str) -> nn.Module:
    """One trained under another seed than that of localrank's own builds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model: nn.Module = runpy.run_path(str(folder / "net.py"))[name]()
        for parameter in model.parameters():
            parameter.data *= 2
        if "Spectral" in name:
            model.train()(torch.randn(8, 6))  # power iterations
    return model


def table(folder: Path, tmp_path: Path, state: Any, name: str, **options: Any) -> pd.DataFrame:
    torch.save(state, tmp_path / "step_1.pt")
    return analyze(
        tmp_path, model=f"{folder / 'net.py'}:{name}", data=points(), device="cpu", **options
    ).set_index("layer")


def check(frame: pd.DataFrame, model: nn.Module) -> None:
    model.double().eval().requires_grad_(False)
    model(points().double())  # weights that hooks compute keep no graph
    spectra = naive_spectra(naive_jacobians(model, points().double()))
    for layer, row in frame.iterrows():
        truth = spectra[str(layer)][:, 0].mean()
        # Both in float64, where rounding is far below 1e-9; a table holds 9 digits.
        assert row["spectral_norm"] == pytest.approx(truth, rel=1e-8), layer


@pytest.mark.parametrize(
    "name",
    ["OldSpectral", "NewSpectral", "OldWeight", "NewWeight", "Orthogonal", "Equalized"],
)
def test_normalized_weights(folder: Path, tmp_path: Path, name: str) -> None:
    model = network(folder, name)
    frame = table(folder, tmp_path, model.state_dict(), name)
    assert list(frame.index) == ["0", "2"]
    check(frame, model)


def test_a_spectral_norm_of_a_single_layer(folder: Path, tmp_path: Path) -> None:
    model = network(folder, "SpectralRoot")
    frame = table(folder, tmp_path, model.state_dict(), "SpectralRoot")
    layer = nn.Linear(6, 5)
    weight, u, v = (model.state_dict()[f"weight_{name}"] for name in ("orig", "u", "v"))
    matrix = weight / (u @ weight @ v)
    layer.weight = nn.Parameter(matrix.detach().double())
    norm = torch.linalg.matrix_norm(layer.weight, 2).item()
    # sigma_1 of the power iteration is rounded to float32 here: 6e-8.
    assert frame.loc["model", "spectral_norm"] == pytest.approx(norm, rel=1e-6)


@pytest.mark.cover(1)
@pytest.mark.cover(1)
@pytest.mark.parametrize(("file", "code"), [("Old", "New"), ("New", "Old"), ("Old", "Old")])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_names_of_both_weight_norms_under_a_prefix(
    folder: Path, tmp_path: Path, file: str, code: str, prefix: str
) -> None:
    model = network(folder, f"{file}Weight")
    state = {prefix + key: value for key, value in model.state_dict().items()}
    check(table(folder, tmp_path, state, f"{code}Weight"), model)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("Ensemble", ["a", "o"]), ("Force", ["a", "b", "o"]), ("Tangent", ["a", "b", "o"]),
        ("Vmapped", ["o"]),
    ],
)  # fmt: skip
def test_transforms_in_the_forward_pass(
    folder: Path,
    tmp_path: Path,
    name: str,
    layers: list[str],
) -> None:
    model = network(folder, name)
    frame = table(folder, tmp_path, model.state_dict(), name)
    assert list(frame.index) == layers
    # Hooks within vmap see no values: the truth is that of the whole output, row by row.
    model.double().eval().requires_grad_(False)
    norms = []
    for point in points().double():
        leaf = point[None].requires_grad_(True)
        rows = [
            torch.autograd.grad(entry, leaf, retain_graph=True)[0][0] for entry in model(leaf)[0]
        ]
        norms.append(torch.linalg.matrix_norm(torch.stack(rows), 2).item())
    # Both in float64; tables hold 9 digits.
    assert frame.loc["o", "spectral_norm"] == pytest.approx(sum(norms) / len(norms), rel=1e-8)
    if "a" in layers:
        norm = torch.linalg.matrix_norm(model.get_parameter("a.weight"), 2).item()
        assert frame.loc["a", "spectral_norm"] == pytest.approx(norm, rel=1e-8)


def test_layers_that_run_only_within_vmap_are_refused(folder: Path, tmp_path: Path) -> None:
    state = network(folder, "AllVmapped").state_dict()
    with pytest.raises(LayerError, match=r"within torch.func.vmap.*: a, b, o"):
        table(folder, tmp_path, state, "AllVmapped")
    with pytest.raises(LayerError, match=r"'a' runs only within torch.func.vmap"):
        table(folder, tmp_path, state, "Vmapped", layers="a")
    with pytest.raises(LayerError, match=r"--wrt a: that module runs within torch.func"):
        table(folder, tmp_path, state, "Tangent", wrt="a")


@pytest.mark.parametrize(
    "name",
    [
        "Both", "Averaged", "Engine", "CompiledPart", "CompiledFunction", "CompiledForward",
        *(pytest.param(part, marks=pytest.mark.long) for part in ("Compiled", "Parallel")),
    ],
)  # fmt: skip
def test_wrappers_come_off(folder: Path, tmp_path: Path, name: str) -> None:
    """With the names that the wrapper writes, and with those of the network in it."""
    plain = network(folder, "Net")
    wrapped = network(folder, name).state_dict()
    is_renamed = list(wrapped) != list(plain.state_dict())
    for number, state in enumerate((wrapped, plain.state_dict())[: 1 + is_renamed]):
        (tmp_path / str(number)).mkdir()
        frame = table(folder, tmp_path / str(number), state, name)
        assert list(frame.index) == ["a", "b", "o"]
        check(frame, plain)


def test_a_wrapper_that_does_more_stays_and_takes_the_networks_names(
    folder: Path, tmp_path: Path
) -> None:
    model = network(folder, "Doubling")
    plain = {key.removeprefix("module."): value for key, value in model.state_dict().items()}
    frame = table(folder, tmp_path, plain, "Doubling")
    assert list(frame.index) == ["module.a", "module.b", "module.o"]
    check(frame, model)


@pytest.mark.parametrize(
    ("name", "place"),
    [("Scripted", "it is a ScriptModule"), ("Traced", "it is a"), ("ScriptedPart", "'b' in it is")],
)
def test_scripted_networks_are_refused(folder: Path, tmp_path: Path, name: str, place: str) -> None:
    """And the code without torch.jit takes their weights."""
    state = network(folder, name).state_dict()
    with pytest.raises(ModelError, match=place) as caught:
        table(folder, tmp_path, state, name)
    assert "without torch.jit" in caught.value.advice
    check(table(folder, tmp_path, state, "Net"), network(folder, "Net"))
