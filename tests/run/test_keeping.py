"""No checkpoint's numbers depend on the checkpoints that were loaded before it."""

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from localrank_cli import analyze
from localrank_cli.errors import ModelError
from tests.cli.program import invoke

# Every network multiplies by a matrix that it computes from its weights once and then keeps.
CODE = """
import functools
import types
import torch
from torch import nn

class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        self.begin()

    def begin(self):
        pass

    def gram(self):
        return (self.a.weight @ self.a.weight.T).detach().clone()

    def forward(self, x):
        return self.b((self.a(x) @ self.kept()).tanh())

class Holder:
    w = None

class Slots:
    __slots__ = ("w",)

class Helper(Base):
    def begin(self):
        self.o = Holder()

    def kept(self):
        if self.o.w is None:
            self.o.w = self.gram()
        return self.o.w

class Deep(Helper):
    def begin(self):
        self.o = Holder()
        self.several = ({"x": [self.o]},)
        del self.o
        object.__setattr__(self, "other", types.SimpleNamespace(o=self.several[0]["x"][0]))

    def kept(self):
        o = self.other.o
        if o.w is None:
            o.w = self.gram()
        return o.w

class Slotted(Base):
    def begin(self):
        self.o = Slots()

    def kept(self):
        if not hasattr(self.o, "w"):
            self.o.w = self.gram()
        return self.o.w

class Lru(Base):
    @functools.lru_cache
    def kept(self):
        return self.gram()

@functools.cache
def cached(network):
    return network.gram()

class LruFunction(Base):
    def kept(self):
        return cached(self)

class OnTheClass(Base):
    w = None

    def kept(self):
        if OnTheClass.w is None:
            OnTheClass.w = self.gram()
        return OnTheClass.w

CACHE, W = {}, None

class Global(Base):
    def kept(self):
        if "w" not in CACHE:
            CACHE["w"] = self.gram()
        return CACHE["w"]

class Rebound(Base):
    def kept(self):
        global W
        if W is None:
            W = self.gram()
        return W

def memoized(function):
    found = {}
    def wrapper(self):
        if id(self) not in found:
            found[id(self)] = function(self)
        return found[id(self)]
    return wrapper

class Memoized(Base):
    @memoized
    def kept(self):
        return self.gram()

class Default(Base):
    def kept(self, found={}):
        if "w" not in found:
            found["w"] = self.gram()
        return found["w"]

class Attribute(Base):
    def kept(self):
        if not hasattr(Attribute.kept, "w"):
            Attribute.kept.w = self.gram()
        return Attribute.kept.w

class ListOfMany(Base):
    def begin(self):
        self.several = [*range(100_000)]

    def kept(self):
        if len(self.several) == 100_000:
            self.several.append(self.gram())
        return self.several[-1]

class InPlace(Base):
    def begin(self):
        self.o = Holder()
        self.o.ready, self.o.w = False, torch.zeros(6, 6)

    def kept(self):
        if not self.o.ready:
            self.o.w = self.o.w.to(self.a.weight).copy_(self.gram())
            self.o.ready = True
        return self.o.w

class Closure(Base):
    def begin(self):
        w = None
        def kept():
            nonlocal w
            w = self.gram() if w is None else w
            return w
        self.kept = kept

def every(network):
    w = network.gram()
    while True:
        yield w

class Iterator(Base):
    def begin(self):
        self.w = every(self)

    def kept(self):
        return next(self.w)

class Nameless(Base):
    def kept(self):
        space = globals()
        if "hidden" not in space:
            space["hidden"] = self.gram()
        return space["hidden"]

class Cleared(Closure):
    def load_state_dict(self, *args, **kwargs):
        found = super().load_state_dict(*args, **kwargs)
        self.begin()
        return found
"""
RESTORED = (
    "Helper", "Deep", "Slotted", "Lru", "LruFunction", "OnTheClass", "Global", "Rebound",
    "Memoized", "Default", "Attribute", "ListOfMany", "InPlace", "Cleared",
)  # fmt: skip
REFUSED = ("Closure", "Iterator", "Nameless")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("keeping")
    (folder / "net.py").write_text(CODE)
    (folder / "run").mkdir()
    for step in (1, 2, 3):
        torch.manual_seed(step)
        layers = nn.ModuleDict({"a": nn.Linear(4, 6), "b": nn.Linear(6, 3)})
        torch.save(layers.state_dict(), folder / "run" / f"step_{step}.pt")
    return folder


