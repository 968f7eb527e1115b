"""Random networks (stacks of random blocks) against a naive computation."""

from collections.abc import Callable

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from localrank_cli.measures.points import local_ranks
from localrank_cli.spectrum.tolerance import Tolerance
from tests.asking import numbers, spectra_of
from tests.drawing import drawn
from tests.naive import naive_counts, naive_jacobians, naive_spectra
from tests.networks import Residual, settled

# Two ways to one matrix: k u per layer, k <= 40, up to 12 layers with norms, times the product of
# the factors' norms, which is taken as 1e4 times the largest Jacobian on the way at this point: a
# LayerNorm whose input varies only where it is blind gives next to nothing by cancellation. The
# pre-activations differ by as much, and are this near to a kink with a chance of 1e-9 a unit.
BOUND = 40 * 12 * 2.0**-53 * 1e4  # 5.3e-10

TOLERANCES = (Tolerance(atol=0.01), Tolerance(rtol=1e-3), Tolerance(rtol=0.1))

Block = Callable[[int], nn.Module]  # from and to a width


def narrow(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 2), nn.Tanh(), nn.Linear(2, width))


VECTOR: dict[str, Block] = {
    "linear": lambda n: nn.Linear(n, n),
    "no_bias": lambda n: nn.Linear(n, n, bias=False),
    "relu": lambda n: nn.ReLU(),
    "in_place": lambda n: nn.Sequential(nn.Linear(n, n), nn.ReLU(inplace=True)),
    "gelu": lambda n: nn.GELU(),
    "silu": lambda n: nn.SiLU(),
    "tanh": lambda n: nn.Tanh(),
    "norm": nn.LayerNorm,
    "batchnorm": nn.BatchNorm1d,
    "dropout": lambda n: nn.Dropout(0.5),
    "residual": lambda n: Residual(n, 3),
    "narrow": narrow,
    "softmax": lambda n: nn.Softmax(-1),
}
IMAGE: dict[str, Block] = {
    "conv": lambda n: nn.Conv2d(n, n, 3, padding=1),
    "pointwise": lambda n: nn.Conv2d(n, n, 1),
    "depthwise": lambda n: nn.Conv2d(n, n, 3, padding=1, groups=n),
    "relu": lambda n: nn.ReLU(),
    "in_place": lambda n: nn.Sequential(nn.Conv2d(n, n, 1), nn.SiLU(inplace=True)),
    "tanh": lambda n: nn.Tanh(),
    "batchnorm": nn.BatchNorm2d,
    "groupnorm": lambda n: nn.GroupNorm(1, n),
    "average": lambda n: nn.AvgPool2d(3, stride=1, padding=1),
    "maximum": lambda n: nn.MaxPool2d(2, stride=1),
    "instancenorm": nn.InstanceNorm2d,
}


def compare(model: nn.Module, points: Tensor) -> None:
    expected = naive_spectra(naive_jacobians(model, points))
    found = spectra_of(model, points)
    assert list(found) == list(expected)
    off = BOUND * np.max([sigma[:, :1] for sigma in expected.values()], axis=0)
    for label, spectrum in found.items():
        sigma = expected[label]
        assert (np.abs(numbers(spectrum) - sigma) <= off).all(), label
        for tolerance in TOLERANCES:
            rtol = tolerance.rtol or 0
            tol = np.maximum(tolerance.atol, rtol * sigma[:, :1])
            decided = (np.abs(sigma - tol) > off).all(axis=1)
            counts = local_ranks(spectrum, tolerance).counts.numpy()
            naive = np.array(naive_counts(sigma, tolerance.atol, rtol))
            assert (counts == naive)[decided | (sigma[:, 0] == 0)].all(), label


@drawn(
    20,
    60,
    names=st.lists(st.sampled_from(sorted(VECTOR)), max_size=6),
    width=st.integers(4, 9),
    n_in=st.integers(1, 12),
    seed=st.integers(0, 2**20),
)
def test_stacks_over_vectors(names: list[str], width: int, n_in: int, seed: int) -> None:
    torch.manual_seed(seed)
    blocks = [VECTOR[name](width) for name in names]
    model = nn.Sequential(nn.Linear(n_in, width), *blocks, nn.Linear(width, 3))
    compare(settled(model).double(), torch.randn(3, n_in, dtype=torch.float64))


@drawn(
    10,
    30,
    names=st.lists(st.sampled_from(sorted(IMAGE)), max_size=4),
    channels=st.integers(1, 3),
    seed=st.integers(0, 2**20),
)
def test_stacks_over_images(names: list[str], channels: int, seed: int) -> None:
    torch.manual_seed(seed)
    blocks = [IMAGE[name](channels) for name in names]
    model = nn.Sequential(*blocks, nn.Flatten(), nn.LazyLinear(4))
    points = torch.randn(2, channels, 5, 5)
    model.eval()(points)  # lets the lazy layer see its width
    compare(settled(model).double(), points.double())
