"""Networks that every route must get right, shared by all tests.

A case is a name, a seed and a lambda that gives (model, points). Models are float64 and in train
mode, as a user may leave them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from tests import forwards
from tests.functions import NumpyTanh, OldSquare, TwoFaced, apply
from tests.networks import (
    Net,
    Output,
    Residual,
    Wrapped,
    ab,
    channels_last,
    embedding,
    encoder,
    hooked,
    layer,
    low_rank,
    mlp,
    paired,
    partly_dead,
    phasor,
    repeat,
    settled,
    tied,
    turned,
    zero,
)

Sample = tuple[nn.Module, Tensor]


def only(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    """Return a tensor, as a kernel of one dtype would take it.

    Raises:
        TypeError: If it has another.
    """
    if tensor.dtype != dtype:
        raise TypeError(f"no kernel for {tensor.dtype}")
    return tensor


@dataclass(frozen=True)
class Case:
    """A model with points for it."""

    name: str
    make: Callable[[], Sample]
    seed: int = 0
    wrt: str = ""
    layers: tuple[str, ...] = ()  # exact names; none: the default
    low_precision: bool = False  # a part of the path is float32, and refuses float64
    has_derivative: bool = True  # False: the backward is not the derivative of the forward

    def build(self) -> Sample:
        """Makes the model and its points, always the same; the global RNG is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model, points = self.make()
        floating = points.is_floating_point()
        return model.double(), points.double() if floating else points


def in_first(cases: Iterable[Case], *ways: Any) -> list[Any]:
    """Return every case in every way, for `parametrize`: in the first but for `make test-long`."""
    return _product(cases, ways, lambda index: ways[:1])


def in_turn(cases: Iterable[Case], *ways: Any, one_in: int = 1, start: int = 0) -> list[Any]:
    """Return every case in every way, each case in one of them but for `make test-long`.

    The ways take turns, so that each of them meets cases of each kind. Of the cases only one in
    `one_in`, from `start` on, is kept: for what cases have in common.
    """

    def chosen(index: int) -> Sequence[Any]:
        turn, rest = divmod(index - start, one_in)
        return () if rest else (ways[turn % len(ways)],)

    return _product(cases, ways, chosen)


def _product(
    cases: Iterable[Case], ways: Sequence[Any], chosen: Callable[[int], Sequence[Any]]
) -> list[Any]:
    found = []
    for index, param in enumerate(params(cases)):
        for way in ways:
            marks = [*param.marks, *([] if way in chosen(index) else [pytest.mark.long])]
            values = way if isinstance(way, tuple) else (way,)
            name = "-".join(map(str, values))
            found.append(pytest.param(*param.values, *values, marks=marks, id=f"{param.id}-{name}"))
    return found


def params(cases: Iterable[Case], marks: dict[str, Any] | None = None) -> list[Any]:
    """Cases as pytest parameters.

    Args:
        cases: The cases.
        marks: Name -> mark, for those that need one.

    Returns:
        What `pytest.mark.parametrize` takes.
    """
    marks = marks or {}
    return [pytest.param(case, id=case.name, marks=marks.get(case.name, ())) for case in cases]


