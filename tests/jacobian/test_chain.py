"""Chains with skip connections, gates and normalizations, against rows made one by one."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from localrank_cli.jacobian.chain import Product, square_of
from localrank_cli.jacobian.engine import Modes
from localrank_cli.jacobian.links import Link, Term, dominating, root_groups
from localrank_cli.layers.capture import Call
from localrank_cli.measures.points import local_ranks
from localrank_cli.measures.table import demand_of
from localrank_cli.spectrum.layer import LayerSpectrum
from localrank_cli.spectrum.svd import rounding
from localrank_cli.spectrum.tolerance import Tolerance
from tests.asking import spectra_of
from tests.drawing import drawn
from tests.naive import naive_jacobians

TOLERANCES = (Tolerance(atol=0.01), Tolerance(rtol=1e-3), Tolerance(rtol=0.1))
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda _: nn.Identity(),
    "layer": nn.LayerNorm,
    "layer, plain": lambda width: nn.LayerNorm(width, elementwise_affine=False),
    "layer, no bias": lambda width: nn.LayerNorm(width, bias=False),
    "rms": nn.RMSNorm,
    "batch": nn.BatchNorm1d,
}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "dead": lambda: nn.Threshold(100.0, 0.0),
    "none": nn.Identity,
}
KINDS = ("plain", "skip", "skip of two", "gate", "normed before")


@dataclass(frozen=True)
class Spec:
    """One block."""

    kind: str
    width: int  # of what is within a block, or of its output where there is no skip
    norm: str
    activation: str


class Block(nn.Module):
    """A layer or two, with or without a way around them."""

    def __init__(self, spec: Spec, width: int) -> None:
        super().__init__()
        self.kind = spec.kind
        within = spec.width if spec.kind != "skip" else width
        self.first = nn.Linear(width, within)
        self.norm = NORMS[spec.norm](width if spec.kind == "normed before" else within)
        self.act = ACTIVATIONS[spec.activation]()
        if spec.kind in {"skip of two", "gate", "normed before"}:
            self.second = nn.Linear(within, width)
        if spec.kind == "gate":
            self.gate = nn.Linear(width, within)

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the block."""
        if self.kind == "normed before":
            found: Tensor = inputs + self.second(self.act(self.first(self.norm(inputs))))
            return found
        hidden = self.act(self.norm(self.first(inputs)))
        if self.kind == "skip":
            return inputs + hidden
        if self.kind == "skip of two":
            return inputs + self.second(hidden)
        if self.kind == "gate":
            gated: Tensor = self.second(hidden * self.gate(inputs))
            return gated
        return hidden


def network(n_in: int, specs: list[Spec], seed: int) -> nn.Sequential:
    """An MLP of such blocks behind a first layer, with weights of any size."""
    torch.manual_seed(seed)
    width = 12
    parts: list[nn.Module] = [nn.Linear(n_in, width), nn.Tanh()]
    for spec in specs:
        parts.append(Block(spec, width))
        width = spec.width if spec.kind == "plain" else width
    parts.append(nn.Linear(width, 5))
    model = nn.Sequential(*parts).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def check(model: nn.Module, points: Tensor, layers: tuple[str, ...] = ()) -> list[str]:
    modes = Modes()
    found: dict[str, LayerSpectrum] = spectra_of(
        model, points, layers, demand=demand_of(TOLERANCES), modes=modes
    )
    truth = naive_jacobians(model, points, layers)
    assert list(found) == list(truth)
    for label, jacobians in truth.items():
        every = np.linalg.svd(jacobians, compute_uv=False)
        for mine, sigma in zip(found[label].values.numpy(), every, strict=True):
            # What the certificate allows small values, and the rounding of the same few products
            # in another order, as in tests/spectrum/test_naive.py.
            assert (abs(mine - sigma) <= 2.5e-7 * sigma.sum() + 1.1e-11 * sigma[0]).all(), label
            norm = torch.tensor(float(sigma[0]), dtype=torch.float64)
            unsure = 2 * float(rounding(norm, max(jacobians.shape[1:]), torch.float64))
            for tolerance in TOLERANCES:
                tol = float(tolerance.threshold(norm.reshape(1), *jacobians.shape[1:]))
                for factor in (0.99, 1.0, 1.01):
                    if abs(sigma - factor * tol).min() > unsure:
                        assert (mine > factor * tol).sum() == (sigma > factor * tol).sum(), label
    return modes.routes


blocks = st.builds(
    Spec,
    st.sampled_from(KINDS),
    st.sampled_from([2, 5, 12, 20]),  # of one unit, a normalization leaves nothing but rounding
    st.sampled_from(sorted(NORMS)),
    st.sampled_from(sorted(ACTIVATIONS)),
)


@drawn(
    5,
    40,
    st.sampled_from([3, 12, 30]),
    st.lists(blocks, min_size=1, max_size=3),
    st.integers(0, 99),
)
def test_random_blocks(n_in: int, specs: list[Spec], seed: int) -> None:
    model = network(n_in, specs, seed)
    points = torch.randn(2, n_in, dtype=torch.float64)
    routes = check(model, points)
    # What an analysis makes of a BatchNorm is a view, which autograd follows by its strides if it
    # is changed in place.
    is_strided = any(spec.norm == "batch" and spec.activation == "relu in place" for spec in specs)
    assert routes[0].startswith("chain") or is_strided, specs


