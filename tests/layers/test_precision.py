"""float64 answers a network's requests for float32, where the result is the same network."""

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from localrank_cli.jacobian.engine import Modes
from localrank_cli.layers.capture import Call
from localrank_cli.layers.plain import choose_precision, survey_precisely
from localrank_cli.layers.precision import run_as_written
from localrank_cli.layers.setting import analysis_setting
from tests.asking import numbers, spectra_of
from tests.cases import only
from tests.naive import naive_jacobians, naive_spectra
from tests.networks import Net, ab

# Two ways to compute one number in float64; requests that reached float32 would show as 1e-8.
SAME = 1e-13
ROWS = torch.arange(7)

# What a network asks for, and the same without asking.
REQUESTS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "float": (lambda t: t.float(), lambda t: t),
    "to": (lambda t: t.to(torch.float32), lambda t: t),
    "to_dtype": (lambda t: t.to(dtype=torch.float32), lambda t: t),
    "to_and_back": (lambda t: t.to(torch.float32).sin().to(t.dtype), lambda t: t.sin()),
    "type": (lambda t: t.type(torch.float32), lambda t: t),
    "type_by_name": (lambda t: t.type("torch.FloatTensor"), lambda t: t),
    "softmax": (lambda t: t.softmax(1, dtype=torch.float32), lambda t: t.softmax(1)),
    "functional_softmax": (
        lambda t: functional.softmax(t, 1, dtype=torch.float32), lambda t: t.softmax(1)),
    "mean": (lambda t: t * t.mean(1, True, dtype=torch.float32), lambda t: t * t.mean(1, True)),
    "norm_in_float32": (
        lambda t: (t.float() * torch.rsqrt(t.float().pow(2).mean(1, True) + 1e-6)).type_as(t),
        lambda t: t * torch.rsqrt(t.pow(2).mean(1, True) + 1e-6)),
    "integers_in_float32": (lambda t: t * ROWS.float().sin(), lambda t: t * ROWS.double().sin()),
    "made_in_float32": (
        lambda t: t * torch.arange(7, dtype=torch.float32).sin(),
        lambda t: t * torch.arange(7, dtype=torch.float64).sin()),
    "drawn_in_float32": (
        lambda t: t * torch.rand(7, dtype=torch.float32, generator=torch.manual_seed(1)),
        lambda t: t * torch.rand(7, dtype=torch.float32, generator=torch.manual_seed(1)).double()),
    "complex64": (
        lambda t: t.to(torch.complex64).sin().real, lambda t: t.to(torch.complex128).sin().real),
    "mask_in_float32": (  # 0 times what overflows in float32: NaN as written, in float64
        lambda t: t + (1 - torch.ones(7, dtype=torch.float32)) * torch.finfo(t.dtype).min,
        lambda t: t),
    "product_with_float32": (
        lambda t: t @ torch.ones(7, 7, dtype=torch.float32).tril(),
        lambda t: t @ torch.ones(7, 7, dtype=torch.float64).tril()),
}  # fmt: skip


def network(part: Callable[[Tensor], Tensor]) -> Net:
    torch.manual_seed(3)
    return ab(lambda m, x: m["b"](part(m["a"](x)).to(x.dtype))).double()


def points() -> Tensor:
    return torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


@pytest.mark.cover(1)
@pytest.mark.parametrize("modes", [Modes, lambda: Modes(forward=False)], ids=["any", "reverse"])
@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_for_float32_gives_float64(name: str, modes: Callable[[], Modes]) -> None:
    asking, plain = REQUESTS[name]
    found = spectra_of(network(asking), points(), modes=modes())
    truth = naive_spectra(naive_jacobians(network(plain), points()))
    assert list(found) == list(truth) == ["a", "b"]
    for label, spectrum in found.items():
        assert spectrum.method == "exact"
        assert np.abs(numbers(spectrum) - truth[label]).max() <= SAME * truth[label].max()


def surveyed(model: nn.Module) -> tuple[bool, str]:
    seen, reason = survey_precisely(model, points()[:1], None, torch.float64)
    return seen.has_low_precision, reason


def refuses(t: Tensor) -> Tensor:
    return only(torch.float32, t.float())


def otherwise(t: Tensor) -> Tensor:
    return t.float() * (1 if t.float().dtype == torch.float32 else 2)


@pytest.mark.parametrize(
    ("part", "reason"),
    [(refuses, "no kernel for torch.float64"), (otherwise, "the output of b differs")],
)
def test_a_network_that_needs_float32_runs_as_written(
    part: Callable[[Tensor], Tensor], reason: str
) -> None:
    model = network(part)
    low, why = surveyed(model)
    assert low
    assert reason in why
    (spectrum, last) = spectra_of(model, points()).values()
    assert (spectrum.method, last.method) == ("exact(float32)", "exact(float32)")
    truth = naive_spectra(naive_jacobians(model, points()))["b"]
    # As written, one of its factors is rounded to 6e-8.
    assert np.abs(numbers(last) - truth).max() <= 1e-6 * truth.max()