PLAIN: tuple[Case, ...] = (
    Case("linear", lambda: (nn.Sequential(layer(6, 5), layer(5, 7)), torch.randn(3, 6))),
    Case("relu_mlp", lambda: (mlp(8, 10, 9, 5), torch.randn(5, 8))),
    Case("tanh_mlp", lambda: (mlp(8, 6, 9, 5, act=nn.Tanh), torch.randn(4, 8))),
    Case("gelu_mlp", lambda: (mlp(8, 6, 9, 5, act=nn.GELU), torch.randn(4, 8))),
    Case("sigmoid_mlp", lambda: (mlp(8, 6, 9, 5, act=nn.Sigmoid), torch.randn(4, 8))),
    Case("no_bias", lambda: (mlp(8, 6, 5, bias=False), torch.randn(4, 8))),
    Case("wider_than_input", lambda: (mlp(4, 30, 12), torch.randn(4, 4))),
    Case("one_output", lambda: (mlp(5, 6, 1), torch.randn(4, 5))),
    Case("one_input", lambda: (mlp(1, 6, 3), torch.randn(4, 1))),
    Case("one_point", lambda: (mlp(5, 6, 3), torch.randn(1, 5))),
    Case("dead_units", lambda: (nn.Sequential(partly_dead(6, 9, 6), nn.ReLU(), layer(9, 5)),
                                torch.randn(4, 6))),
    Case("all_dead", lambda: (nn.Sequential(partly_dead(6, 4, 4), nn.ReLU(), layer(4, 5)),
                              torch.randn(3, 6))),
    Case("rank_deficient", lambda: (nn.Sequential(low_rank(9, 8, 3), nn.Tanh(), layer(9, 7)),
                                    torch.randn(4, 8))),
    Case("zero_layer", lambda: (nn.Sequential(layer(5, 6), nn.ReLU(), zero(6, 4), nn.ReLU(),
                                              layer(4, 3)), torch.randn(3, 5))),
    Case("leaky_softplus", lambda: (nn.Sequential(layer(5, 6), nn.LeakyReLU(0.2), layer(6, 6),
                                                  nn.Softplus(), layer(6, 4)), torch.randn(4, 5))),
)  # fmt: skip

IN_PLACE: tuple[Case, ...] = (
    Case("in_place_relu", lambda: (mlp(7, 12, 10, 4, act=lambda: nn.ReLU(inplace=True)),
                                   torch.randn(4, 7))),
    Case("in_place_input", lambda: (ab(forwards.in_place_input), torch.randn(4, 6))),
    Case("in_place_first_module", lambda: (nn.Sequential(nn.ELU(inplace=True), layer(6, 5)),
                                           torch.randn(4, 6))),
    Case("in_place_input_beside_wrt", lambda: (
        Net(forwards.in_place_input_beside, a=layer(5, 6), gate=layer(5, 6), b=layer(6, 4)),
        torch.randn(3, 5)), wrt="a"),
    Case("residual", lambda: (nn.Sequential(layer(6, 8), Residual(8, 3), Residual(8, 3)),
                              torch.randn(4, 6))),
    Case("input_skip", lambda: (Net(lambda m, x: m["c"](x + m["b"](torch.relu(m["a"](x)))),
                                    a=layer(9, 3), b=layer(3, 9), c=layer(9, 9)),
                                torch.randn(4, 9))),
)  # fmt: skip

REUSE: tuple[Case, ...] = (
    Case("called_twice", lambda: (
        Net(lambda m, x: m["b"](torch.tanh(m["a"](torch.relu(m["a"](x))))), a=layer(6, 6),
            b=layer(6, 4)), torch.randn(4, 6))),
    Case("same_module_in_a_chain", lambda: (repeat(layer(6, 6), nn.ReLU()), torch.randn(4, 6))),
    Case("tied_weights", lambda: (tied(), torch.randn(4, 6))),
    Case("weight_norm", lambda: (
        nn.Sequential(parametrizations.weight_norm(layer(6, 5)), nn.Tanh(),
                      parametrizations.spectral_norm(layer(5, 4))), torch.randn(4, 6))),
    Case("users_hook", lambda: (hooked(), torch.randn(4, 5))),
)  # fmt: skip

OUTPUTS: tuple[Case, ...] = (
    Case("tuple_output", lambda: (nn.Sequential(layer(5, 6), Wrapped(6, 4, lambda t: (t, t + 1))),
                                  torch.randn(3, 5)), layers=("0", "1", "1.inner")),
    Case("dict_output", lambda: (nn.Sequential(layer(5, 6), Wrapped(6, 4, lambda t: {"h": t * 2})),
                                 torch.randn(3, 5)), layers=("1",)),
    Case("nested_output", lambda: (
        nn.Sequential(layer(5, 6), Wrapped(6, 4, lambda t: (None, [7, {"h": t * 3}]))),
        torch.randn(3, 5)), layers=("1",)),
    Case("dataclass_output", lambda: (
        nn.Sequential(layer(5, 6), Wrapped(6, 4, lambda t: Output("h", t * 3, t))),
        torch.randn(3, 5)), layers=("1",)),
    Case("tuple_wrt", lambda: (
        Net(lambda m, x: m["b"](torch.relu(m["a"](x)[0])), a=Wrapped(5, 6, lambda t: (t, 1)),
            b=layer(6, 4)), torch.randn(3, 5)), wrt="a"),
)  # fmt: skip

