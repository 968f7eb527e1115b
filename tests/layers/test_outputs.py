"""The first tensor in what modules return."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from localrank_cli.layers.outputs import first_tensor, replace_first
from tests.networks import Output

Pair = namedtuple("Pair", ["left", "right"])  # as torch's own outputs are made


@dataclass(frozen=True)
class PlanFile:
    hidden: Tensor
    size: int


FIRST, OTHER, NEW = torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([3.0])

OUTPUTS: dict[str, Any] = {
    "tensor": FIRST,
    "tuple": (FIRST, OTHER),
    "list": [FIRST, OTHER],
    "lstm": (FIRST, (OTHER, OTHER)),
    "dict": {"hidden": FIRST, "other": OTHER},
    "ordered_dict": OrderedDict(hidden=FIRST, other=OTHER),
    "named_tuple": Pair(FIRST, OTHER),
    "dataclass": Output("name", FIRST, OTHER),
    "frozen_dataclass": PlanFile(FIRST, 3),
    "nested": (None, 4, {"a": [], "b": [FIRST]}, OTHER),
    "return_type_of_torch": torch.sort(FIRST),
}


def tensors(output: Any) -> list[float]:
    """All numbers in an output, in order, by its printed form alone."""
    text = repr(output)
    return [float(part.split("]")[0]) for part in text.split("tensor([")[1:]]


@pytest.mark.parametrize("name", OUTPUTS)
def test_first_tensor(name: str) -> None:
    found = first_tensor(OUTPUTS[name])
    assert found is not None
    assert torch.equal(found, FIRST)


@pytest.mark.parametrize("output", [None, 3, "text", (), [], {}, (None, {"a": 1}), Output])
def test_no_tensor(output: Any) -> None:
    assert first_tensor(output) is None


def test_it_is_the_tensor_itself() -> None:
    assert first_tensor((None, {"hidden": FIRST})) is FIRST


@pytest.mark.parametrize("name", OUTPUTS)
def test_replace_first(name: str) -> None:
    output = OUTPUTS[name]
    before = tensors(output)
    changed = replace_first(output, NEW)
    assert type(changed) is type(output)
    assert first_tensor(changed) is NEW
    assert tensors(changed) == [3.0, *before[1:]]
    assert tensors(output) == before  # the original is left as it is
