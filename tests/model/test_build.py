import functools
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from localrank_cli.errors import ModelError
from localrank_cli.model.build import move_model
from tests.helpers import mlp
from tests.networks import build_module

NAME = "--model net.py:Net"


class Small(nn.Module):
    def __init__(self, width: int, bias: bool = True) -> None:
        super().__init__()
        self.layer = nn.Linear(2, width, bias=bias)


class Hostile(nn.Module):
    """All that breaks when a network is built on `meta` or only its parameters are moved."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("rotary", torch.tensor([0.5, 0.25]), persistent=False)
        self.plain = torch.tensor([3.0, 4.0])
        self.index = torch.tensor([1, 0])
        self.rate = torch.linspace(0, 1, 3)[1].item()

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.rotary, Tensor)
        out: Tensor = self.layer(x) * self.rotary * self.plain[self.index] * self.rate
        return out


def test_arguments_arrive() -> None:
    model = build_module(Small, {"width": 5, "bias": False}, NAME)
    assert isinstance(model, Small)
    assert model.layer.weight.shape == (5, 2)
    assert model.layer.bias is None


def test_frozen() -> None:
    model = build_module(lambda: nn.Sequential(nn.Linear(2, 2), nn.Dropout()), {}, NAME)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_random_states_are_left_as_found() -> None:
    def factory() -> nn.Module:
        torch.manual_seed(123)
        return nn.Linear(50, 50)

    before = torch.get_rng_state()
    build_module(factory, {}, NAME)
    assert torch.equal(torch.get_rng_state(), before)


def test_buffers_and_attributes_move_too() -> None:
    model = build_module(Hostile, {}, NAME)
    move_model(model, torch.device("cpu"), torch.float64)
    assert isinstance(model, Hostile)
    assert isinstance(model.layer, nn.Linear)
    assert model.plain.dtype == torch.float64
    assert model.plain.tolist() == [3, 4]
    assert model.index.dtype == torch.int64
    out = model(torch.ones(1, 2, dtype=torch.float64))
    assert out.dtype == torch.float64
    layer = model.layer(torch.ones(1, 2, dtype=torch.float64))
    expected = layer * torch.tensor([0.5 * 4 * 0.5, 0.25 * 3 * 0.5], dtype=torch.float64)
    assert torch.allclose(out, expected, rtol=1e-15, atol=0)


class Waves(nn.Module):
    """Complex tensors in every place that is moved."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1 + 2j]))
        self.register_buffer("saved", torch.tensor([3 + 4j]))
        self.register_buffer("table", torch.tensor([5 + 6j]), persistent=False)
        self.plain = torch.tensor([7 + 8j])
        self.real = torch.tensor([1.5])


class MovesItself(nn.Sequential):
    """Its own `to` moves what torch's does not."""

    def __init__(self) -> None:
        super().__init__(Waves())
        self.several = [torch.tensor([9 + 10j])]

    def to(self, *args: Any, **kwargs: Any) -> "MovesItself":
        self.several = [tensor.to(*args, **kwargs) for tensor in self.several]
        super().to(*args, **kwargs)
        return self


@pytest.mark.parametrize(
    ("dtype", "of_complex"),
    [(torch.float64, torch.complex128), (torch.float32, torch.complex64)],
)
def test_complex_tensors_keep_their_imaginary_part(
    dtype: torch.dtype, of_complex: torch.dtype
) -> None:
    built: Any = build_module(MovesItself, {}, NAME)
    move_model(built, torch.device("cpu"), dtype)
    model = built[0]
    tensors = [model.weight, model.saved, model.table, model.plain, *built.several]
    assert [tensor.item() for tensor in tensors] == [1 + 2j, 3 + 4j, 5 + 6j, 7 + 8j, 9 + 10j]
    assert {tensor.dtype for tensor in tensors} == {of_complex}
    assert model.real.dtype == dtype


