"""Random small networks, with all that goes wrong in real ones, by every route."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from localrank_cli.jacobian.engine import Modes
from localrank_cli.measures.layer import LayerMeasures, measure
from localrank_cli.measures.table import demand_of
from localrank_cli.spectrum.layer import LayerSpectrum
from localrank_cli.spectrum.tolerance import Tolerance
from tests.asking import PLENTY, spectra_of
from tests.drawing import drawn
from tests.naive import naive_jacobians, naive_spectra

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "leaky": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "relu6": nn.ReLU6,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "none": nn.Identity,
}
WEIGHTS = (
    "plain",
    "zero",
    "one direction",
    "rows repeated",
    "graded",
    "dead",
    "tiny",
    "nan",
    "inf",
)
TOLERANCES = (
    Tolerance(atol=0.01),
    Tolerance(atol=0.1),
    Tolerance(rtol=1e-3),
    Tolerance(rtol=None),
    Tolerance(rtol=1e-6),
)

layers = st.lists(
    st.tuples(
        st.sampled_from([1, 2, 3, 8, 20, 33]),  # width: also wider than the input
        st.sampled_from((*("plain",) * 6, *WEIGHTS)),
        st.sampled_from(sorted(ACTIVATIONS)),
        st.booleans(),  # bias
        st.booleans(),  # BatchNorm
        st.booleans(),  # Dropout
    ),
    min_size=1,
    max_size=4,
)


@torch.no_grad()
def spoil(layer: nn.Linear, how: str) -> None:
    """Makes a weight as it should not be.

    Args:
        layer: Changed in place.
        how: One of WEIGHTS.
    """
    weight = layer.weight
    if how == "zero":
        weight.zero_()
    elif how == "one direction":
        weight.copy_(torch.randn(weight.shape[0], 1) @ torch.randn(1, weight.shape[1]))
    elif how == "rows repeated":
        weight[:] = weight[:1].clone()
    elif how == "graded":
        weight.mul_(torch.logspace(0, -9, weight.shape[0]).unsqueeze(1))
    elif how == "dead" and layer.bias is not None:
        layer.bias.fill_(-100)
    elif how == "tiny":
        weight.mul_(1e-60)
    elif how in {"nan", "inf"}:
        weight[0, 0] = float(how)


def network(n_in: int, specs: list[tuple[int, str, str, bool, bool, bool]]) -> nn.Sequential:
    """Builds one.

    Args:
        n_in: Width of the input.
        specs: Of each layer.

    Returns:
        The network, float64, in eval mode.
    """
    modules: list[nn.Module] = []
    widths = [n_in, *(spec[0] for spec in specs)]
    for (before, after), (_, how, act, bias, norm, dropout) in zip(
        pairwise(widths), specs, strict=True
    ):
        layer = nn.Linear(before, after, bias=bias)
        spoil(layer, how)
        modules.append(layer)
        if norm:
            batchnorm = nn.BatchNorm1d(after)
            assert batchnorm.running_mean is not None
            assert batchnorm.running_var is not None
            batchnorm.running_mean.normal_()
            batchnorm.running_var.uniform_(0.5, 2)
            modules.append(batchnorm)
        if dropout:
            modules.append(nn.Dropout())
        modules.append(ACTIVATIONS[act]())
    return nn.Sequential(*modules).double().eval()


def measures(
    model: nn.Module, points: Tensor, modes: Modes, *, memory: int = PLENTY, certify: bool = True
) -> dict[str, LayerMeasures]:
    demand = demand_of(TOLERANCES if certify else None)
    found = spectra_of(model, points, memory=memory, modes=modes, demand=demand)
    return {label: measure(spectrum, TOLERANCES, 1.0) for label, spectrum in found.items()}


def assert_same(found: dict[str, LayerMeasures], expected: dict[str, LayerMeasures]) -> None:
    assert list(found) == list(expected)
    for label, one in found.items():
        other = expected[label]
        assert one.n_failed == other.n_failed, label
        for ranks, truth in zip(one.ranks, other.ranks, strict=True):
            # An undecided count is whatever the SVD of that route's own matrix gives.
            if truth.n_undecided == 0 == ranks.n_undecided:
                assert ranks == truth, label
        for name, mean in one.soft.items():
            theirs = other.soft[name].mean
            if mean.mean is None or theirs is None:
                assert mean.mean == theirs
            else:
                # The contract: 1e-6, relative.
                assert abs(mean.mean - theirs) <= 1e-6 * abs(theirs), (label, name)


@pytest.mark.long  # each route on fixed networks: test_routes, test_naive
@settings(max_examples=60)
@given(st.sampled_from([1, 3, 8, 20]), layers, st.integers(0, 2**20))
def test_every_route_gives_the_same(
    n_in: int, specs: list[tuple[int, str, str, bool, bool, bool]], seed: int
) -> None:
    torch.manual_seed(seed)
    model = network(n_in, specs)
    points = torch.randn(4, n_in, dtype=torch.float64)
    # No chain and the SVD of every matrix: the contract's own answer.
    truth = measures(model, points, Modes(chain=False, forward=False), certify=False)
    least = max(5 * min(n_in, spec[0]) ** 2 + min(n_in, spec[0]) for spec in specs)
    for name, modes, memory in (
        ("chain", Modes(), PLENTY),
        ("forward", Modes(chain=False), PLENTY),
        ("reverse", Modes(chain=False, forward=False), PLENTY),
        ("blocks", Modes(chain=False), 2 * 8 * least),
    ):
        found = measures(model, points, modes, memory=memory)
        assert_same(found, truth)
        if name == "chain":
            assert modes.routes[0].startswith("chain")


@drawn(15, 40, st.sampled_from([1, 3, 8, 20]), layers, st.integers(0, 2**20))
def test_the_chain_against_rows_made_one_by_one(
    n_in: int, specs: list[tuple[int, str, str, bool, bool, bool]], seed: int
) -> None:
    torch.manual_seed(seed)
    sound = [
        (width, "plain" if how in {"nan", "inf"} else how, act, bias, norm, dropout)
        for width, how, act, bias, norm, dropout in specs
    ]
    model = network(n_in, sound)
    points = torch.randn(3, n_in, dtype=torch.float64)
    found: dict[str, LayerSpectrum] = spectra_of(model, points, demand=demand_of(TOLERANCES))
    for label, sigma in naive_spectra(naive_jacobians(model, points)).items():
        off = np.abs(found[label].values.numpy() - sigma)
        total = sigma.sum(axis=1, keepdims=True)
        # What the certificate allows small values, and rounding of products: 4 layers of at most
        # 33 terms, times the ratio of the factors' norms to their product's, 1e4 at most here.
        allowed = 2.5e-7 * total + 4 * 33 * 2.0**-53 * 1e4 * sigma[:, :1]
        assert (off <= allowed).all(), label
