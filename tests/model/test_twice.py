"""Parts that are drawn when a network is built: which ones a second build shows."""

import array
import collections
import enum
import functools
import itertools
import random
import threading
import time
import types
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import utils

from localrank_cli.model.build import existing_modules
from localrank_cli.model.twice import Builder, Network, build_twice


def built(factory: Callable[[], object]) -> Network:
    return build_twice(Builder(factory, {}, "net.py:build", existing_modules()))


def holding(**attributes: Callable[[], Any]) -> Callable[[], nn.Module]:
    """A new network with its own attributes."""

    def factory() -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
        for name, make in attributes.items():
            setattr(model, name, make())
        return model

    return factory


@dataclass
class Record:
    table: Tensor
    rate: float = 0.5


class Helper:
    def __init__(self) -> None:
        self.table, self.rate = torch.randn(2), random.random()


class Slotted:
    __slots__ = ("__hidden", "table")

    def __init__(self) -> None:
        self.table, self.__hidden = torch.randn(2), random.random()

    def get(self) -> Tensor:
        return self.table * self.__hidden


class Color(enum.Enum):
    RED, GREEN, BLUE, GREY, PINK = range(5)


class Shared(nn.Sequential):
    table: Tensor

    def __init__(self) -> None:
        super().__init__(nn.Linear(2, 2))
        type(self).table = torch.randn(2)

    def forward(self, x: Tensor) -> Tensor:
        return x * self._table()

    def _table(self) -> Tensor:
        return self.table


def hooked_with(mask: Tensor) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_forward_hook(lambda _, args, out: out * mask)
    return model


def with_buffer(persistent: bool) -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 2))
    model.register_buffer("mask", torch.rand(3), persistent=persistent)
    return model


DRAWN: dict[str, tuple[Callable[[], object], set[str]]] = {
    "tensor": (holding(B=lambda: torch.randn(3)), {"B"}),
    "complex tensor": (holding(B=lambda: torch.randn(3, dtype=torch.cfloat).conj()), {"B"}),
    "sparse tensor": (holding(B=lambda: torch.rand(3).to_sparse()), {"B"}),
    "permutation": (holding(order=lambda: torch.randperm(50)), {"order"}),
    "boolean mask": (holding(mask=lambda: torch.rand(50) > 0.5), {"mask"}),
    "buffer": (lambda: with_buffer(persistent=False), {"mask"}),
    "list": (holding(several=lambda: [torch.zeros(2), torch.randn(2)]), {"several[1]"}),
    "dict": (holding(by=lambda: {"a": (torch.randn(2),), 7: 1}), {"by['a'][0]"}),
    "dataclass": (holding(record=lambda: Record(torch.randn(2))), {"record.table"}),
    "helper": (holding(helper=Helper), {"helper.table", "helper.rate"}),
    "array": (holding(B=lambda: np.random.rand(3)), {"B"}),
    "array of objects": (
        holding(B=lambda: np.array([None, torch.randn(1)], dtype=object)), {"B[1]"}),
    "number": (holding(rate=random.random), {"rate"}),
    "numbers": (holding(order=lambda: random.sample(range(99), 2)), {"order[0]", "order[1]"}),
    "word": (holding(kind=lambda: random.choice([f"{i}" for i in range(999)])), {"kind"}),
    "set": (holding(kept=lambda: set(random.sample(range(999), 9))), {"kept"}),
    "slope of torch's own": (
        lambda: nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(random.random())),
        {"1.negative_slope"}),
    "class": (
        # With the two seeds on either side of a half.
        lambda: nn.Sequential(nn.Linear(2, 2), [nn.Sigmoid, nn.Tanh][random.random() < 0.5]()),
        {"1"}),
    "function": (holding(act=lambda: [torch.relu, torch.tanh][random.random() < 0.5]), {"act"}),
    "partial": (
        holding(act=lambda: functools.partial(torch.add, other=torch.randn(2))),
        {"act.keywords['other']"}),
    "module in a list": (
        holding(heads=lambda: [nn.Linear(1, 1, bias=False)]), {"heads[0].weight"}),
    "parameter in a list": (
        holding(own=lambda: [nn.Parameter(torch.randn(1))]), {"own[0]"}),
    "copy of a weight": (
        lambda: _with(nn.Sequential(nn.Linear(1, 1)), "old", lambda m: m[0].weight.clone()),
        {"old"}),
    "layer alone": (lambda: _with(nn.Linear(1, 1), "B", lambda m: torch.randn(1)), {"B"}),
    "namespace": (holding(c=lambda: types.SimpleNamespace(m=torch.randn(2))), {"c.m"}),
    "slots": (holding(c=Slotted), {"c.table", "c._Slotted__hidden"}),
    "bound method": (holding(f=lambda: Slotted().get), {"f.table", "f._Slotted__hidden"}),
    "closure": (holding(f=lambda: _closed_over(torch.randn(2))), {"f.m"}),
    "default argument": (holding(f=lambda: _with_default(torch.randn(2))), {"f.defaults[0]"}),
    "hook": (lambda: hooked_with(torch.rand(2)), {"0.hook.mask"}),
    "class attribute": (Shared, {"table"}),
    "user dict": (holding(c=lambda: collections.UserDict(m=torch.randn(2))), {"c.data['m']"}),
    "keys": (holding(c=lambda: {(1, random.random()): 1}), {"c.keys[0][1]"}),
    "bytes": (holding(c=lambda: bytearray(random.randbytes(9))), {"c"}),
    "slice": (holding(c=lambda: slice(0, random.randrange(10**6))), {"c[1]"}),
    "member of an enum": (
        holding(c=lambda: list(Color)[random.randrange(5)]), {"c", "c.value"}),
    "array of numbers": (holding(c=lambda: array.array("d", [random.random()])), {"c[3]"}),
    "frame": (holding(c=lambda: pd.DataFrame(np.random.rand(2, 2))), {"c"}),
    "many numbers": (holding(c=lambda: random.sample(range(999), 200)), {"c"}),
    "generator of torch": (
        holding(c=lambda: torch.Generator().manual_seed(random.randrange(10**6))), {"c"}),
    "generators of numpy": (
        holding(c=lambda: np.random.RandomState(np.random.randint(10**6)),
                d=lambda: np.random.default_rng(np.random.randint(10**6))), {"c", "d"}),
    "generator of Python": (holding(c=lambda: random.Random(random.random())), {"c"}),
    "distribution": (
        holding(noise=lambda: torch.distributions.Normal(torch.randn(2), 1.0)), {"noise.loc"}),
}  # fmt: skip


