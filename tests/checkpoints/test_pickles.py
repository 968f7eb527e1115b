"""Whole modules and other objects in torch files are read, and nothing of the file runs."""

import argparse
import collections
import copy
import dataclasses
import datetime
import enum
import io
import os
import pathlib
import pickle
import random
import subprocess
import sys
import tracemalloc
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from localrank_cli.checkpoints import pickles
from localrank_cli.checkpoints.formats import read
from localrank_cli.checkpoints.pickles import Inert
from localrank_cli.checkpoints.torch_file import load_torch
from localrank_cli.errors import UnreadableError
from tests.cli.program import run_python
from tests.helpers import mlp, weights

Save = Callable[[object, Path], None]


@dataclasses.dataclass
class Config:
    rate: float = 0.1
    folder: Path = Path("x")


class Mode(enum.Enum):
    A = 1


class EasyDict(dict[str, Any]):
    """A dict with a class of its own, as configs often are."""


THINGS: dict[str, Any] = {
    "namespace": argparse.Namespace(lr=1, inner=argparse.Namespace(rate=np.float64(3))),
    "time": [datetime.timedelta(seconds=3), datetime.datetime(2024, 1, 1)],
    "path": pathlib.Path("/x"),
    "counts": collections.defaultdict(int, {"a": 1}),
    "arrays": [np.arange(5.0), np.zeros((2, 2), order="F"), np.array(["a", "b"]), np.ones(0)],
    "objects": np.array(["a", None], dtype=object),
    "records": np.zeros(2, dtype=[("a", "i4"), ("b", "f8")]),
    "random states": [random.getstate(), np.random.RandomState(0).get_state()],
    "dataclass": Config(),
    "enum": Mode.A,
    "dict": EasyDict(a=1),
    "queue": collections.deque([1, 2], maxlen=3),
    "functions": [torch.relu, nn.functional.gelu, len],
    "plain": [slice(1, 2), 1j, b"x", bytearray(b"x"), {1}, frozenset([2]), 2**80],
    "torch": [torch.device("cpu"), torch.float16, torch.Size([2]), torch.nn.ReLU()],
}


def saves(zipped: bool, protocol: int) -> Save:
    def save(thing: object, path: Path) -> None:
        torch.save(thing, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)

    return save


WAYS = [saves(True, 2), saves(True, 4), saves(True, 5), saves(False, 2), saves(False, 4)]


@pytest.mark.parametrize("save", WAYS)
@pytest.mark.parametrize("thing", THINGS)
def test_other_objects_are_ignored(tmp_path: Path, thing: str, save: Save) -> None:
    path = tmp_path / "a.pt"
    save({"x": THINGS[thing], "model": {"w": torch.ones(2, 1)}, "step": 3}, path)
    content = read(path)
    assert content.step == 3
    assert torch.equal(content.states["model"]["w"], torch.ones(2, 1))