class Twice(nn.Module):
    """Both kinds of what ends a reduction: a layer that skips and one that is beside it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(40, 20), nn.Linear(20, 20), nn.Linear(20, 20)
        self.d, self.norm = nn.Linear(20, 20), nn.LayerNorm(20)

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply three layers, the last two of which see the same."""
        hidden = torch.relu(self.a(inputs))
        inner = torch.relu(self.norm(self.b(hidden)))
        side: Tensor = self.d(torch.relu(self.c(inner)) + hidden) + self.c(inner)
        return side


def test_a_basis_is_changed_only_where_nothing_goes_around() -> None:
    # Fewer active units than columns at `inner`, which `hidden` goes around.
    model = Twice().double().eval()
    routes = check(model, torch.randn(3, 40, dtype=torch.float64))
    assert routes == ["chain of Linear layers, normalizations and elementwise operations"]

    def link(name: str, *parents: int) -> Link:
        terms = tuple(Term(parent, torch.ones(1, 2)) for parent in parents)
        return Link(Call(name), torch.ones(2, 2), terms)

    links = [link("a"), link("b", 0), link("c", 1), link("d", 0, 2), link("e", 3)]
    assert dominating(links) == [True, False, False, True, False]
    apart = [link("a"), link("b"), link("c", 0), link("d", 1)]
    assert root_groups(apart) == [[0], [1]]
    assert root_groups([*apart, link("e", 2, 3)]) == [[0, 1]]


def triangle_of(condition: float, seed: int, size: float = 1.0) -> Tensor:
    """R^T, 30 x 30, whose singular values fall evenly on a logarithmic scale."""
    torch.manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(30, 30).double()).Q for _ in range(2))
    values = size * torch.logspace(0, -np.log10(condition), 30, dtype=torch.float64)
    return torch.linalg.qr((left * values) @ right, mode="r").R.mT


@pytest.mark.parametrize("condition", [1.0, 10.0, 100.0, 300.0, 1e3, 1e6, 1e15])
@pytest.mark.parametrize("size", [1.0, 1e-60, 1e60])
def test_a_cholesky_factor_serves_where_it_is_as_exact_as_a_qr(
    condition: float, size: float
) -> None:
    n_used = 0
    for seed in range(20):
        matrix = triangle_of(condition, seed, size)
        product = Product(matrix, None, 0.0, float(matrix.norm()))
        square = square_of(product)
        rows = torch.randperm(30)[: 29 - seed].sort().values
        part = matrix[rows]
        if square is None:
            assert condition > 1e12
            continue
        assert square.least <= np.linalg.svd(part.numpy(), compute_uv=False)[-1] * (1 + 1e-9)
        short = square.narrowed(product, rows)
        if short is None:
            continue
        n_used += 1
        behind = torch.randn(40, len(rows), dtype=torch.float64)
        if seed % 2:  # enlarges what the small singular values of the rows are made of
            behind = behind @ torch.linalg.inv(part @ part.mT / size**2)
        mine = np.linalg.svd((behind @ short.matrix).numpy(), compute_uv=False)
        truth = np.linalg.svd((behind @ part).numpy(), compute_uv=False)
        norm = float(torch.linalg.matrix_norm(behind, 2))
        # The product itself and numpy's SVD: its documented size times machine epsilon.
        allowed = norm * short.error + 40 * 2.3e-16 * norm * float(matrix.norm())
        assert abs(mine[: len(rows)] - truth[: len(rows)]).max() <= allowed
    assert n_used >= 10 if condition <= 10 else condition < 1e4 or n_used == 0


@pytest.mark.parametrize("seed", [2, 6, 8])
@pytest.mark.parametrize("others", [0.0, 1e-11])
def test_what_the_svd_is_for_has_no_squares_in_it(others: float, seed: int) -> None:
    """A later layer sees only the least direction of the rows: there a square's error is largest.

    With other values that are next to nothing, those are computed apart, and all of them with them.
    """
    n, generator = 100, torch.manual_seed(seed)
    least, middle = 1 / (2.5 * n), n**-0.5  # about as small as may be
    turn, turned = (
        torch.linalg.qr(torch.randn(size, size, generator=generator).double()).Q
        for size in (n - 1, n + 2)
    )
    values = torch.full((n,), middle, dtype=torch.float64)
    values[0], values[n - 2] = 1, least
    weight = values.unsqueeze(1) * turned[:n]
    weight[: n - 1] = turn @ weight[: n - 1]
    model = nn.Sequential(nn.Linear(n + 2, n), nn.ReLU(), nn.Linear(n, n)).double().eval()
    first, last = model[0].get_parameter("weight"), model[2].get_parameter("weight")
    with torch.no_grad():
        first.copy_(weight)
        model[0].get_parameter("bias").copy_(torch.tensor([1.0] * (n - 1) + [-1.0]))
        last.copy_(others * torch.randn(n, n, generator=generator))
        last[0, : n - 1] = turn[:, n - 2]
    # sigma_1 is the norm of a row, up to others^2.
    rows = [[Fraction(one) for one in row] for row in first[: n - 1].tolist()]
    seen = [Fraction(one) for one in last[0, : n - 1].tolist()]
    sums = [
        sum(a * b for a, b in zip(seen, column, strict=True)) for column in zip(*rows, strict=True)
    ]
    norm = math.sqrt(sum(one * one for one in sums))
    off = 2 * float(rounding(torch.tensor(norm, dtype=torch.float64), n + 2, torch.float64))
    below, above = Tolerance(atol=norm - off), Tolerance(atol=norm + off)
    point = torch.zeros(1, n + 2, dtype=torch.float64)
    for demand in (demand_of((below, above)), demand_of(None)):
        found = spectra_of(model, point, demand=demand)["2"]
        counts = [local_ranks(found, tolerance).counts.tolist() for tolerance in (below, above)]
        assert counts == [[1], [0]]


