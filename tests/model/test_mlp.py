import pytest
import torch
from torch import Tensor, nn

from localrank_cli.errors import ModelError
from localrank_cli.model.mlp import ACTIVATIONS, InferredMlp, MlpLayout, infer_mlp
from tests.helpers import mlp

Shapes = dict[str, tuple[int, ...]]


def layers(**sizes: tuple[int, int]) -> Shapes:
    """Weights and biases of layers given as name=(n_in, n_out)."""
    shapes: Shapes = {}
    for name, (n_in, n_out) in sizes.items():
        shapes[f"{name.lstrip('_')}.weight"] = (n_out, n_in)
        shapes[f"{name.lstrip('_')}.bias"] = (n_out,)
    return shapes


@pytest.mark.parametrize(
    ("shapes", "names", "widths"),
    [
        (layers(_0=(5, 4), _2=(4, 3)), ("0", "2"), (5, 4, 3)),
        (layers(_10=(4, 3), _2=(4, 4), _0=(4, 4)), ("0", "2", "10"), (4, 4, 4, 3)),
        (layers(fc2=(4, 4), fc10=(4, 4), fc1=(4, 4)), ("fc1", "fc2", "fc10"), (4, 4, 4, 4)),
        (layers(decoder=(3, 5), encoder=(5, 3)), None, None),  # a loop: two orders
        (layers(head=(4, 2), body=(5, 4)), ("body", "head"), (5, 4, 2)),
        (layers(only=(5, 4)), ("only",), (5, 4)),
        ({"net.layers.0.weight": (4, 5)}, ("net.layers.0",), (5, 4)),
        (
            layers(input=(6, 5), h1=(5, 5), h2=(5, 5), out=(5, 2)),
            ("input", "h1", "h2", "out"),
            None,
        ),
    ],
)
def test_order(
    shapes: Shapes, names: tuple[str, ...] | None, widths: tuple[int, ...] | None
) -> None:
    if names is None:
        with pytest.raises(ModelError, match="not certain"):
            infer_mlp(shapes, in_order=False)
        return
    layout = infer_mlp(shapes, in_order=False)
    assert layout.names == names
    assert widths is None or layout.widths == widths


def test_biases_may_be_missing() -> None:
    layout = infer_mlp({"0.weight": (4, 5), "0.bias": (4,), "2.weight": (3, 4)}, in_order=False)
    assert layout == MlpLayout(("0", "2"), (5, 4, 3), (True, False))
    assert layout.description == "5-4-3"
    assert InferredMlp(layout, "relu").get_submodule("2").bias is None


def test_an_uncertain_order_is_an_error() -> None:
    shapes = layers(up=(4, 4), down=(4, 4))
    with pytest.raises(ModelError, match="up -> down and as down -> up") as caught:
        infer_mlp(shapes, in_order=False)
    assert "--model" in caught.value.advice


def test_a_file_in_order_of_definition_decides() -> None:
    assert infer_mlp(layers(up=(4, 4), down=(4, 4)), in_order=True).names == ("up", "down")
    assert infer_mlp(layers(down=(4, 4), up=(4, 4)), in_order=True).names == ("down", "up")
    with pytest.raises(ModelError, match="not certain"):  # defined in an order that does not fit
        infer_mlp(layers(a=(4, 4), out=(3, 2), b=(4, 3), c=(4, 4)), in_order=True)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({}, "there are none"),
        (layers(_0=(5, 4), _2=(3, 2)), r"do not form one chain \(0: 5 -> 4, 2: 3 -> 2\)"),
        (layers(fc1=(4, 3), fc2=(5, 4)), "do not form one chain"),
        ({"0.weight": (4, 3, 3, 3)}, r"there is 0\.weight \[4, 3, 3, 3\]"),
        ({"0.weight": (4,), "0.bias": (4,)}, r"0\.weight \[4\]"),
        ({"weight": (4, 5), "bias": (4,)}, r"weight \[4, 5\], bias \[4\]"),
        (layers(_0=(5, 4)) | {"1.running_mean": (4,)}, r"1\.running_mean \[4\]"),
        (layers(_0=(5, 4)) | {"scale": ()}, r"scale \[\]"),
        ({"0.weight": (4, 5), "0.bias": (3,)}, r"0\.bias \[3\]"),
        ({"0.weight": (4, 5), "1.bias": (4,)}, r"1\.bias \[4\]"),
        (layers(**{"a": (4, 4), "a.b": (4, 4)}), r"a\.b\.weight inside another layer"),
        ({f"n{i}.gain": (i,) for i in range(9)}, r"n3\.gain \[3\] and 5 more"),
    ],
)
def test_weights_that_are_not_a_plain_mlp(shapes: Shapes, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        infer_mlp(shapes, in_order=True)
    assert "--model path/to/file.py:name" in caught.value.advice


@pytest.mark.parametrize("name", ["forward", "training", "a.", "eval.x", "_act", "named_children"])
def test_names_that_no_module_can_have(name: str) -> None:
    layout = infer_mlp({f"{name}.weight": (4, 5)}, in_order=False)
    with pytest.raises(ModelError, match="no module can be named"):
        InferredMlp(layout, "relu")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_network_is_the_one_that_was_saved(activation: str) -> None:
    theirs = nn.Sequential(
        nn.Linear(5, 4), ACTIVATIONS[activation](), nn.Linear(4, 3), ACTIVATIONS[activation](),
        nn.Linear(3, 2),
    ).double()  # fmt: skip
    shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    ours = InferredMlp(infer_mlp(shapes, in_order=True), activation).double()
    ours.load_state_dict(theirs.state_dict())
    points = torch.linspace(-2, 2, 30, dtype=torch.float64).reshape(6, 5)
    assert torch.equal(ours(points), theirs(points))


def test_nested_names() -> None:
    layout = infer_mlp({"net.layers.0.weight": (4, 5), "net.head.weight": (2, 4)}, in_order=False)
    model = InferredMlp(layout, "relu")
    assert sorted(model.state_dict()) == [
        "net.head.bias" if bias else key
        for key, bias in (("net.head.weight", False), ("net.layers.0.weight", False))
    ]
    assert model(torch.ones(3, 5)).shape == (3, 2)


@pytest.mark.parametrize("shape", [(3, 2, 2), (3, 4), (3, 1, 4, 1)])
def test_points_are_flattened(shape: tuple[int, ...]) -> None:
    theirs = mlp(4, 3, 2)
    shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    ours = InferredMlp(infer_mlp(shapes, in_order=True), "relu")
    ours.load_state_dict(theirs.state_dict())
    points = torch.rand(shape)
    assert torch.equal(ours(points), theirs(points.reshape(3, 4)))


@pytest.mark.parametrize("points", [torch.ones(3, 5), torch.ones(3, 2, 3), torch.ones(4)])
def test_points_of_another_size(points: Tensor) -> None:
    model = InferredMlp(MlpLayout(("0",), (4, 2), (True,)), "relu")
    with pytest.raises(ModelError, match=r"the first layer '0' takes 4") as caught:
        model(points)
    assert f"{points[0].numel()} values each" in caught.value.what
    assert "--data" in caught.value.advice
