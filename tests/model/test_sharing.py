"""Second places of what checkpoints fill: followed where they are the same tensor, else refused."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from localrank_cli.errors import ModelError
from localrank_cli.model.build import move_model
from localrank_cli.model.fill import Expected, fill_model
from localrank_cli.model.sharing import Aliases
from tests.networks import build_module

CPU = torch.device("cpu")
Get = Callable[[Any], Any]


class Holder:
    __slots__ = ("w",)

    def __init__(self, w: Any) -> None:
        self.w = w


class Strange:
    """Its slot is empty, and asking for any attribute fails."""

    __slots__ = ("w",)

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


class Plain:
    def __init__(self, w: Any) -> None:
        self.w = w


class Shared(nn.Module):
    """A saved buffer and a parameter, with a second place `g`."""

    p: nn.Parameter
    w: Tensor
    g: Any

    def __init__(self, second: Callable[["Shared"], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.p = nn.Parameter(torch.ones(2, 2))
        self.register_buffer("w", torch.ones(2, 2))
        held = second(self)
        if isinstance(held, nn.UninitializedBuffer):
            self.register_buffer("g", self.w, persistent=False)
        else:
            self.g = held


def a_function(w: Tensor) -> Callable[[], Tensor]:
    return lambda: w


def with_default(w: Tensor) -> Callable[[], Tensor]:
    def default(held: Tensor = w) -> Tensor:
        return held

    return default


FOLLOWED: dict[str, tuple[Get, Get]] = {
    "attribute": (lambda m: m.w, lambda m: m.g),
    "list": (lambda m: [m.w], lambda m: m.g[0]),
    "dict in a tuple": (lambda m: ({"x": m.w},), lambda m: m.g[0]["x"]),
    "object": (lambda m: Plain(m.w), lambda m: m.g.w),
    "slot": (lambda m: Holder(m.w), lambda m: m.g.w),
    "object of torch": (lambda m: torch.distributions.Normal(m.w, 1.0), lambda m: m.g.loc),
    "closure": (lambda m: a_function(m.w), lambda m: m.g()),
    "buffer that is not saved": (lambda m: nn.UninitializedBuffer(), lambda m: m.g),
    "parameter": (lambda m: [m.p], lambda m: m.g[0]),
}
REFUSED: dict[str, tuple[Get, str]] = {
    "view": (lambda m: m.w[0], r"'g' is a view of the buffer 'w'"),
    "view in a list": (lambda m: [m.w[0]], r"'g\[0\]' is a view of the buffer 'w'"),
    "parameter's view": (lambda m: m.p.detach()[0], r"'g' is a view of the parameter 'p'"),
    "parameter's view in a list": (
        lambda m: [m.p[0].detach()],
        r"'g\[0\]' is a view of the parameter 'p'",
    ),
    "parameter's view in a dict": (lambda m: {"x": m.p.data}, r"a view of the parameter 'p'"),
    "view in an object": (lambda m: Plain(m.w.T), r"'g\.w' is a view of the buffer 'w'"),
    "view in a closure": (lambda m: a_function(m.w[1]), r"is a view of the buffer 'w'"),
    "view in a partial": (
        lambda m: functools.partial(torch.mul, m.w[1]),
        r"is a view of the buffer 'w'",
    ),
    "view in a distribution": (
        lambda m: torch.distributions.Normal(m.w[0], 1.0),
        r"'g\.loc' is a view of the buffer 'w'",
    ),
    "default argument": (lambda m: with_default(m.w), r"is the buffer 'w'"),
    "array": (lambda m: m.w.numpy(), r"'g' is a view of the buffer 'w'"),
    "the same in a tuple": (lambda m: (m.w,), r"'g\[0\]' is the buffer 'w'"),
}


def filled(model: nn.Module) -> Any:
    """The network in float64, with twos in its parameter and threes in its buffer."""
    expected = Expected(model)
    move_model(model, CPU, torch.float64)
    state = model.state_dict() | {"p": torch.full((2, 2), 2.0), "w": torch.full((2, 2), 3.0)}
    fill_model(model, expected, state, "step_1.pt")
    return model


@pytest.mark.parametrize("name", FOLLOWED)
def test_the_same_tensor_is_followed(name: str) -> None:
    second, get = FOLLOWED[name]
    model = filled(build_module(Shared, {"second": second}, "--model net.py:Net"))
    assert get(model) is (model.p if name == "parameter" else model.w)
    assert get(model).tolist() == [[2.0] * 2] * 2 if name == "parameter" else [[3.0] * 2] * 2


@pytest.mark.parametrize("name", REFUSED)
def test_a_view_is_refused(name: str) -> None:
    second, message = REFUSED[name]
    model = build_module(Shared, {"second": second}, "--model net.py:Net")
    with pytest.raises(ModelError, match=message) as caught:
        move_model(model, CPU, torch.float64)
    assert "property" in caught.value.advice


def test_the_advice_works() -> None:
    class Viewed(Shared):
        @property
        def row(self) -> Tensor:
            return self.w[0]

    model = filled(build_module(Viewed, {"second": lambda m: None}, "--model net.py:Net"))
    assert model.row.tolist() == [3, 3]


@pytest.mark.parametrize(
    "second",
    [
        lambda m: [m.w[0].clone()],
        lambda m: torch.arange(3.0).chunk(3),
        lambda m: torch.eye(2).to_sparse(),
        lambda m: [m],
        lambda m: Strange(),
    ],
)
def test_what_shares_nothing_is_left_alone(second: Callable[[Shared], Any]) -> None:
    filled(build_module(Shared, {"second": second}, "--model net.py:Net"))


def test_a_part_of_the_memory_that_no_weight_uses() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            first, self.rest = torch.arange(8.0).chunk(2)
            self.p = nn.Parameter(first)

    move_model(build_module(Halves, {}, "--model net.py:Net"), CPU, torch.float64)


def test_an_unsaved_buffer_that_is_a_view_of_a_saved_one_is_refused() -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            whole = torch.ones(2, 8)
            self.register_buffer("w", whole)
            self.register_buffer("g", whole[0], persistent=False)

    with pytest.raises(ModelError, match="'g' is a view of the buffer 'w'"):
        Aliases(Viewed())


TABLE: dict[str, Any] = {}


class Global(Shared):
    def begin(self) -> None:
        TABLE["w"] = self.w

    def forward(self, x: Tensor) -> Any:
        return x @ TABLE["w"]


class OnTheClass(Shared):
    kept: Any = None

    def begin(self) -> None:
        OnTheClass.kept = self.p.detach()[0]

    def forward(self, x: Tensor) -> Any:
        return x * OnTheClass.kept


def from_table() -> Any:
    return TABLE["w"]


class InAFunction(Global):
    def forward(self, x: Tensor) -> Any:
        return x @ from_table()


class InAnAttribute(Global):
    def begin(self) -> None:
        super().begin()
        self.get = from_table

    def forward(self, x: Tensor) -> Any:
        return x @ self.get()


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (InAFunction, r"forward\.from_table\.TABLE\['w'\].* is the buffer 'w'"),
        (InAnAttribute, r"from_table\.TABLE\['w'\].* is the buffer 'w'"),
        (Global, r"forward\.TABLE\['w'\].* is the buffer 'w'"),
        (OnTheClass, r"'forward\.OnTheClass\.kept' is a view of the parameter 'p'"),
    ],
)
def test_a_second_place_outside_the_network_is_refused(cls: Any, message: str) -> None:
    model = build_module(cls, {"second": cls.begin}, "--model net.py:Net")
    with pytest.raises(ModelError, match=message):
        move_model(model, CPU, torch.float64)
    TABLE.clear()
    OnTheClass.kept = None