def _closed_over(m: Tensor) -> Callable[[], Tensor]:
    return lambda: m


def _with_default(table: Tensor) -> Callable[[], Tensor]:
    def read(table: Tensor = table) -> Tensor:
        return table

    return read


def _with(model: Any, name: str, make: Callable[[Any], object]) -> nn.Module:
    setattr(model, name, make(model))
    found: nn.Module = model
    return found


@pytest.mark.parametrize("name", DRAWN)
def test_what_is_drawn_is_named(name: str) -> None:
    factory, names = DRAWN[name]
    found = built(factory)
    drawn = found.drawn - set(found.model.state_dict())
    if name == "frame":  # how pandas holds its arrays is its own affair
        drawn = frozenset(one.partition(".")[0] for one in drawn)
    assert drawn == names


def seeded_inside() -> nn.Module:
    torch.manual_seed(3)
    np.random.seed(3)
    return holding(B=lambda: torch.randn(3), C=lambda: np.random.rand(2))()


def with_empty_memory() -> nn.Module:
    # Freed memory with other values each time is what torch.empty then gives.
    for size in range(1, 40):
        torch.full((size,), random.random())
    return holding(cache=lambda: [torch.empty(size) for size in range(1, 40)])()


counter = itertools.count()


class Odd:
    def __getattr__(self, name: str) -> object:
        raise RuntimeError(name)


class Trained(nn.Sequential):
    seen: ClassVar[list[float]] = []

    def training_step(self) -> None:
        self.seen.append(random.random())

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.training_step()


def _elapsed() -> float:
    start = time.perf_counter()
    sum(range(10**5))
    return time.perf_counter() - start


def _cycle() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