LAYERS: tuple[Case, ...] = (
    Case("batchnorm_dropout", lambda: (
        settled(nn.Sequential(layer(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5),
                              layer(8, 5))), torch.randn(5, 6))),
    Case("conv1d", lambda: (
        nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(),
                      layer(9, 4)), torch.randn(4, 2, 6))),
    Case("conv2d", lambda: (
        settled(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3),
                              nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2),
                              nn.Dropout2d(), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                              layer(4, 3))), torch.randn(3, 2, 6, 6))),
    Case("conv2d_strided_grouped", lambda: (
        nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, groups=2), nn.GELU(),
                      channels_last(nn.Conv2d(4, 2, 1))),
        torch.randn(3, 4, 5, 5))),
    Case("conv_transpose2d", lambda: (
        nn.Sequential(layer(5, 8), nn.Unflatten(1, (2, 2, 2)),
                      nn.ConvTranspose2d(2, 3, 2, stride=2), nn.ReLU(), nn.AvgPool2d(2)),
        torch.randn(3, 5))),
    Case("conv3d", lambda: (nn.Sequential(nn.Conv3d(1, 2, 2), nn.Tanh()),
                            torch.randn(3, 1, 3, 2, 3))),
    Case("causal_attention", lambda: (
        Net(lambda m, x: m["b"](F.scaled_dot_product_attention(*3 * (m["a"](x),), is_causal=True)),
            a=layer(6, 6), b=layer(6, 4)), torch.randn(3, 3, 6))),
    Case("bilinear", lambda: (Net(lambda m, x: m["bi"](x, torch.tanh(m["a"](x))),
                                  a=layer(5, 4), bi=nn.Bilinear(5, 4, 6)), torch.randn(4, 5))),
    Case("norms", lambda: (
        nn.Sequential(layer(6, 8), nn.LayerNorm(8), nn.SiLU(), layer(8, 8), nn.GroupNorm(2, 8),
                      nn.Softmax(-1), layer(8, 5)), torch.randn(4, 6))),
    Case("checkpointed", lambda: (
        ab(lambda m, x: m["b"](checkpoint(lambda t: torch.tanh(m["a"](t)), x,
                                           use_reentrant=False))), torch.randn(3, 6))),
)  # fmt: skip

