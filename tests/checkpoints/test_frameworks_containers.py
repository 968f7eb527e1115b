from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from localrank_cli.checkpoints.frameworks import CONTAINER_KEYS, unwrap
from localrank_cli.checkpoints.pickles import LostTensor
from localrank_cli.errors import UnreadableError
from tests.helpers import weights

PATH = Path("step_1.pt")


def test_bare_state_dict() -> None:
    content = unwrap(OrderedDict(weights()), PATH)
    assert list(content.states) == [""]
    assert list(content.states[""]) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert content.step is None
    assert content.epoch is None


@pytest.mark.parametrize("key", CONTAINER_KEYS)
def test_container(key: str) -> None:
    content = unwrap({"optimizer": {"lr": 0.1}, key: weights(), "epoch": 3, "step": 40}, PATH)
    assert list(content.states) == [key]
    assert torch.equal(content.states[key]["0.bias"], weights()["0.bias"])
    assert (content.step, content.step_source, content.epoch) == (40, "step", 3)


def test_lightning() -> None:
    loaded = {
        "epoch": 1,
        "global_step": 10,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {f"model.{key}": value for key, value in weights().items()},
        "loops": {},
        "optimizer_states": [{}],
        "hyper_parameters": {"lr": 0.1, "steps": 999},
    }
    content = unwrap(loaded, PATH)
    assert list(content.states) == ["state_dict"]
    assert (content.step, content.epoch) == (10, 1)


def test_containers_in_containers() -> None:
    content = unwrap({"model": {"state_dict": weights()}, "net": weights()}, PATH)
    assert list(content.states) == ["model.state_dict", "net"]


def test_all_candidates_are_returned() -> None:
    content = unwrap({"model": weights(), "state_dict": weights(2, 2)}, PATH)
    assert set(content.states) == {"model", "state_dict"}


@pytest.mark.parametrize(
    ("loaded", "message"),
    [
        ([1, 2], "holds a list"),
        (torch.ones(2), "holds a Tensor"),
        (None, "holds a NoneType"),
        ({}, "its keys are none"),
        ({"state_dict": {}}, "its keys are 'state_dict'"),
        ({"optimizer": {}, "epoch": 1}, "its keys are 'optimizer', 'epoch'"),
        ({1: torch.ones(2)}, "its keys are '1'"),
        ({"model": {"a": 1}}, "no state dict"),
        ({"model": {"model": {"model": {"model": {"model": {}}}}}}, "no state dict"),
    ],
)
def test_no_state_dict(loaded: Any, message: str) -> None:
    with pytest.raises(UnreadableError, match=message) as caught:
        unwrap(loaded, PATH)
    assert "step_1.pt" in caught.value.what
    assert "--pattern" in caught.value.advice


def test_a_container_that_holds_itself_ends() -> None:
    loaded: dict[str, Any] = {}
    loaded["model"] = loaded
    with pytest.raises(UnreadableError):
        unwrap(loaded, PATH)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(3, 4).to_sparse(), "0.weight is sparse or quantized"),
        (torch.ones(3, 4, device="meta"), r"0.weight has no values \(meta\)"),
    ],
)
def test_tensors_that_are_not_plain(tensor: torch.Tensor, message: str) -> None:
    with pytest.raises(UnreadableError, match=rf"step_1\.pt: {message}"):
        unwrap({"model": weights() | {"0.weight": tensor}}, PATH)
    for place in ("model", "ema", "best"):  # the bare state dict is not passed over for another
        with pytest.raises(UnreadableError, match=rf"step_1\.pt: {message}"):
            unwrap(weights() | {"0.weight": tensor} | {place: weights()}, PATH)


@pytest.mark.parametrize("place", ["model", "ema", "best"])
def test_the_packed_weights_of_a_bare_quantized_network(place: str) -> None:
    packed = {"0.scale": torch.tensor(1.0), "0._packed.params": LostTensor("is quantized")}
    with pytest.raises(UnreadableError, match=r"0\._packed\.params is quantized"):
        unwrap({**packed, place: weights()}, PATH)


FLAT: dict[str, dict[str, Any]] = {
    "counters": {"step": 100, "loss": 0.5, "epoch": 3, "lr": [1e-3]},
    "extra state": {"0._extra_state": None, "2._extra_state": {"a": torch.ones(2)}},
    "texts": {"arch": "mlp", "date": None, "best": True},
    "an optimizer": {"optimizer": torch.optim.Adam([torch.ones(2, 2)]).state_dict()},
    "settings": {"config": {"a": {"b": 1}}, "args": [], "0.meta": ()},
}


@pytest.mark.parametrize("beside", FLAT)
@pytest.mark.parametrize("place", [None, "model"])
def test_entries_that_are_no_tensors_are_passed_over(beside: str, place: str | None) -> None:
    mixed = {**weights(), **FLAT[beside]}
    content = unwrap(mixed if place is None else {place: mixed, "step": 100}, PATH)
    (key,) = content.states
    assert key == (place or "")
    assert list(content.states[key]) == list(weights())
    assert content.step == (100 if place or "step" in mixed else None)


def test_a_tensor_beside_state_dicts_is_none() -> None:
    for best in (torch.tensor(0.5), torch.ones(3), torch.ones(2, 2)):
        assert list(unwrap({"best": best, "model": weights()}, PATH).states) == ["model"]
        found = unwrap({"best": best, "generator": weights(), "optimizer": {}}, PATH)
        assert list(found.states) == ["generator"]
        found = unwrap({"best": best, "nets": {"a": weights(), "b": weights()}}, PATH)
        assert list(found.states) == ["nets.a", "nets.b"]
    with pytest.raises(UnreadableError, match="its keys are 'best', 'step'"):
        unwrap({"best": torch.ones(3), "step": 1}, PATH)