class Net(nn.Module):
    """Everything that decides which names a state dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 3)
        self.head = nn.Linear(3, 4)
        self.tied = nn.Linear(4, 3)
        self.tied.weight = self.embed.weight
        self.again = self.embed
        self.none: nn.Module | None = None
        self.norm = nn.BatchNorm1d(3)
        self.free = nn.Linear(3, 2, bias=False).requires_grad_(False)
        self.rnn = nn.LSTM(3, 2, num_layers=2, bidirectional=True)
        self.attention = nn.MultiheadAttention(4, 2)
        self.scale = nn.Parameter(torch.ones(()))
        self.register_parameter("nothing", None)
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("passing", torch.arange(3), persistent=False)
        self.view = nn.Parameter(torch.arange(12.0).reshape(3, 4).T)
        self.short = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
        self.config, self.mode, self.act = Config(), Mode.A, nn.functional.relu
        self.plain = torch.ones(7)


def average() -> nn.Module:
    averaged = torch.optim.swa_utils.AveragedModel(mlp(4, 3, 2))
    averaged.update_parameters(mlp(4, 3, 2, seed=1))
    return averaged


def _compiled() -> nn.Module:
    made: object = torch.compile(mlp(4, 3, 2))
    assert isinstance(made, nn.Module)
    return made


MODULES: dict[str, Callable[[], nn.Module]] = {
    "Sequential": lambda: mlp(4, 3, 2),
    "Net": Net,
    "DataParallel": lambda: nn.DataParallel(Net()),
    "weight_norm": lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 3))),
    "fx": lambda: torch.fx.symbolic_trace(mlp(4, 3, 2)),
    "compile": _compiled,
    "ModuleDict": lambda: nn.ModuleDict({"a": nn.ModuleList([nn.Linear(1, 1)]), "b": Net()}),
    "Transformer": lambda: nn.TransformerEncoderLayer(4, 2, 8),
}


def assert_equal(found: Any, expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert type(found[key]) is Tensor
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value)


@pytest.mark.filterwarnings("ignore")  # of torch, about its own deprecated functions
@pytest.mark.cover(1)
@pytest.mark.parametrize("save", WAYS)
@pytest.mark.parametrize("name", MODULES)
def test_a_whole_module_gives_its_state_dict(tmp_path: Path, name: str, save: Save) -> None:
    module, path = MODULES[name](), tmp_path / "step_1.pt"
    save(module, path)
    assert_equal(read(path).states[""], module.state_dict())


def test_modules_in_a_checkpoint(tmp_path: Path) -> None:
    path, module = tmp_path / "a.pt", mlp(4, 3, 2)
    torch.save(
        {"model": module, "ema": copy.deepcopy(module), "epoch": 3, "config": Config()}, path
    )
    content = read(path)
    assert (list(content.states), content.averaged, content.epoch) == (
        ["model", "ema"], frozenset({"ema"}), 3,
    )  # fmt: skip
    assert_equal(content.states["model"], module.state_dict())


def test_an_averaged_module_is_an_average(tmp_path: Path) -> None:
    module = average()
    torch.save(module, tmp_path / "a.pt")
    content = read(tmp_path / "a.pt")
    assert content.averaged == {""}
    expected = dict(module.state_dict())
    del expected["n_averaged"]
    assert_equal(content.states[""], expected)


@dataclasses.dataclass
class TrainState:
    model: nn.Module
    step: int


@pytest.mark.parametrize("made", [TrainState, lambda model, step: EasyDict(model=model, step=step)])
def test_an_object_that_holds_a_checkpoint(tmp_path: Path, made: Any) -> None:
    torch.save(made(mlp(4, 3, 2), 7), tmp_path / "a.pt")
    content = read(tmp_path / "a.pt")
    assert content.step == 7
    assert_equal(content.states["model"], weights(4, 3, 2))


@pytest.mark.parametrize("number", [np.int64(7), np.int32(7), np.float32(7), np.uint8(7)])
def test_steps_that_numpy_counts(tmp_path: Path, number: Any) -> None:
    torch.save({"model": weights(), "step": number}, tmp_path / "a.pt")
    assert read(tmp_path / "a.pt").step == 7


SCRIPT = """
import sys, torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)
    def forward(self, x):
        return self.b(torch.relu(self.a(x)))

