"""What checkpoints record of how their network was built, read without the code of its classes."""

import argparse
import dataclasses
import enum
import functools
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from localrank_cli.checkpoints.entries import find_entries
from localrank_cli.checkpoints.torch_file import load_torch
from localrank_cli.recorded import Entries, NotPlain, Record, written
from tests.helpers import Evil, weights


class AttributeDict(dict[str, Any]):
    """As Lightning keeps hyperparameters."""


class Mode(enum.Enum):
    ONE = 1


@dataclasses.dataclass
class Inner:
    theta: float = 1e4


@dataclasses.dataclass
class Config:
    hidden: int = 3
    inner: Inner = dataclasses.field(default_factory=Inner)


def entries_of(tmp_path: Path, **beside: object) -> Entries:
    path = tmp_path / "step_1.pt"
    torch.save({"model": weights(), **beside}, path)
    return find_entries(load_torch(path))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"n": 1, "bias": False, "act": None}, "{'n': 1, 'bias': False, 'act': None}"),
        (AttributeDict(n=[1, (2.5,)]), "{'n': [1, (2.5,)]}"),
        (argparse.Namespace(n=1, _hidden=2), "Namespace(n=1)"),
        (types.SimpleNamespace(n="a"), "SimpleNamespace(n='a')"),
        (Config(), "Config(hidden=3, inner=Inner(theta=10000.0))"),
        ({"n": {1: "a"}}, "{'n': {1: 'a'}}"),
    ],
)
def test_values_are_read_from_every_kind_of_config(
    tmp_path: Path, value: object, expected: str
) -> None:
    assert written(entries_of(tmp_path, config=value)["config"]) == expected


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (nn.GELU, "torch.nn.modules.activation.GELU"),
        (nn.GELU(), "torch.nn.modules.activation.GELU"),
        (torch.float32, "torch.float32"),
        (torch.ones(2), "torch.Tensor"),
        (torch.device("cpu"), "torch.device"),
        (functools.partial(nn.Linear, bias=False), "functools.partial"),
        ({1, 2}, "builtins.set"),
    ],
)
def test_other_values_are_marked_with_their_kind(tmp_path: Path, value: object, kind: str) -> None:
    assert entries_of(tmp_path, args={"x": value})["args"].values["x"] == NotPlain(kind)


def test_objects_that_trusted_code_rebuilt() -> None:
    loaded = {
        "args": argparse.Namespace(n=np.float64(2), act=nn.GELU, mode=Mode.ONE),
        "config": Config(hidden=5),
        "model": weights(),
    }
    found = find_entries(loaded)
    assert written(found["config"]) == "Config(hidden=5, inner=Inner(theta=10000.0))"
    assert written(found["args"]).startswith("Namespace(n=2.0, act=<GELU>, mode=<")


def omegaconf() -> dict[str, Any]:
    """The layout of OmegaConf's pickles: every value in a node, under `_val` or `_content`."""
    module = types.ModuleType("omegaconf")
    for name in ("DictConfig", "ListConfig", "AnyNode"):
        vars(module)[name] = type(name, (), {"__module__": "omegaconf"})
    return vars(module)


def test_omegaconf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = omegaconf()
    monkeypatch.setitem(sys.modules, "omegaconf", types.SimpleNamespace(**space))

    def node(kind: str, **state: object) -> Any:
        made = space[kind]()
        vars(made).update(state, _parent=None)
        return made

    values = node("ListConfig", _content=[node("AnyNode", _val=4)])
    content = {"hidden": values, "other": node("AnyNode", _val="${hidden}")}
    found = entries_of(tmp_path, hyper_parameters=node("DictConfig", _content=content))
    record = found["hyper_parameters"]
    assert record.values["hidden"] == [4]
    assert record.values["other"] == NotPlain("OmegaConf reference (${hidden})")


def test_what_describes_the_network_alone_comes_first(tmp_path: Path) -> None:
    found = entries_of(
        tmp_path,
        args=argparse.Namespace(lr=1),
        config={"model": {"hidden": 3}, "lr": 1},
        model_args={"hidden": 3},
        hyper_parameters={"lr": 1},
        opt={"state": {}, "param_groups": []},
    )
    assert list(found) == ["model_args", "config.model", "hyper_parameters", "config", "args"]


def test_nothing_runs_and_shared_parts_do_not_grow(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    many: list[object] = [1]
    for _ in range(40):
        many = [many, many]
    torch.save({"config": {"n": 1, "x": many}, "model": weights()}, tmp_path / "many.pt")
    record = find_entries(load_torch(tmp_path / "many.pt"))["config"]
    assert isinstance(record, Record)
    assert "very large" in written(record.values["x"])
    torch.save({"config": {"x": Evil(marker)}, "model": weights()}, tmp_path / "evil.pt")
    with pytest.raises(Exception, match="needs code"):
        load_torch(tmp_path / "evil.pt")
    assert not marker.exists()
