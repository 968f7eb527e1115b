"""Convolutions of float64 on a CPU equal torch's own, and so do all their derivatives."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacfwd, jacrev, jvp, vmap
from torch.nn import functional

from localrank_cli.layers import convolution
from localrank_cli.layers.convolution import fast_convolutions
from localrank_cli.layers.setting import analysis_setting
from tests.drawing import one_in

pytestmark = pytest.mark.filterwarnings(
    "ignore:Using padding='same':UserWarning", "ignore:There is a performance drop:UserWarning"
)

# Sums of up to 3 * 3 * 6 products of numbers of size 1 in another order: some ulps of the sum.
CLOSE = 1e-13

# dims, channels in and out, kernel, map, arguments
CASES: dict[str, tuple[int, int, int, Any, Any, dict[str, Any]]] = {
    "1x1": (2, 4, 6, (1, 1), (3, 3), {}),
    "1x1 with a step": (2, 4, 6, (1, 1), (5, 4), {"stride": 2}),
    "1x1 with padding": (2, 4, 6, (1, 1), (3, 3), {"padding": 1}),
    "3x3": (2, 3, 4, (3, 3), (5, 6), {"padding": 1}),
    "3x3 on a large map": (2, 3, 4, (3, 3), (13, 12), {"padding": 1}),
    "more padding than kernel": (2, 3, 4, (2, 3), (4, 3), {"padding": (3, 4)}),
    "steps that miss the last column": (2, 3, 4, (3, 3), (6, 7), {"stride": (2, 3)}),
    "a step beyond the kernel": (2, 3, 4, (2, 1), (9, 7), {"stride": 4, "padding": 1}),
    "dilation": (2, 3, 4, (3, 2), (8, 7), {"dilation": (2, 3), "padding": (2, 1)}),
    "stem": (2, 2, 2, (7, 7), (15, 13), {"stride": 2, "padding": 3}),
    "groups": (2, 4, 6, (3, 3), (5, 5), {"groups": 2, "padding": 1}),
    "depthwise": (2, 4, 4, (3, 3), (5, 5), {"groups": 4, "padding": 1}),
    "same": (2, 3, 4, (3, 5), (5, 6), {"padding": "same"}),
    "same, even kernel": (2, 3, 4, (2, 4), (5, 6), {"padding": "same"}),
    "valid": (2, 3, 4, (3, 3), (5, 6), {"padding": "valid"}),
    "1d": (1, 3, 4, (3,), (9,), {"padding": 2, "stride": 2}),
    "1d, long": (1, 3, 4, (5,), (200,), {"padding": (2,), "stride": (1,)}),
    "3d": (3, 2, 3, (3, 2, 3), (4, 5, 4), {"padding": (1, 0, 1), "stride": (1, 2, 1)}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "_FEWEST_PRODUCTS", 0)


def _case(name: str, batch: int = 3) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    dims, n_in, n_out, kernel, maps, arguments = CASES[name]
    torch.manual_seed(0)
    weight = torch.randn(n_out, n_in // arguments.get("groups", 1), *kernel, dtype=torch.float64)
    bias = torch.randn(n_out, dtype=torch.float64)
    inputs = torch.randn(batch, n_in, *maps, dtype=torch.float64)

    def run(x: Tensor) -> Tensor:
        output: Tensor = getattr(functional, f"conv{dims}d")(x, weight, bias, **arguments)
        return output

    return run, inputs


def _both(compute: Callable[[], Tensor]) -> None:
    expected = compute()
    with fast_convolutions():
        found = compute()
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= CLOSE * max(1.0, expected.abs().max().item())


def _positions(shape: torch.Size) -> Tensor:
    """Cotangents or tangents, each at one position of the maps of all samples; and a zero."""
    size = shape[2:].numel()
    torch.manual_seed(1)
    rows = torch.randn(size + 1, *shape[:2], size, dtype=torch.float64)
    mask = torch.cat([torch.eye(size, dtype=torch.float64), torch.zeros(1, size)])
    return (rows * mask[:, None, None]).reshape(size + 1, *shape)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch", [1, 3])
def test_outputs_equal_torchs(name: str, batch: int) -> None:
    run, inputs = _case(name, batch)
    _both(lambda: run(inputs))
    _both(lambda: run(inputs.transpose(0, 1).contiguous().transpose(0, 1)))


@pytest.mark.parametrize("name", CASES)
def test_jacobians_equal_torchs(name: str) -> None:
    run, inputs = _case(name, batch=2)
    _both(lambda: jacrev(run)(inputs))
    _both(lambda: jacfwd(run)(inputs))
    _both(lambda: vmap(jacrev(lambda x: run(x[None])))(inputs))
    _both(lambda: vmap(jacfwd(lambda x: run(x[None])))(inputs))


@pytest.mark.parametrize("name", one_in(2, CASES))
def test_single_positions_are_pulled_back_and_pushed_forward_as_torch_does(name: str) -> None:
    run, inputs = _case(name)

    def pulled() -> Tensor:
        varied = inputs.clone().requires_grad_(True)
        output = run(varied)
        rows = _positions(output.shape)
        one_by_one = [torch.autograd.grad(output, varied, r, retain_graph=True)[0] for r in rows]
        (at_once,) = torch.autograd.grad(output, varied, rows, is_grads_batched=True)
        torch.testing.assert_close(at_once, torch.stack(one_by_one))
        return at_once

    _both(pulled)
    tangents = _positions(inputs.shape)
    _both(lambda: vmap(lambda v: jvp(run, (inputs,), (v,))[1])(tangents))
    _both(lambda: torch.stack([jvp(run, (inputs,), (v,))[1] for v in tangents]))


def test_shares_of_a_batch_make_up_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "_UNFOLDED", 1)
    for name in ("3x3 on a large map", "groups", "stem"):
        run, inputs = _case(name)
        _both(partial(run, inputs))
        _both(partial(jacrev(run), inputs))


def test_second_derivatives_equal_torchs() -> None:
    run, inputs = _case("3x3", batch=2)
    _both(lambda: jacrev(jacrev(lambda x: run(x).sin().sum()))(inputs))
    _both(lambda: jacfwd(jacrev(lambda x: run(x).sin().sum()))(inputs))


def test_a_weight_that_is_differentiated_is_left_to_torch() -> None:
    torch.manual_seed(0)
    inputs, weight = torch.randn(2, 3, 5, 5).double(), torch.randn(4, 3, 3, 3).double()

    def run(w: Tensor) -> Tensor:
        return functional.conv2d(inputs, w)

    _both(lambda: jacrev(run)(weight))
    _both(lambda: jacfwd(run)(weight))
    _both(lambda: vmap(run)(torch.stack([weight, 2 * weight])))
    _both(lambda: torch.autograd.grad(run(weight.requires_grad_()).sum(), weight)[0])


def test_an_output_may_be_changed_in_place() -> None:
    for name in ("1x1", "3x3", "3x3 on a large map"):
        run, inputs = _case(name)

        def pulled(run: Any = run, inputs: Tensor = inputs) -> Tensor:
            varied = inputs.clone().requires_grad_(True)
            output = run(varied).add_(1).relu_()
            return torch.autograd.grad(output.sum(), varied)[0]

        _both(pulled)


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect"])
def test_modules_of_torch_run_so_within_an_analysis_and_not_after(mode: Any) -> None:
    before = functional.conv2d
    model = nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode).double()
    inputs = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    expected = model(inputs)
    with analysis_setting(model, torch.float64):
        node = model(inputs.clone().requires_grad_(True)).grad_fn
        assert convolution.is_convolution_node(node)
        torch.testing.assert_close(model(inputs), expected, rtol=CLOSE, atol=CLOSE)
    assert functional.conv2d is before


@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 5, 6, 6), "channels"), ((2, 3, 2, 2), "Kernel size can't be greater")],
)
def test_what_torch_refuses_is_refused_in_its_words(shape: Any, message: str) -> None:
    with fast_convolutions(), pytest.raises(RuntimeError, match=message):
        functional.conv2d(torch.ones(shape).double(), torch.ones(4, 3, 3, 3).double())
