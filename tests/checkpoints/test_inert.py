import argparse
import datetime
import pathlib
import pickle
import random
import sys
import types
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from localrank_cli.checkpoints.formats import Inert, inert_globals, load_torch
from localrank_cli.errors import UnreadableError
from tests.helpers import Evil

THINGS: dict[str, Any] = {
    "namespace": argparse.Namespace(lr=1, inner=argparse.Namespace(rate=np.float64(3))),
    "time": [datetime.timedelta(seconds=3), datetime.datetime(2024, 1, 1)],
    "path": pathlib.Path("/x"),
    "counts": defaultdict(int, {"a": 1}),
    "arrays": [np.arange(5.0), np.zeros((2, 2), order="F"), np.array(["a", "b"]), np.ones(0)],
    "objects": np.array(["a", None], dtype=object),
    "records": np.zeros(2, dtype=[("a", "i4"), ("b", "f8")]),
    "scalars": [np.float32(3), np.int64(3), np.bool_(True)],
    "random states": [random.getstate(), np.random.RandomState(0).get_state()],
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("thing", THINGS)
def test_other_objects_are_ignored(tmp_path: Path, thing: str, zipped: bool) -> None:
    path = tmp_path / "a.pt"
    saved = {"x": THINGS[thing], "model": {"w": torch.arange(3.0)}}
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    loaded: Any = load_torch(path)
    assert torch.equal(loaded["model"]["w"], torch.arange(3.0))
    found = loaded["x"] if isinstance(loaded["x"], list) else [loaded["x"]]
    assert all(type(one) in {Inert, dict, tuple} for one in found)


def test_libraries_that_are_not_there_are_not_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("omegaconf.dictconfig")
    config = type("DictConfig", (), {"__module__": module.__name__})
    module.DictConfig = config  # type: ignore[attr-defined]
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
    assert type(loaded["hyper_parameters"]) is Inert
    assert module.__name__ not in sys.modules


def test_torch_is_as_before_outside(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"args": argparse.Namespace(lr=1)}, path)
    before = set(torch.serialization.get_safe_globals())
    load_torch(path)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError, match=r"argparse\.Namespace"):
        torch.load(path, weights_only=True)


class Reaches:
    """A call of os.system by way of getattr, which is one of the names that are passed over."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return getattr, (Evil(self.marker), "marker")


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_runs_by_way_of_those_names(tmp_path: Path, zipped: bool) -> None:
    marker, path = tmp_path / "marker", tmp_path / "a.pt"
    torch.save({"x": Reaches(marker)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnreadableError, match=r"needs code to load: posix\.system\."):
        load_torch(path)
    with inert_globals(), pytest.raises(pickle.UnpicklingError, match="system"):
        torch.load(path, weights_only=True)
    assert not marker.exists()


def test_nothing_can_be_done_to_it() -> None:
    thing: Any = Inert(1, "a")
    thing.__setstate__({"a": 1})
    assert vars(thing) == {}