def test_a_square_first_layer_is_no_triangle() -> None:
    # Singular, though either triangle of it is well-conditioned.
    assert square_of(Product(torch.ones(4, 4, dtype=torch.float64), None, 0.0, 4.0)) is None


@pytest.mark.parametrize(
    "widths", [(40, 30, 30, 30), (40, 30, 4, 30), (40, 30, 50, 8), (9, 30, 3, 12)]
)
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_units_that_are_not_active(widths: tuple[int, ...], scale: float) -> None:
    """Layers behind with more and with fewer rows than units that are active."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        parts += [nn.Linear(n_in, n_out), nn.ReLU()]
    model = nn.Sequential(*parts, nn.Linear(widths[-1], 35)).double().eval()
    with torch.no_grad():
        weight = parts[0].get_parameter("weight")
        weight[1] = weight[0] + scale * weight[1]  # two rows that are nearly one
    check(model, torch.randn(6, widths[0], dtype=torch.float64))


@pytest.mark.parametrize("tolerances", [TOLERANCES, None])
def test_few_active_units_leave_exact_zeros_behind_a_gate_that_is_as_narrow(
    tolerances: tuple[Tolerance, ...] | None,
) -> None:
    """Neither branch of a gate has a basis of its own, and the layer behind them is wider."""
    torch.manual_seed(0)
    gate = Block(Spec("gate", 3, "none", "tanh"), 25)
    model = nn.Sequential(nn.Linear(40, 25), nn.ReLU(), gate, nn.Tanh(), nn.Linear(25, 30))
    model = model.double().eval()
    with torch.no_grad():
        model[0].get_parameter("bias").copy_(torch.tensor([-1.0] * 22 + [1.0] * 3))
    point = torch.zeros(1, 40, dtype=torch.float64)
    found = spectra_of(model, point, demand=demand_of(tolerances))
    for label in ("2.second", "4"):
        values = found[label].computed[0]
        assert (values[:3] > 0).all()
        assert (values[3:] == 0).all()


def test_normalizations_are_chosen_by_name() -> None:
    points = torch.randn(3, 40, dtype=torch.float64)
    routes = check(Twice().double().eval(), points, ("norm", "a", "d"))
    assert routes == ["chain of Linear layers, normalizations and elementwise operations"]


class Wrong(nn.Module):
    """A normalization that looks like torch's and is not."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(9, 8), nn.LayerNorm(8), nn.Linear(8, 7)
        self.how = how
        if how == "hook":
            self.norm.register_forward_hook(lambda _, args, output: output + args[0].sum())
        if how == "forward":
            own = self.norm.forward
            vars(self.norm)["forward"] = lambda x: own(x) * x.mean()

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the layers."""
        hidden = self.first(inputs)
        if self.how == "no grad":
            with torch.no_grad():
                normed = self.norm(hidden)
            found: Tensor = self.last(hidden + normed)
            return found
        if self.how == "other weights":
            swapped = {"weight": torch.full((8,), 3.0), "bias": torch.zeros(8)}
            output = torch.func.functional_call(self.norm, swapped, (hidden,))
            return self.last(output)
        return self.last(self.norm(hidden))


@pytest.mark.parametrize("how", ["hook", "forward", "no grad", "other weights", "none"])
def test_layers_that_are_not_what_they_seem(how: str) -> None:
    routes = check(Wrong(how).double().eval(), torch.randn(3, 9, dtype=torch.float64))
    assert routes[0].startswith("chain") == (how in {"no grad", "none"})


def test_a_slope_that_hides_a_layer_is_no_layer_that_is_missing() -> None:
    # A unit that is dead at one point only, behind a sum of branches of which one is all dead.
    torch.manual_seed(0)
    model = network(30, [Spec("skip", 12, "none", "dead"), Spec("plain", 20, "rms", "relu")], 1)
    points = torch.randn(3, 30, dtype=torch.float64)
    points[1] = 0
    assert check(model, points)[0].startswith("chain")