SEQUENCES: tuple[Case, ...] = (
    Case("embedding_wrt", lambda: (embedding(), torch.randint(11, (4, 3))), wrt="emb"),
    Case("hidden_wrt", lambda: (mlp(5, 6, 7, 4, act=nn.Tanh), torch.randn(4, 5)), wrt="2"),
    Case("encoder_batch_first", lambda: (encoder(True), torch.randn(3, 3, 8))),
    Case("encoder_norm_first", lambda: (encoder(True, True), torch.randn(3, 2, 8))),
    Case("encoder_sequence_first", lambda: (encoder(False), torch.randn(3, 2, 8))),
    Case("attention_batch_first", lambda: (
        Net(lambda m, x: forwards.attention(m, x, True), b=layer(6, 4),
            attention=nn.MultiheadAttention(6, 2, batch_first=True)), torch.randn(3, 3, 6)),
         layers=("attention", "b")),
    Case("attention_inside_sequence_first", lambda: (
        Net(lambda m, x: forwards.attention(m, x, False), b=layer(6, 4),
            attention=nn.MultiheadAttention(6, 2)), torch.randn(3, 3, 6)),
         layers=("attention", "b")),
    Case("lstm_batch_first", lambda: (
        Net(lambda m, x: forwards.recurrent(m, x, True), rnn=nn.LSTM(3, 5, batch_first=True),
            head=layer(5, 4)), torch.randn(4, 3, 3)), layers=("rnn", "head")),
    Case("lstm_both_ways", lambda: (
        Net(lambda m, x: m["head"](m["rnn"](x)[0]), head=layer(4, 3),
            rnn=nn.LSTM(3, 4, bidirectional=True, batch_first=True, proj_size=2)),
        torch.randn(3, 2, 3))),
    Case("lstm_inside_sequence_first", lambda: (
        Net(lambda m, x: forwards.recurrent(m, x, False), rnn=nn.LSTM(3, 5, 2), head=layer(5, 4)),
        torch.randn(4, 3, 3)), layers=("rnn", "head")),
    Case("lstm_over_points", lambda: (
        Net(lambda m, x: m["head"](m["rnn"](x)[0]), rnn=nn.LSTM(3, 5), head=layer(5, 4)),
        torch.randn(4, 2, 3))),
    Case("gru_batch_first", lambda: (
        Net(lambda m, x: forwards.recurrent(m, x, True), rnn=nn.GRU(3, 4, batch_first=True),
            head=layer(4, 4)), torch.randn(3, 3, 3)), layers=("rnn", "head")),
    Case("windows_of_points", lambda: (
        Net(lambda m, x: forwards.windows(m, x, True), a=layer(5, 4), b=layer(4, 3)),
        torch.randn(3, 4, 5))),
    Case("points_in_windows", lambda: (
        Net(lambda m, x: forwards.windows(m, x, False), a=layer(5, 4), b=layer(4, 3)),
        torch.randn(3, 4, 5))),
    Case("sequence_first_wrt_viewed", lambda: (
        Net(forwards.merged_view, a=layer(4, 6), b=layer(6, 5)), torch.randn(3, 2, 4)), wrt="a"),
)  # fmt: skip

AWKWARD: tuple[Case, ...] = (
    Case("data_dependent_if", lambda: (ab(forwards.choose), torch.randn(6, 6))),
    Case("no_grad_branch", lambda: (
        Net(forwards.no_grad_branch, a=layer(6, 5), aside=layer(6, 5), b=layer(5, 4)),
        torch.randn(4, 6))),
    Case("old_function", lambda: (ab(lambda m, x: m["b"](apply(OldSquare, m["a"](x)))),
                                  torch.randn(4, 6))),
    Case("numpy_function", lambda: (ab(lambda m, x: m["b"](apply(NumpyTanh, m["a"](x)))),
                                    torch.randn(4, 6))),
    Case("two_faced_function", lambda: (ab(lambda m, x: m["b"](apply(TwoFaced, m["a"](x)))),
                                        torch.randn(4, 6)), has_derivative=False),
    Case("straight_through", lambda: (ab(forwards.straight_through), torch.randn(4, 6)),
         has_derivative=False),
    Case("one_at_a_time", lambda: (ab(forwards.only_one), torch.randn(4, 6))),
    Case("subtracts_batch_mean", lambda: (
        ab(lambda m, x: m["b"](torch.tanh(m["a"](x - 0.5 * x.mean(0, keepdim=True))))),
        torch.randn(4, 6))),
    Case("mixes_without_a_trace", lambda: (  # equal values in a batch, another derivative
        ab(lambda m, x: m["b"](torch.tanh(m["a"](x + x.sum(0) - x.sum(0).detach())))),
        torch.randn(4, 6)), has_derivative=False),
    Case("batch_statistics", lambda: (
        nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3, track_running_stats=False), nn.SiLU(),
                      nn.Conv2d(3, 2, 2)), torch.randn(3, 2, 4, 4))),
    Case("constant_branch", lambda: (  # one of the calls does not know the batch
        ab(lambda m, x: m["b"](torch.tanh(m["a"](x)) + m["a"](torch.ones(1, 6)))),
        torch.randn(4, 6)), layers=("b",)),
    Case("written_into_zeros", lambda: (ab(forwards.written), torch.randn(4, 6))),
    Case("gradient_inside", lambda: (ab(forwards.energy, 6, 7, 4), torch.randn(3, 6))),
    Case("float32_inside", lambda: (
        ab(lambda m, x: m["b"](torch.tanh(only(torch.float32, m["a"](x).float())).double())),
        torch.randn(4, 6)),
         low_precision=True),
    Case("default_dtype_constants", lambda: (
        ab(lambda m, x: m["b"](torch.cat([torch.tanh(m["a"](x)) * torch.full((7,), 0.3),
                                           torch.zeros(x.shape[0], 0)], 1))), torch.randn(4, 6))),
    Case("scalar_output", lambda: (
        Net(lambda m, x: m["b"](m["a"](x[0])[None]).sum(),
            a=Wrapped(6, 5, lambda t: torch.tanh(t).sum()), b=nn.Identity()),
        torch.randn(3, 6)), layers=("a", "a.inner")),
)  # fmt: skip