torch.manual_seed(0)
net = Net()
torch.save(net, sys.argv[1] + "/whole.pt")
torch.save(net, sys.argv[1] + "/old.pt", _use_new_zipfile_serialization=False)
torch.save(net.state_dict(), sys.argv[1] + "/state.pt")
"""


def test_a_class_of_a_script(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    run_python(tmp_path / "train.py", tmp_path)
    expected = torch.load(tmp_path / "state.pt")
    for name in ("whole.pt", "old.pt"):
        assert_equal(read(tmp_path / name).states[""], expected)


def test_libraries_that_are_not_there_are_not_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = types.ModuleType("omegaconf.dictconfig")
    config = type("DictConfig", (), {"__module__": module.__name__})
    module.DictConfig = config
    path = tmp_path / "a.ckpt"
    parent = types.ModuleType("omegaconf")
    monkeypatch.setitem(sys.modules, "omegaconf", parent)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    try:
        thing = config()
        thing.__dict__.update(_content={"lr": 1}, _parent=None)
        torch.save({"hyper_parameters": thing, "state_dict": {"w": torch.ones(1)}}, path)
    finally:
        monkeypatch.undo()
    loaded: Any = load_torch(path)
    assert isinstance(loaded["hyper_parameters"], Inert)
    assert module.__name__ not in sys.modules


@pytest.mark.parametrize(
    "name", ["TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"]
)
def test_variables_of_torch_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "1")
    torch.save(mlp(4, 3, 2), tmp_path / "a.pt")
    assert_equal(read(tmp_path / "a.pt").states[""], weights(4, 3, 2))
    torch.save(
        {"model": weights(), "x": Calls(os.system, f"touch {tmp_path}/m")}, tmp_path / "b.pt"
    )
    with pytest.raises(UnreadableError, match="needs code to load"):
        read(tmp_path / "b.pt")
    assert os.environ[name] == "1"
    assert not (tmp_path / "m").exists()


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __call__(self) -> None:
        """A pickle calls callables only."""

    def __reduce__(self) -> Any:
        return self.call


REFUSED = {
    "system": (os.system, "touch {}"),
    "eval": (eval, "open('{}', 'w')"),
    "exec": (exec, "open('{}', 'w')"),
    "open": (open, "{}", "w"),
    "Popen": (subprocess.Popen, ["touch", "{}"]),
}
IGNORED = {
    "touch": (Path.touch, Path("{}")),
    "FileIO": (io.FileIO, "{}", "w"),
    "getattr": (getattr, Calls(Path, "{}"), "touch"),
    "called": (Calls(getattr, Calls(Path, "{}"), "touch"),),
    "setattr": (setattr, torch.nn.Linear, "hacked", 1),
    "fileno": (np.save, "{}", 1),
    "torch": (torch.save, 1, "{}"),
    "hub": (torch.hub.load, "a/b", "c"),
    "jit": (torch.jit.load, "{}"),
    "bytes": (torch.storage._load_from_bytes, pickle.dumps(1)),
}


def _filled(call: tuple[Any, ...], marker: Path) -> tuple[Any, ...]:
    def fill(part: Any) -> Any:
        if isinstance(part, str):
            return part.format(marker)
        if isinstance(part, list):
            return [fill(one) for one in part]
        if isinstance(part, Calls):
            return Calls(*_filled((part.call[0], *part.call[1]), marker))
        return marker if isinstance(part, Path) else part

    return tuple(map(fill, call))


@pytest.mark.parametrize("save", WAYS)
@pytest.mark.parametrize("name", REFUSED)
def test_names_that_serve_to_run_code_are_refused(tmp_path: Path, name: str, save: Save) -> None:
    marker, path = tmp_path / "marker", tmp_path / "a.pt"
    save({"x": Calls(*_filled(REFUSED[name], marker)), "model": weights()}, path)
    with pytest.raises(UnreadableError, match="needs code to load: "):
        read(path)
    assert not marker.exists()


@pytest.mark.cover(1)
@pytest.mark.parametrize("save", WAYS)
@pytest.mark.parametrize("name", IGNORED)
def test_other_calls_do_nothing(tmp_path: Path, name: str, save: Save) -> None:
    marker, path = tmp_path / "marker", tmp_path / "a.pt"
    module: Any = mlp(4, 3, 2)
    module.x = Calls(*_filled(IGNORED[name], marker))
    save({"x": Calls(*_filled(IGNORED[name], marker)), "model": module}, path)
    assert_equal(read(path).states["model"], weights(4, 3, 2))
    assert not marker.exists()
    assert not hasattr(nn.Linear, "hacked")


def written(path: Path, body: bytes) -> None:
    """A legacy file whose pickle is written by hand."""
    head = io.BytesIO()
    torch.save(0, head, _use_new_zipfile_serialization=False)
    data = head.getvalue()
    at = data.index(b"\x80\x02K\x00.")  # the pickle of 0
    path.write_bytes(data[:at] + b"\x80\x02" + body + b"." + data[at + 5 :])


def reachable() -> list[bytes]:
    """What GLOBAL can put on the stack, for a pickle to set attributes of."""
    names = [*pickles._FUNCTIONS, "torch.nn.Linear", "builtins.object", "collections.OrderedDict"]
    names += ["torch.Tensor", "torch.storage.UntypedStorage", "torch.float32", "torch.FloatStorage"]
    return [b"c%b\n%b\n" % tuple(map(str.encode, name.rsplit(".", 1))) for name in names]


@pytest.mark.parametrize("name", reachable())
@pytest.mark.parametrize(
    "state", [b"}X\x06\x00\x00\x00hackedK\x01s", b"N}X\x06\x00\x00\x00hackedK\x01s\x86"]
)
def test_no_attribute_of_anything_real_can_be_set(
    tmp_path: Path, name: bytes, state: bytes
) -> None:
    path = tmp_path / "a.pt"
    written(path, name + state + b"b")
    with pytest.raises(UnreadableError):
        read(path)
    real = [*vars(pickles).values(), *pickles._FUNCTIONS.values(), torch.Tensor, nn.Linear, dict]
    assert not any(hasattr(one, "hacked") for one in real)


def test_a_small_file_takes_little_memory(tmp_path: Path) -> None:
    written(tmp_path / "a.pt", b"cposixpath\njoin\nr\xff\xff\xff\x03")  # shared object 2^26
    tracemalloc.start()
    try:
        load_torch(tmp_path / "a.pt")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_what_is_written_by_hand_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    written(path, b"cposixpath\njoin\nX\x01\x00\x00\x00a\x85R")
    loaded = load_torch(path)
    assert isinstance(loaded, Inert)
    assert (loaded.name, loaded.args) == ("posixpath.join", ("a",))


def test_modules_that_hold_themselves_or_each_other_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("localrank_cli.checkpoints.pickles._MOST_MODULES", 10_000)  # 7 s else
    loop = nn.Sequential(nn.Linear(1, 1))
    loop.add_module("loop", loop)
    wide: nn.Module = nn.Linear(1, 1)
    for _ in range(60):
        wide = nn.ModuleList([wide, wide])  # 2^60 names in a small file
    for module in (loop, wide):
        torch.save(module, tmp_path / "a.pt")
        with pytest.raises(UnreadableError, match="is nested in too many modules"):
            read(tmp_path / "a.pt")


class Wrapped(Tensor):
    """A tensor without values of its own, as of torchao."""

    @staticmethod
    def __new__(cls, shape: torch.Size) -> Self:
        made: Self = Tensor._make_wrapper_subclass(cls, shape)
        return made

    @classmethod
    def __torch_dispatch__(cls, *_: Any) -> Any:
        raise NotImplementedError


class Named(Tensor):
    """A tensor that has only a class of its own."""


def test_a_tensor_of_a_class_without_values_is_no_tensor(tmp_path: Path) -> None:
    state: dict[str, Any] = {**weights(), "0.bias": Wrapped(torch.Size([3]))}
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(UnreadableError, match=r"0\.bias is a .*Wrapped, not a plain tensor"):
        read(tmp_path / "a.pt")


def test_a_tensor_of_a_class_with_values_is_one(tmp_path: Path) -> None:
    state = {**weights(), "0.bias": weights()["0.bias"].as_subclass(Named)}
    torch.save(state, tmp_path / "a.pt")
    found = read(tmp_path / "a.pt").states[""]
    assert_equal(found, weights())


@pytest.mark.filterwarnings("ignore")  # of torch, about its own deprecated functions
@pytest.mark.parametrize("save", WAYS[:4:3])
@pytest.mark.parametrize("whole", [True, False])
def test_quantized_networks_are_refused(tmp_path: Path, save: Save, whole: bool) -> None:
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this torch has no quantized layers")
    module: Any = torch.ao.quantization.quantize_dynamic(mlp(4, 3, 2))
    save({"model": module if whole else module.state_dict()}, tmp_path / "a.pt")
    with pytest.raises(UnreadableError, match=r"a\.pt: 0.* is quantized"):
        read(tmp_path / "a.pt")


def test_an_object_in_the_place_of_a_weight_is_refused(tmp_path: Path) -> None:
    for state in ({**weights(), "0.bias": Config()}, {**weights(), "0.bias": np.ones(3)}):
        torch.save(state, tmp_path / "a.pt")
        with pytest.raises(UnreadableError, match=r"0\.bias is a .*, not a tensor"):
            read(tmp_path / "a.pt")
    module = mlp(4, 3, 2)
    module._modules["0"] = Config()  # type: ignore[assignment]  # no module, on purpose
    torch.save(module, tmp_path / "a.pt")
    with pytest.raises(UnreadableError, match=r"0 is a .*Config, not a module with weights") as got:
        read(tmp_path / "a.pt")
    assert "--trust-pickle" in got.value.advice