@pytest.mark.parametrize(
    ("factory", "arguments", "message"),
    [
        (Small, {}, r"cannot be called with no arguments: missing a required argument: 'width'"),
        (Small, {"width": 3, "depth": 2}, "width=3, depth=2: got an unexpected keyword .*'depth'"),
        (Small, {"width": "wide"}, r"--model net\.py:Net failed: TypeError"),
        (Small, {"width": -1}, "failed: RuntimeError"),
        (nn.Linear(2, 2), {}, "is a module, not a class"),
        (3, {}, "is a int, not an nn.Module class"),
        (lambda: "net", {}, "returned a str, not an nn.Module"),
        (lambda: None, {}, "returned a NoneType"),
        (lambda: (nn.Linear(1, 1), 3), {}, "returned a tuple"),
        (lambda: nn.LazyLinear(3), {}, "weight belongs to a lazy module"),
        (lambda: nn.Linear(2, 2, device="meta"), {}, "weight is on the meta device"),
        (lambda: 1 / 0, {}, "failed: ZeroDivisionError: division by zero"),
        (lambda: exit(3), {}, "failed: SystemExit: 3"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_what_cannot_be_built(factory: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        build_module(factory, arguments, NAME)
    assert caught.value.what.startswith(NAME)
    assert caught.value.advice


def test_wanted_arguments_are_shown() -> None:
    with pytest.raises(ModelError) as caught:
        build_module(Small, {}, NAME)
    assert "width: int, bias: bool = True" in caught.value.advice
    assert "--model-arg NAME=VALUE" in caught.value.advice


def test_a_long_message_stays_one_line() -> None:
    def factory() -> nn.Module:
        raise ValueError("first line\nsecond line" + "x" * 1000)

    with pytest.raises(ModelError, match="first line second line") as caught:
        build_module(factory, {}, NAME)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


class TestAModuleThatWasThereBefore:
    """A user's own network is not what checkpoints are loaded into."""

    def test_is_copied(self) -> None:
        theirs = mlp(4, 3, 2)
        theirs.train()
        before = {key: value.clone() for key, value in theirs.state_dict().items()}
        ours = build_module(lambda: theirs, {}, NAME)
        move_model(ours, torch.device("cpu"), torch.float64)
        ours.load_state_dict(mlp(4, 3, 2, seed=1).double().state_dict())
        assert ours is not theirs
        assert theirs.training
        for key, value in theirs.state_dict().items():
            assert value.dtype == torch.float32
            assert torch.equal(value, before[key])
        assert all(parameter.requires_grad for parameter in theirs.parameters())

    def test_two_builds_share_nothing(self) -> None:
        factory = functools.cache(lambda: mlp(4, 3, 2))
        factory()
        first, second = (build_module(factory, {}, NAME) for _ in range(2))
        assert first is not second

    @pytest.mark.parametrize("where", ["class", "metaclass"])
    def test_one_that_a_class_gives_again_is_copied(self, where: str) -> None:
        class Again(type):
            def __call__(cls) -> Any:
                return given

        class OfMetaclass(nn.Linear, metaclass=Again):
            pass

        class OfClass(nn.Linear):
            def __new__(cls, *_: Any) -> Any:
                return given

        given = nn.Linear(2, 2)
        built: Any = build_module(OfClass if where == "class" else OfMetaclass, {}, NAME)
        assert built.model is not given

    def test_ties_are_kept_in_the_copy(self) -> None:
        theirs = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        theirs[1].weight = theirs[0].weight
        ours = build_module(lambda: theirs, {}, NAME)
        assert isinstance(ours, nn.Sequential)
        assert ours[0].weight is ours[1].weight

    def test_a_new_one_is_not_copied(self) -> None:
        made: list[nn.Module] = []

        def factory() -> nn.Module:
            made.append(mlp(4, 3, 2))
            return made[-1]

        assert build_module(factory, {}, NAME) is made[0]

    def test_one_whose_copy_would_look_back_is_refused(self) -> None:
        theirs = mlp(4, 3, 2)
        scale = theirs.get_parameter("0.weight")
        theirs[2].register_forward_hook(lambda module, args, out: out * scale.sum())
        with pytest.raises(ModelError, match="cannot be copied safely"):
            build_module(lambda: theirs, {}, NAME)

    def test_one_with_a_parameter_in_a_plain_attribute_stays_whole(self) -> None:
        theirs = mlp(4, 3, 2)
        theirs.__dict__["first"] = theirs[0].weight
        ours = build_module(lambda: theirs, {}, NAME)
        assert ours.__dict__["first"] is ours.get_parameter("0.weight")
        assert ours.__dict__["first"] is not theirs.get_parameter("0.weight")

    def test_one_that_cannot_be_copied_is_refused(self, tmp_path: Path) -> None:
        theirs = mlp(4, 3, 2)
        with (tmp_path / "log").open("w") as file:
            theirs.log = file  # type: ignore[assignment]  # what users do
            with pytest.raises(ModelError, match=r"cannot be copied \(TypeError"):
                build_module(lambda: theirs, {}, NAME)


def test_the_working_folder_is_left_as_found(tmp_path: Path) -> None:
    def factory() -> nn.Module:
        os.chdir(tmp_path)
        return nn.Linear(1, 1)

    before = Path.cwd()
    build_module(factory, {}, NAME)
    assert Path.cwd() == before


def test_other_generators_are_not_touched() -> None:
    states = random.getstate(), repr(np.random.get_state(legacy=False))
    build_module(Small, {"width": 3}, NAME)
    assert (random.getstate(), repr(np.random.get_state(legacy=False))) == states


@pytest.mark.parametrize("place", ["attribute", "list"])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_tensors_are_refused_and_their_parts_are_not(place: str) -> None:
    class Holding(nn.Module):
        def __init__(self, nested: bool) -> None:
            super().__init__()
            parts = [torch.ones(2), torch.ones(3)]
            held: Any = torch.nested.nested_tensor(parts) if nested else parts
            self.held = held if place == "attribute" else [held]
            self.layer = nn.Linear(2, 2)

    with pytest.raises(ModelError, match=r"held.* is a nested tensor"):
        build_module(Holding, {"nested": True}, NAME)
    assert isinstance(build_module(Holding, {"nested": False}, NAME), Holding)