def norms(folder: Path, name: str, **options: Any) -> list[float]:
    """The spectral norms of layer b at steps 1, 2 and 3."""
    frame = analyze(
        folder / "run", model=f"{folder / 'net.py'}:{name}", data=torch.eye(4)[:1],
        layers="b", device="cpu", **options,
    )  # fmt: skip
    return [float(value) for value in frame["spectral_norm"]]


def truth(folder: Path) -> list[float]:
    """From the formula b'(tanh(a(x) W)) with W = A A^T, whose Jacobian is B D W A."""
    found = []
    for step in (1, 2, 3):
        state = torch.load(folder / "run" / f"step_{step}.pt")
        a, bias, b = (state[key].double() for key in ("a.weight", "a.bias", "b.weight"))
        slope = 1 - torch.tanh((a[:, 0] + bias) @ a @ a.T) ** 2
        found.append(float(torch.linalg.matrix_norm(b @ (slope[:, None] * (a @ a.T @ a)), 2)))
    return found


@pytest.mark.parametrize(
    "name",
    # Deep holds such an object deeper, and LruFunction has the same cache.
    [
        pytest.param(name, marks=pytest.mark.long if name in {"Helper", "Lru"} else ())
        for name in RESTORED
    ],
)
def test_what_a_network_kept_is_removed(folder: Path, name: str) -> None:
    # Both are computed in float64: rounding is far below 1e-9. Tables hold 9 digits.
    assert norms(folder, name) == pytest.approx(truth(folder), rel=1e-8)


@pytest.mark.cover(1)
@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_network_that_keeps_values_out_of_reach_is_refused(
    folder: Path, name: str, on_error: str
) -> None:
    with pytest.raises(ModelError, match=r"step_2\.pt .*keeps values .* at layer 'b'") as caught:
        norms(folder, name, on_error=on_error)
    assert "load_state_dict" in caught.value.advice


def test_the_ways_out(folder: Path, tmp_path: Path) -> None:
    """To clear the cache, and one command for each checkpoint."""
    words = ["--model", f"{folder / 'net.py'}:Closure", "--data", "normal:4", "--points", "1"]
    found = invoke("analyze", str(folder / "run"), *words)
    assert found.code == 1
    assert "--steps 2:2" in found.error
    for step in (1, 2, 3):
        more = ["--steps", f"{step}:{step}", "-o", str(tmp_path / "out.csv")]
        assert invoke("analyze", str(folder / "run"), *words, *more).code == 0
    rows = (tmp_path / "out.csv").read_text().splitlines()
    fixed = invoke(
        "analyze", str(folder / "run"), *[w.replace("Closure", "Cleared") for w in words]
    )
    assert fixed.stdout.splitlines() == rows


def test_a_shard_after_the_checkpoint_that_was_planned_with(folder: Path, tmp_path: Path) -> None:
    words = ["--model", f"{folder / 'net.py'}:Closure", "--data", "normal:4", "--points", "1"]
    more = ["--shard", "1/3", "-o", str(tmp_path / "parts")]
    assert "keeps values" in invoke("analyze", str(folder / "run"), *words, *more).error


def test_code_that_runs_only_once_is_compared_all_the_same(folder: Path, tmp_path: Path) -> None:
    once = "\nimport builtins\nassert not hasattr(builtins, 'was_here')\nbuiltins.was_here = 1\n"
    (tmp_path / "net.py").write_text(CODE + once)
    (tmp_path / "run").symlink_to(folder / "run")
    with pytest.raises(ModelError, match="keeps values"):
        norms(tmp_path, "Closure")


def test_a_new_network_that_cannot_be_compared_is_noted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtins, "imports", 0, raising=False)
    (tmp_path / "net.py").write_text(
        CODE
        + """
import builtins
builtins.imports += 1
NUMBER = builtins.imports

class OnlyTheFirst(Base):
    def kept(self):
        if NUMBER > 1:
            raise RuntimeError("imported again")
        return self.gram()
"""
    )
    words = [
        "--model",
        f"{tmp_path / 'net.py'}:OnlyTheFirst",
        "--data",
        "normal:4",
        "--points",
        "1",
    ]
    found = invoke("analyze", str(folder / "run"), *words)
    assert found.code == 0
    note = (
        "could not check that the network keeps nothing between checkpoints: RuntimeError: imported"
    )
    assert note in found.stderr