NOT_DRAWN: dict[str, Callable[[], object]] = {
    "weights alone": lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)),
    "saved buffer": lambda: with_buffer(persistent=True),
    "table": holding(table=lambda: torch.linspace(0, 1, 5), nan=lambda: float("nan")),
    "seeded inside": seeded_inside,
    "empty memory": with_empty_memory,
    "counter": holding(uid=lambda: next(counter), names={}.copy),
    "name": holding(name=lambda: uuid.uuid4().hex),
    "clock": holding(
        start=time.time,
        ticks=lambda: [time.perf_counter()],
        took=_elapsed,
    ),
    "generator without a seed": holding(rng=np.random.default_rng, lock=threading.Lock),
    "refusing attributes": holding(odd=Odd),
    "cycle": holding(c=_cycle),
    "what only training uses": lambda: Trained(nn.Linear(2, 2)),
    "recurrent": lambda: nn.Sequential(nn.LSTM(2, 3)),
    "weight norm": lambda: nn.Sequential(nn.Linear(2, 2), utils.weight_norm(nn.Linear(2, 2))),
    "hook": lambda: _with(nn.Sequential(nn.Linear(1, 1)), "handle", _hooked),
    "weights in a list": lambda: _with(
        nn.Sequential(nn.Linear(1, 1)), "all", lambda m: [*m.parameters(), m, [m[0]]]
    ),
}


def _hooked(model: nn.Module) -> object:
    return model.register_forward_hook(lambda *_: None)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", NOT_DRAWN)
def test_what_a_checkpoint_fills_or_every_build_gives_is_not(name: str) -> None:
    found = built(NOT_DRAWN[name])
    assert found.drawn - set(found.model.state_dict()) == set()


def test_numbers_without_a_seed_are_noted_where_drawn_ones_are_allowed() -> None:
    factory = holding(B=lambda: np.random.default_rng().random(3), C=lambda: torch.randn(2))
    assert built(factory).unstable == {"B"}


def test_the_network_does_not_depend_on_the_callers_seeds() -> None:
    factory = holding(B=lambda: torch.randn(3), C=lambda: np.random.rand(3), D=random.random)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        model: Any = built(factory).model
        found.append((model.B.tolist(), model.C.tolist(), model.D))
        # And they are left as they were.
        state = torch.random.get_rng_state(), random.getstate()
        torch.manual_seed(seed)
        random.seed(seed)
        assert torch.equal(torch.random.get_rng_state(), state[0])
        assert random.getstate() == state[1]
        drawn = np.random.rand()
        np.random.seed(seed)
        assert np.random.rand() == drawn
    assert found[0] == found[1]


def test_two_calls_suffice_where_nothing_is_drawn() -> None:
    calls: list[int] = []
    alive: list[int] = []

    class Watched(nn.Sequential):
        def __init__(self) -> None:
            calls.append(1)
            alive.append(sum(type(one) is Watched for one in existing_modules()))
            super().__init__(nn.Linear(2, 2), nn.BatchNorm1d(2))

    built(Watched)
    assert len(calls) == 2
    assert alive == [1, 1]  # itself: the first is gone before the second comes


class TestModulesFromElsewhere:
    def test_the_callers_own_module_is_used_as_it_is(self) -> None:
        live: Any = holding(B=lambda: torch.randn(3))()
        found: Any = built(lambda: live)
        assert found.drawn - set(live.state_dict()) == set()
        assert torch.equal(found.model.B, live.B)

    def test_one_that_is_kept_from_the_first_call_cannot_be_compared(self) -> None:
        found = built(functools.cache(holding(B=lambda: torch.randn(3))))
        assert found.is_shared
        assert found.drawn == {"B"}

    def test_nor_one_that_came_with_an_import(self) -> None:
        existing = existing_modules()
        imported = holding(B=lambda: torch.randn(3))()
        found = build_twice(Builder(lambda: imported, {}, "net.py:build", existing))
        assert found.is_shared
        assert found.drawn == {"B"}

    def test_weights_alone_need_no_comparison(self) -> None:
        found = built(functools.cache(lambda: nn.Sequential(nn.Linear(2, 2))))
        assert not found.drawn


def test_objects_of_classes_without_a_hash_are_passed_over() -> None:
    class Meta(type):
        def __eq__(cls, other: object) -> bool:
            return cls is other

        __hash__ = None  # type: ignore[assignment]  # as where a class defines __eq__ alone

    alive = Meta("Odd", (), {})()
    network = nn.Linear(2, 2)
    assert any(one is network for one in existing_modules())
    del alive