def test_each_checkpoint_is_decided_anew() -> None:
    model = network(refuses)
    assert surveyed(model)[0]
    model._run = lambda m, x: m["b"](m["a"](x).float().to(x.dtype))  # as if at another checkpoint
    assert surveyed(model) == (False, "")


def test_a_network_without_requests_is_not_compared() -> None:
    passes: list[int] = []

    def run(m: Net, x: Tensor) -> Tensor:
        passes.append(len(x))
        return m["b"](m["a"](x))

    assert surveyed(ab(run).double()) == (False, "")
    assert passes == [1, 1]  # once to be surveyed, once to choose


@pytest.mark.parametrize(
    ("part", "low"),
    [
        (lambda t: t + torch.ones(7, dtype=torch.float16).sin(), False),
        (lambda t: t.half().double(), True),
        (lambda t: torch.zeros(1, 7, dtype=torch.float16).copy_(t).double(), True),
        (lambda t: written_in_part(t).double(), True),
        (lambda t: torch.cat([t[:, :3], t[:, 3:].bfloat16()], 1), True),
        (lambda t: t + t.detach().half().double(), True),
    ],
)
def test_only_what_comes_from_the_input_rounds_the_jacobian(
    part: Callable[[Tensor], Tensor], low: bool
) -> None:
    assert surveyed(network(part)) == (low, "")


def written_in_part(t: Tensor) -> Tensor:
    out = torch.zeros(1, 7, dtype=torch.float16)
    out[:, :3] = t[:, :3]
    return out.sin()


class _Rounded(torch.autograd.Function):
    """The identity, whose derivative is computed in half precision."""

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        return t.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].half().double()


def _rounded(t: Tensor) -> Tensor:
    out: Tensor = _Rounded.apply(t)
    return out


def test_a_derivative_of_lower_precision_is_seen() -> None:
    assert surveyed(network(_rounded)) == (True, "")


def test_a_derivative_of_lower_precision_is_seen_beside_the_last_output() -> None:
    model = Net(
        lambda m, x: m["b"](_rounded(m["a"](x))) is not None and m["c"](x),
        a=nn.Linear(6, 7), b=nn.Linear(7, 4), c=nn.Linear(6, 2),
    ).double()  # fmt: skip
    assert surveyed(model) == (True, "")


def test_what_is_recomputed_asks_too() -> None:
    asking = network(lambda t: checkpoint(lambda z: z.float().sin(), t, use_reentrant=False))
    found = spectra_of(asking, points(), modes=Modes(forward=False))["b"]
    truth = naive_spectra(naive_jacobians(network(torch.sin), points()))["b"]
    assert found.method == "exact"
    assert np.abs(numbers(found) - truth).max() <= SAME * truth.max()


def _asking(t: Tensor) -> Tensor:
    return t.to(torch.float32).sin()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_a_compiled_graph_that_asks_is_seen() -> None:
    assert surveyed(network(torch.jit.script(_asking)))[0]


def otherwise_backward(t: Tensor) -> Tensor:
    return t.float().detach() if t.float().dtype == torch.float32 else t


def test_equal_values_with_another_gradient_are_distinguished() -> None:
    _, why = surveyed(network(lambda t: t + otherwise_backward(t)))
    assert "the gradient differs" in why


def test_every_point_is_compared() -> None:
    def part(t: Tensor) -> Tensor:
        return otherwise(t) if float(t.detach().sum()) > 100 else t.float()

    model = network(part)
    calls = [Call("a"), Call("b")]
    few = torch.cat([points(), 1000 * torch.ones(1, 6, dtype=torch.float64)])
    with torch.no_grad():
        model["a"].weight.abs_()
    assert choose_precision(model, few[:3], calls, None, torch.float64) == ""
    assert "the output of b differs" in choose_precision(model, few, calls, None, torch.float64)


def test_bits_are_not_converted() -> None:
    model = network(lambda t: t)
    with analysis_setting(model, torch.float64):
        assert torch.ones(2, dtype=torch.int32).view(torch.float32).dtype == torch.float32
        assert torch.ones(2, dtype=torch.int32).to(torch.int64).dtype == torch.int64
        assert torch.promote_types(torch.float32, torch.int8) == torch.float32
    assert torch.ones(2).float().dtype == torch.float32


def test_float32_stays_where_it_is_the_dtype() -> None:
    model = network(lambda t: t).float()
    with analysis_setting(model, torch.float32):
        assert torch.ones(2).float().dtype == torch.float32


def test_a_network_is_not_kept_for_the_decision() -> None:
    model = network(refuses)
    run_as_written(model)
    gone = weakref.ref(model)
    del model
    assert gone() is None
