"""Outputs of chosen calls, as they were when the module gave them."""

import pytest
import torch
from torch import Tensor, nn

from localrank_cli.errors import LayerError
from localrank_cli.layers.capture import Call, Capture
from tests.cases import CASES, Case, params
from tests.naive import naive_outputs
from tests.networks import Net, ab, mlp
from tests.traces import unchanged


@pytest.mark.parametrize(("label", "call"), [
    ("fc", Call("fc")), ("fc#2", Call("fc", 2)), ("a.b.3", Call("a.b.3")), ("a#12", Call("a", 12)),
])  # fmt: skip
def test_labels_are_read_back(label: str, call: Call) -> None:
    assert call.label == label
    assert Call.parse(label) == call


@pytest.mark.parametrize("label", ["fc#", "#", "fc#x", "fc#0"])
def test_a_mark_without_a_number_belongs_to_the_name(label: str) -> None:
    assert Call.parse(label) == Call(label)


@pytest.mark.parametrize("case", params(case for case in CASES if not case.wrt))
def test_outputs_are_those_of_the_module(case: Case) -> None:
    model, points = case.build()
    expected = naive_outputs(model, points[0], case.layers)
    calls = [Call.parse(label) for label in expected]
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            found = Capture(model.eval(), calls)(points[:1])
    finally:
        torch.set_default_dtype(torch.float32)
    for tensor, values in zip(found, expected.values(), strict=True):
        assert tensor.flatten().tolist() == values.tolist()


def test_a_capture_is_not_overwritten_in_place() -> None:
    model = mlp(4, 6, 3, act=lambda: nn.ReLU(inplace=True))
    points = torch.randn(5, 4)
    first, _ = Capture(model, [Call("0"), Call("2")])(points)
    assert torch.equal(first, model[0](points))
    assert (first < 0).any()


def test_the_order_is_that_of_the_calls_asked_for() -> None:
    model, points = mlp(4, 6, 3), torch.randn(5, 4)
    first, second = Capture(model, [Call("2"), Call("0")])(points)
    assert (first.shape[1], second.shape[1]) == (3, 6)


def test_each_call_of_a_module_is_its_own() -> None:
    model = Net(lambda m, x: m["a"](torch.relu(m["a"](x))), a=nn.Linear(4, 4))
    points = torch.randn(3, 4)
    first, second = Capture(model, [Call("a"), Call("a", 2)])(points)
    assert torch.equal(first, model["a"](points))
    assert torch.equal(second, model["a"](torch.relu(first)))


def test_the_forward_pass_ends_at_the_last_wanted_call() -> None:
    seen: list[str] = []

    def run(net: Net, x: Tensor) -> Tensor:
        hidden: Tensor = net["a"](x)
        seen.append("after a")
        out: Tensor = net["b"](hidden)
        return out

    model = ab(run)
    Capture(model, [Call("a")])(torch.randn(2, 6))
    assert seen == []
    Capture(model, [Call("a"), Call("b")])(torch.randn(2, 6))
    assert seen == ["after a"]


def test_a_models_own_except_does_not_swallow_the_end() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        try:
            out: Tensor = net["b"](net["a"](x))
        except Exception:  # what the test is about
            return x
        return out

    (found,) = Capture(ab(run), [Call("b")])(torch.randn(2, 6))
    assert found.shape == (2, 4)


def test_the_varied_tensor_takes_the_place_of_the_output() -> None:
    model, points, varied = mlp(4, 6, 3), torch.randn(2, 4), torch.randn(2, 6)
    capture = Capture(model, [Call("0"), Call("2")], wrt=Call("0"))
    first, second = capture(points, varied)
    assert torch.equal(first, varied)
    assert torch.equal(second, model[2](torch.relu(varied)))
    own, _ = capture(points)
    assert torch.equal(own, model[0](points))


def test_in_place_operations_reach_neither_the_input_nor_the_varied_tensor() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        out: Tensor = net["b"](net["a"](x.mul_(2)).mul_(3))
        return out

    model, points, varied = ab(run), torch.randn(2, 6), torch.randn(2, 7)
    before = points.clone(), varied.clone()
    with unchanged(model, points):
        first = Capture(model, [Call("b")], wrt=Call("a"))(points, varied)
        second = Capture(model, [Call("b")], wrt=Call("a"))(points, varied)
    assert torch.equal(first[0], second[0])
    assert torch.equal(points, before[0])
    assert torch.equal(varied, before[1])


@pytest.mark.parametrize("number", [2, 3])
def test_a_call_that_does_not_happen(number: int) -> None:
    model, points = mlp(4, 6, 3), torch.randn(2, 4)
    with unchanged(model, points), pytest.raises(LayerError, match=f"'0#{number}' did not run"):
        Capture(model, [Call("0"), Call("0", number)])(points)


def test_no_hooks_stay_after_an_error() -> None:
    model, points = mlp(4, 6, 3), torch.randn(2, 5)
    with unchanged(model, points), pytest.raises(RuntimeError, match="shapes"):
        Capture(model, [Call("0"), Call("2")])(points)