COMPLEX: tuple[Case, ...] = (
    Case("complex_mlp", lambda: (
        Net(lambda m, x: m["c"](torch.view_as_real(m["b"](m["a"](paired(x)).tanh())).flatten(1)),
            a=phasor(3, 5), b=phasor(5, 4), c=layer(8, 6)), torch.randn(4, 6))),
    Case("complex_narrow", lambda: (  # fewer outputs than inputs, and all layers behind them
        Net(lambda m, x: m["b"](m["n"](m["a"](x.to(torch.cdouble)).abs())),
            a=phasor(16, 3), n=nn.LayerNorm(3), b=layer(3, 7)), torch.randn(4, 16))),
    Case("complex_on_the_way", lambda: (  # Linear layers with complex operations between them
        ab(lambda m, x: m["b"]((m["a"](x) * (1 + 2j)).exp().abs())), torch.randn(4, 6))),
    Case("complex_phases", lambda: (  # the derivative of the phase cancels in no modulus
        ab(lambda m, x: m["b"](torch.exp(1j * m["a"](x)).real)), torch.randn(4, 6))),
    Case("complex_wrt", lambda: (
        Net(lambda m, x: m["b"](torch.tanh(m["a"](paired(x)).conj())),
            a=phasor(3, 5), b=phasor(5, 4)), torch.randn(4, 6)), wrt="a"),
    Case("complex_conjugated", lambda: (
        Net(lambda m, x: m["b"](m["a"](x)), a=Wrapped(6, 4, lambda t: paired(t).conj()),
            b=phasor(2, 3)), torch.randn(3, 6)), layers=("a", "a.inner", "b")),
    Case("complex_rotary", lambda: (
        Net(lambda m, x: m["b"](turned(m["a"](x)) @ turned(m["a"](x)).mT @ x),
            a=layer(4, 4), b=layer(4, 3)), torch.randn(3, 3, 4))),
    Case("complex_spectral", lambda: (
        Net(lambda m, x: m["b"](torch.fft.irfft(m["a"](torch.fft.rfft(x)), n=6)),
            a=phasor(4, 4), b=layer(6, 5)), torch.randn(4, 6))),
    Case("complex_scalar", lambda: (
        Net(lambda m, x: m["b"](m["a"](x[0])), a=Wrapped(6, 4, lambda t: paired(t).sum()),
            b=nn.Identity()), torch.randn(3, 6)), layers=("a", "a.inner")),
    Case("complex64_inside", lambda: (
        Net(lambda m, x: m["b"](
            only(torch.cfloat, m["a"](x).to(torch.cfloat)).sin().abs().double()),
            a=layer(6, 5), b=layer(5, 4)), torch.randn(4, 6)), seed=1, low_precision=True),
)  # fmt: skip

CASES = PLAIN + IN_PLACE + REUSE + OUTPUTS + LAYERS + SEQUENCES + AWKWARD + COMPLEX
