"""The user's model, flags and random numbers are left as they were found."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from localrank_cli.layers.setting import analysis_setting
from tests.asking import spectra_of
from tests.cases import CASES, Case
from tests.drawing import one_in
from tests.networks import Net, ab, mlp
from tests.traces import flags, unchanged

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


@pytest.mark.parametrize("case", one_in(2, CASES))
def test_every_case_is_left_as_found(case: Case) -> None:
    model, points = case.build()
    with unchanged(model, points):
        spectra_of(model, points, case.layers, case.wrt)


def test_a_mixed_state_is_left_as_found() -> None:
    model = nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 3)
    ).double()
    model[1].eval()
    model[0].requires_grad_(False)
    model[3].weight.requires_grad_(False)
    points = torch.randn(3, 4, dtype=torch.float64)
    model[3].bias.grad = torch.ones(3, dtype=torch.float64)
    with unchanged(model, points):
        spectra_of(model, points)
    assert model[3].bias.grad.tolist() == [1, 1, 1]


@pytest.mark.parametrize("turned", [True, False])
def test_switches_that_the_user_turned_stay_turned(turned: bool) -> None:
    model, points = mlp(4, 5, 3).double(), torch.randn(3, 4, dtype=torch.float64)
    before = flags()
    torch.backends.mha.set_fastpath_enabled(turned)
    torch.backends.cuda.enable_math_sdp(turned)
    torch.set_default_dtype(torch.float64 if turned else torch.float32)
    try:
        with unchanged(model, points):
            spectra_of(model, points)
    finally:
        torch.backends.mha.set_fastpath_enabled(before["fastpath"])
        torch.backends.cuda.enable_math_sdp(before["math"])
        torch.set_default_dtype(before["default dtype"])
    assert flags() == before


@pytest.mark.parametrize("where", ["survey", "later"])
def test_after_an_error(where: str) -> None:
    passes: list[int] = []

    def run(net: Net, x: Tensor) -> Tensor:
        passes.append(len(x))
        if where == "survey" or len(passes) > 3:
            raise KeyError("out of order")
        out: Tensor = net["b"](net["a"](x))
        return out

    model, points = ab(run).double(), torch.randn(3, 6, dtype=torch.float64)
    with unchanged(model, points), pytest.raises(Exception, match="out of order"):
        spectra_of(model, points)
    assert len(passes) == (1 if where == "survey" else 4)


def test_after_an_interrupt() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        raise KeyboardInterrupt

    model, points = ab(run).double(), torch.randn(3, 6, dtype=torch.float64)
    with unchanged(model, points), pytest.raises(KeyboardInterrupt):
        spectra_of(model, points)


def test_buffers_that_a_forward_pass_writes_to() -> None:
    class Averaging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 5)
            self.mean: Tensor
            self.last: Tensor
            self.register_buffer("mean", torch.zeros(5))
            self.register_buffer("last", torch.zeros(5), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            hidden: Tensor = self.a(x)
            self.mean.mul_(0.9).add_(hidden.detach().mean(0))
            self.last = hidden.detach()[0]
            return hidden

    model, points = Averaging().double(), torch.randn(3, 4, dtype=torch.float64)
    with unchanged(model, points):
        spectra_of(model, points)
    assert model.mean.tolist() == [0] * 5


def test_generators_of_numpy_and_python() -> None:
    model, points = mlp(4, 5, 3).double(), torch.randn(3, 4, dtype=torch.float64)
    before = random.getstate(), repr(np.random.get_state(legacy=False))
    spectra_of(model, points)
    after = random.getstate(), repr(np.random.get_state(legacy=False))
    assert after == before


def test_a_model_that_draws_numbers_leaves_the_generator_alone() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        out: Tensor = net["b"](net["a"](x) + 0 * torch.rand(1))
        return out

    model, points = ab(run).double(), torch.randn(3, 6, dtype=torch.float64)
    with unchanged(model, points):
        spectra_of(model, points)


def test_within() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).double()
    with analysis_setting(model, torch.float64):
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert torch.zeros(1).dtype == torch.float64
        assert torch.backends.cuda.math_sdp_enabled()
        assert not torch.backends.cuda.flash_sdp_enabled()
        assert not torch.backends.mha.get_fastpath_enabled()
        assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_tf32_is_off_within_and_as_before_after(precision: str) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with analysis_setting(nn.Linear(2, 2), torch.float32):
            # Before torch 2.9 there is only allow_tf32, which that function sets too.
            assert getattr(torch.backends.cuda.matmul, "fp32_precision", "ieee") == "ieee"
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
