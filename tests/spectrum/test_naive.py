"""Every case by every mode of differentiation, against rows made one by one and numpy's SVD."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from localrank_cli.measures.points import local_ranks
from tests.asking import numbers, spectra_of, spectra_of_case
from tests.cases import CASES, Case, in_first
from tests.naive import naive_counts, naive_jacobians, naive_spectra
from tests.networks import Net
from tests.spectrum.routes import ROUTES, TOLERANCES, jacobians, truth

# torch says so where vmap has no rule for an operation (Bilinear): slow, but correct.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")

# Both sides multiply the same factors in another order. An entry is then off by at most k u per
# layer times the product of the factors' norms: k <= 50 terms in a sum, at most 10 layers deep,
# u = 2^-53, and in these networks the norms' product is under 20 sigma_1. Weyl: singular values
# move by no more than the matrix, whose norm is at most 10 times its largest entry here.
BOUND = 50 * 10 * 2.0**-53 * 20 * 10  # 1.1e-11

# Where a part is float32, that part's rounding (u = 2^-24) counts, in the few elementwise
# operations of the one case: a handful of roundings times a ratio of norms under 10.
BOUND_FLOAT32 = 10 * 10 * 2.0**-24  # 6e-6


@pytest.mark.parametrize(("case", "route"), in_first(CASES, "as_chosen", "reverse", "row_by_row"))
def test_spectra_and_counts(case: Case, route: str) -> None:
    expected = truth(case)
    found = spectra_of_case(case, ROUTES[route].modes())

    assert list(found) == list(expected)
    bound = BOUND_FLOAT32 if case.low_precision else BOUND
    for label, spectrum in found.items():
        sigma = expected[label]
        n_points, n_out, n_in = jacobians(case)[label].shape
        assert (spectrum.n_out, spectrum.n_in) == (n_out, n_in)
        assert spectrum.values.shape == (n_points, min(n_out, n_in))
        assert spectrum.finite.all()
        values = numbers(spectrum)
        assert (values[:, :-1] >= values[:, 1:]).all()
        assert (values >= 0).all()
        assert spectrum.method == ("exact(float32)" if case.low_precision else "exact")
        assert (np.abs(values - sigma) <= bound * sigma[:, :1]).all(), label
        for tolerance in TOLERANCES:
            rtol = tolerance.relative(spectrum.n_out, spectrum.n_in)
            tol = np.maximum(tolerance.atol, rtol * sigma[:, :1])
            # Seeds are fixed, so no example is thrown away: all are away from the tolerance. (The
            # points where J = 0 are decided too, by strictness: 0 > 0 is false.)
            decided = (np.abs(sigma - tol) > bound * sigma[:, :1]).all(axis=1)
            assert (decided | (sigma[:, 0] == 0)).all()
            ranks = local_ranks(spectrum, tolerance)
            assert ranks.counts.tolist() == naive_counts(sigma, tolerance.atol, rtol)
            assert not ranks.undecided.any()


def test_the_cases_have_different_names() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))


class Affine(nn.Module):
    """A batch norm in eval mode, by its definition."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        assert norm.running_var is not None
        assert norm.running_mean is not None
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


@pytest.mark.parametrize("route", ["as_chosen", "reverse", "row_by_row"])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_tokens_of_pixels_after_a_batch_norm(route: str, memory: torch.memory_format) -> None:
    """Torch's own backward pass is wrong here, so the truth is of the norm by its definition."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        assert tensor is not None
        nn.init.normal_(tensor)
    assert norm.running_var is not None
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    layers = {"conv": nn.Conv2d(2, 4, 3, stride=2, padding=1), "last": nn.Linear(4, 3)}

    def run(net: Net, x: Tensor) -> Tensor:
        tokens = net["norm"](net["conv"](x)).flatten(2).transpose(1, 2)
        return net["last"](tokens.tanh()).sum(1)

    points = torch.randn(1, 2, 4, 4, dtype=torch.float64).contiguous(memory_format=memory)
    model, plain = Net(run, norm=norm, **layers), Net(run, norm=Affine(norm), **layers)
    found = spectra_of(model.double().eval(), points, ("last",), modes=ROUTES[route].modes())
    sigma = naive_spectra(naive_jacobians(plain.double().eval(), points, ("last",)))["last"]
    assert (np.abs(numbers(found["last"]) - sigma) <= BOUND * sigma[:, :1]).all()
