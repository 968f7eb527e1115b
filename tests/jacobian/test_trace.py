"""Which networks are chains of Linear layers and elementwise operations, and which are not."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from localrank_cli.jacobian.engine import Modes
from tests.asking import numbers, spectra_of
from tests.naive import naive_jacobians, naive_spectra


class Forward(nn.Module):
    """Two Linear layers and a forward pass of one's own."""

    def __init__(self, run: Callable[["Forward", Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 4)
        self.square, self.across = nn.Linear(6, 6), nn.Linear(6, 4)
        self._run = run

    def forward(self, inputs: Tensor) -> Tensor:
        return self._run(self, inputs)


class Square(torch.autograd.Function):
    """Mixes entries, and bears the name of an elementwise operation."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        return hidden.cumsum(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].flip(1).cumsum(1).flip(1)


class Tanh(torch.autograd.Function):
    """Bears the name of an elementwise operation, and mixes points in its backward pass alone."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, over_points: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.over_points = over_points
        return hidden.tanh()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.over_points(grads[0]), None


def instance_norm(hidden: Tensor) -> Tensor:
    """Autograd's node for it is that of a batch norm."""
    return functional.instance_norm(hidden.unsqueeze(1)).squeeze(1)


def square(hidden: Tensor) -> Tensor:
    mixed: Tensor = Square.apply(hidden)
    return mixed


def made_weight(model: Forward, inputs: Tensor) -> Tensor:
    """A hypernetwork: the second layer's weight is a result of the first."""
    hidden = model.a(inputs).tanh()
    model.b._parameters.pop("weight", None)
    vars(model.b)["weight"] = torch.outer(hidden[0, :4], hidden[0])
    found: Tensor = model.b(hidden)
    return found


def made_bias(model: Forward, inputs: Tensor) -> Tensor:
    """The same with a bias at each point."""
    hidden = model.a(inputs).tanh()
    model.b._parameters.pop("bias", None)
    vars(model.b)["bias"] = hidden[:, :4].exp()
    found: Tensor = model.b(hidden)
    return found


def changed_later(model: Forward, inputs: Tensor) -> Tensor:
    """What a layer sees is zero, of slope one, and then changed in place."""
    hidden = model.a(inputs)
    hidden = hidden - hidden.detach()
    found: Tensor = model.b(hidden)
    hidden.mul_(2)
    return found


def normed_in_place(hidden: Tensor) -> Tensor:
    """A batch norm's output is a view while a network is analyzed."""
    statistics = torch.linspace(-1, 1, 5).to(hidden), torch.linspace(0.5, 2, 5).to(hidden)
    return functional.batch_norm(hidden, *statistics).relu_()


class Beside(nn.Module):
    """Mixes small entries in place, beside a large one of which the next layer takes little."""

    scale = 1e10

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs * torch.tensor([self.scale, 1, 1, 1, 1]).to(inputs)
        hidden[:, 1:].cumsum_(1)
        return hidden


def half_in_place(hidden: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Autograd's graph does not show what an operation on a part of a tensor does."""
    hidden = hidden.clone()
    change(hidden[:, 2:])
    return hidden


CHAINS: dict[str, Callable[[Forward, Tensor], Tensor]] = {
    "functional": lambda m, x: m.b(functional.relu(m.a(x))),
    "in place": lambda m, x: m.b(m.a(x).relu_()),
    "arithmetic": lambda m, x: m.b(torch.tanh(2 * m.a(x) - 1) / 3),
    "view and back": lambda m, x: m.b(m.a(x).view(-1, 5, 1).relu().flatten(1)),
    "scaled input": lambda m, x: m.b(functional.gelu(m.a((x - 0.5) / 0.25))),
    "where": lambda m, x: m.b(torch.where(m.a(x) > 0, m.a(x).detach() * 0, 0) + m.a(x).exp()),
    "two heads": lambda m, x: m.across(m.square(x).relu()) + m.b(m.a(m.square(x).tanh())),
    "gate that is constant": lambda m, x: m.b(m.a(x) * m.a(x).detach()),
    "clamped": lambda m, x: m.b(m.a(x).clamp(-0.2, 0.4)),
    "self product": lambda m, x: m.b(m.a(x) * m.a(x)),
    "skip": lambda m, x: m.across(m.square(x) + m.square(m.square(x)).relu()),
    "skip around two": lambda m, x: m.b(m.a(x) + m.a(m.square(m.square(x).relu()).tanh())),
    "gate of two first layers": lambda m, x: m.b(m.a(x).sigmoid() * m.a(2 * x)),
    "sum of two first layers": lambda m, x: m.b(m.a(x)) + m.across(m.square(x) + m.square(-x)),
    "one of two is dead": lambda m, x: m.b(m.a(x) + (m.a(-x) - 100).relu()),
    "changed in place later": changed_later,
    "in place, of a view": lambda m, x: m.b(m.a(x).view(-1).view(-1, 5).relu_()),
    "batch norm, then in place": lambda m, x: m.b(normed_in_place(m.a(x))),
    "dead": lambda m, x: m.across(m.square((m.square(x) - 100).relu())),
}
OTHERS: dict[str, Callable[[Forward, Tensor], Tensor]] = {
    "weight that depends on the input": made_weight,
    "bias that depends on the input": made_bias,
    "skip": lambda m, x: m.across(x + m.square(x).relu()),
    "skip from the input": lambda m, x: m.across(x + m.square(m.square(x).relu())),
    "softmax": lambda m, x: m.b(m.a(x).softmax(1)),
    "permutation": lambda m, x: m.b(m.a(x).flip(1)),
    "part": lambda m, x: m.b(m.a(x) + m.a(x).sum(1, keepdim=True)),
    "input and a layer": lambda m, x: m.across(x * m.square(x)),
    "cut off and joined": lambda m, x: m.b(m.a(x).softmax(1) + m.a(x)),
    "nonlinear before": lambda m, x: m.b(m.a(x.sin())),
    "shared by two": lambda m, x: m.b(m.a(x).relu()) + m.across(m.square(x) * x),
    "instance norm": lambda m, x: m.b(instance_norm(m.a(x))),
    "instance norm first": lambda m, x: m.b(m.a(instance_norm(x))),
    "a function of that name": lambda m, x: m.b(square(m.a(x))),
    "normalized": lambda m, x: m.b(functional.layer_norm(m.a(x), (5,))),
    "sums in place, of a view": lambda m, x: m.b(m.a(x).view(-1).view(-1, 5).cumsum_(1)),
    "sums in place, of one half": lambda m, x: m.b(half_in_place(m.a(x), lambda h: h.cumsum_(1))),
    "swapped in place": lambda m, x: m.b(half_in_place(m.a(x), lambda h: h.copy_(h.flip(1)))),
    "repeated by strides": lambda m, x: m.b(m.a(x).as_strided((len(x), 5), (5, 0))),
}


def compare(model: nn.Module, points: Tensor) -> str:
    modes = Modes()
    found = spectra_of(model, points, modes=modes)
    expected = naive_spectra(naive_jacobians(model, points, (), ""))
    assert list(found) == list(expected)
    for label, sigma in expected.items():
        # As in tests/spectrum/test_naive.py: another order of the same few products.
        assert (abs(numbers(found[label]) - sigma) <= 1.1e-11 * sigma[:, :1]).all(), label
    return modes.routes[0]


@pytest.mark.parametrize("name", CHAINS)
def test_chains(name: str) -> None:
    model = Forward(CHAINS[name]).double()
    assert compare(model, torch.randn(4, 6, dtype=torch.float64)).startswith("chain")


@pytest.mark.parametrize("name", OTHERS)
def test_networks_that_are_not_chains(name: str) -> None:
    model = Forward(OTHERS[name]).double()
    assert compare(model, torch.randn(4, 6, dtype=torch.float64)).startswith("no chain")


MIXES: dict[str, Callable[[Tensor], Tensor]] = {
    "sum over points": lambda grad: grad.sum(0).expand_as(grad),
    "cumulative": lambda grad: grad.cumsum(0),
    "cumulative, backwards": lambda grad: grad.flip(0).cumsum(0).flip(0),
    "of two in the middle": lambda grad: (
        grad + functional.pad(grad[1:2], (0, 0, 2, 2))[: len(grad)]
    ),
    "a little": lambda grad: grad + 1e-6 * (grad - grad.roll(1, 0)),
    "mean": lambda grad: grad + grad.mean(0),
    "by their number": lambda grad: grad / len(grad),
}


@pytest.mark.parametrize("behind", [nn.Identity(), nn.Softmax(1)], ids=["chain", "no chain"])
@pytest.mark.parametrize("name", MIXES)
def test_points_that_are_mixed_by_the_backward_pass_alone(name: str, behind: nn.Module) -> None:
    model = Forward(lambda m, x: m.b(behind(Tanh.apply(m.a(x), MIXES[name])))).double()
    modes, points = Modes(), torch.randn(5, 6, dtype=torch.float64)
    found = spectra_of(model, points, modes=modes)
    assert "points are computed one by one" in modes.notes[0]
    for label, sigma in naive_spectra(naive_jacobians(model, points, (), "")).items():
        # As above.
        assert (abs(numbers(found[label]) - sigma) <= 1.1e-11 * sigma[:, :1]).all(), label


def second_half_twice(grad: Tensor) -> Tensor:
    return torch.cat([grad[: (len(grad) + 1) // 2], 2 * grad[(len(grad) + 1) // 2 :]])


def from_the_last(grad: Tensor) -> Tensor:
    return torch.cat([grad[:1] + grad[-1:], grad[1:]]) if len(grad) > 1 else grad


# What the backward pass does, and how points and the last weight are changed before.
HIDDEN: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], float]] = {
    "beside a larger call": (MIXES["by their number"], lambda x: x, 1e-3),
    "the first point is dead": (
        MIXES["by their number"],
        lambda x: torch.cat([torch.full_like(x[:1], 1e9), x[1:]]),
        1.0,
    ),
    "a part of the points": (second_half_twice, lambda x: x, 1.0),
    "from a point that is not finite": (
        from_the_last,
        lambda x: torch.cat([x[:-1], torch.full_like(x[:1], torch.inf)]),
        1.0,
    ),
    "nothing where one is not finite": (
        lambda grad: grad if bool(torch.isfinite(grad).all()) else 0 * grad.nan_to_num(),
        lambda x: torch.cat([torch.full_like(x[:1], torch.nan), x[1:]]),
        1e-3,
    ),
    "entries whose squares are zero": (MIXES["by their number"], lambda x: x, 1e-170),
    "a gradient that is clipped": (
        lambda grad: grad * (0.1 / grad.norm()).clamp(max=1),
        lambda x: x,
        1.0,
    ),
    "not finite alone": (lambda grad: grad / float(len(grad) > 1), lambda x: x, 1.0),
}


@pytest.mark.parametrize("behind", [nn.Identity(), nn.Softmax(1)], ids=["chain", "no chain"])
@pytest.mark.parametrize("name", HIDDEN)
def test_what_hides_that_a_backward_pass_depends_on_the_batch(name: str, behind: nn.Module) -> None:
    change, points_of, size = HIDDEN[name]
    # Dead: all entries of the first point are beyond these bounds.
    dead = nn.Hardtanh(-0.9, 0.9) if "dead" in name else nn.Identity()
    between = nn.Sequential(dead, behind)
    model = Forward(lambda m, x: m.b(between(Tanh.apply(m.a(x), change)))).double()
    with torch.no_grad():
        model.b.weight *= size
    points = points_of(torch.randn(5, 6, dtype=torch.float64))
    modes = Modes()
    found = spectra_of(model, points, modes=modes)
    # A chain pulls nothing back through a point that is not finite.
    is_seen = not name.startswith("nothing") or not isinstance(behind, nn.Identity)
    assert ("points are computed one by one" in "".join(modes.notes)) == is_seen
    jacobians = naive_jacobians(model, points, (), "")
    for label, sigma in naive_spectra(jacobians).items():
        good = found[label].finite.numpy()
        assert (good == np.isfinite(jacobians[label]).all(axis=(1, 2))).all()
        # As above.
        off = abs(numbers(found[label]) - sigma)[good]
        assert (off <= 1.1e-11 * sigma[good][:, :1]).all(), label


@pytest.mark.parametrize("behind", [nn.Identity(), nn.Softmax(1)], ids=["chain", "no chain"])
def test_a_branch_that_depends_on_the_batch_beside_a_skip(behind: nn.Module) -> None:
    # It is a tenth of the whole, and less where it is divided.
    change = MIXES["by their number"]
    model = Forward(lambda m, x: m.b(behind(m.a(x)) + 0.05 * Tanh.apply(m.a(x), change))).double()
    modes, points = Modes(), torch.randn(5, 6, dtype=torch.float64)
    found = spectra_of(model, points, modes=modes)
    assert "points are computed one by one" in modes.notes[0]
    for label, sigma in naive_spectra(naive_jacobians(model, points, (), "")).items():
        # As above.
        assert (abs(numbers(found[label]) - sigma) <= 1.1e-11 * sigma[:, :1]).all(), label


def test_a_derivative_that_is_finite_nowhere_does_not_hide_another_one() -> None:
    # Autograd's derivative of a root that is not taken is 0 * NaN.
    def run(model: Forward, inputs: Tensor) -> Tensor:
        hidden = model.a(Tanh.apply(model.square(inputs), MIXES["by their number"]))
        found: Tensor = model.b(torch.where(hidden > 0, hidden.sqrt(), 0))
        return found

    model = Forward(run).double()
    points = torch.randn(5, 6, dtype=torch.float64)
    found = spectra_of(model, points)
    assert not found["b"].finite.any()
    sigma = naive_spectra(naive_jacobians(model, points, ("a",), ""))["a"]
    # As above.
    assert (abs(numbers(found["a"]) - sigma) <= 1.1e-11 * sigma[:, :1]).all()


def test_a_derivative_that_is_not_finite_does_not_hide_another_one() -> None:
    # At the first point the last layer sees a root at 0; the one before it is divided by the number
    # of points.
    def run(model: Forward, inputs: Tensor) -> Tensor:
        hidden: Tensor = model.b(Tanh.apply(model.a(inputs), MIXES["by their number"]).softmax(1))
        total = hidden.sum(1, keepdim=True)
        root = (-total * (total < 0)).sqrt()
        found: Tensor = model.across(functional.pad(hidden + root, (0, 2)))
        return found

    model = Forward(run).double()
    points = torch.randn(5, 6, dtype=torch.float64)
    with torch.no_grad():
        sums = model.b(model.a(points).tanh().softmax(1)).sum(1)
        model.b.bias[0] -= sums.sort().values[-2:].mean()  # above 0 at one point
    points = points[sums.argsort(descending=True)]
    found = spectra_of(model, points)
    assert found["across"].finite.tolist() == [False, True, True, True, True]
    sigma = naive_spectra(naive_jacobians(model, points, ("b",), ""))["b"]
    # As above.
    assert (abs(numbers(found["b"]) - sigma) <= 1.1e-11 * sigma[:, :1]).all()


def test_small_entries_that_are_mixed_beside_a_large_one_are_no_chain() -> None:
    last = nn.Linear(5, 4)
    with torch.no_grad():
        last.weight[:, 0] /= Beside.scale
    model = nn.Sequential(nn.Linear(6, 5), Beside(), last).double()
    assert compare(model, torch.randn(4, 6, dtype=torch.float64)).startswith("no chain")


def test_a_linear_over_tokens_is_not_a_chain() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    assert "more than one vector" in compare(model, torch.randn(3, 5, 3, dtype=torch.float64))


def test_a_parametrized_layer_is_not_a_chain() -> None:
    layer = nn.Linear(4, 3)
    parametrizations.weight_norm(layer)
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(3, 2)).double()
    assert compare(model, torch.randn(3, 4, dtype=torch.float64)).startswith("no chain")


def test_a_layer_with_its_own_hook_is_not_a_chain() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    model[0].register_forward_hook(lambda module, args, output: output * 3)
    assert compare(model, torch.randn(3, 4, dtype=torch.float64)).startswith("no chain")


def test_a_cancellation_of_seven_digits() -> None:
    # |W_2| |W_1| / sigma_1 = 1e7: squared factors (W (W_1 W_1^T) W^T) count wrongly at 1e-3.
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 20, bias=False), nn.Linear(20, 12, bias=False)).double()
    first = torch.randn(20, 30, generator=generator, dtype=torch.float64)
    left, _, _ = torch.linalg.svd(first)
    second = torch.randn(12, 10, generator=generator, dtype=torch.float64) @ left[:, :10].mT
    first = first.clone()
    first = left[:, 10:] @ left[:, 10:].mT @ first * 1e7 + left[:, :10] @ left[:, :10].mT @ first
    model.load_state_dict({"0.weight": first, "1.weight": second})
    route = Modes()
    (_, spectrum) = spectra_of(model, torch.randn(3, 30, dtype=torch.float64), modes=route).values()
    sigma = torch.linalg.svdvals(second @ first)
    assert route.routes[0].startswith("chain")
    assert ((spectrum.values > 1e-3 * sigma[0]).sum(dim=1) == (sigma > 1e-3 * sigma[0]).sum()).all()
