"""Directions with disjoint outputs pushed together: exactly where a layer sees only a part."""

import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from localrank_cli.jacobian import local
from localrank_cli.jacobian.engine import Modes
from localrank_cli.jacobian.local import Fold, LocalJacobian
from localrank_cli.layers.receptive import Field
from localrank_cli.layers.select import Selection
from localrank_cli.measures.table import demand_of
from localrank_cli.spectrum import deflation, solve
from localrank_cli.spectrum.layer import Request, layer_spectra
from localrank_cli.spectrum.solve import Demand
from localrank_cli.spectrum.svd import symmetric_eigenvalues
from localrank_cli.spectrum.tolerance import Tolerance
from tests.drawing import one_in
from tests.naive import naive_jacobians
from tests.networks import Net

DEMAND = demand_of((Tolerance(atol=0.01), Tolerance(rtol=1e-3)))
TOGETHER = "forward, directions with disjoint outputs together"


def compare(
    model: nn.Module, points: Tensor, modes: Modes, request: Request | None = None
) -> list[str]:
    """Check every singular value against naive ones; return the layers computed together."""
    model = model.double().eval()
    spectra = layer_spectra(model, points, request or Request(Selection(), demand=DEMAND), modes)
    truth = naive_jacobians(model, points)
    assert [spectrum.layer for spectrum in spectra] == list(truth)
    for spectrum, jacobians in zip(spectra, truth.values(), strict=True):
        finite = np.isfinite(jacobians).all(axis=(1, 2))
        assert spectrum.finite.tolist() == finite.tolist()
        values = np.linalg.svd(jacobians[finite], compute_uv=False)
        found = spectrum.values[spectrum.finite].numpy()
        # The promise of numerics.md: measures to 1e-6, which small values carry least; counts.
        assert np.abs(found - values).max() <= 1e-7 * values.max()
        for tol in (0.01, *(1e-3 * values[:, :1],)):
            assert ((found > tol).sum(1) == (values > tol).sum(1)).all()
    routes = [route.rsplit(": ", 1) for route in modes.routes if ": " in route]
    return [layer for layer, way in routes if way == TOGETHER]


def residual(size: int = 7) -> Net:
    """A skip connection, a layer that runs twice, BatchNorm, pooling and a narrow end."""

    def run(net: Net, x: Tensor) -> Tensor:
        hidden = torch.relu(net["norm"](net["inner"](torch.relu(net["stem"](x)))) + net["stem"](x))
        found: Tensor = net["head"](net["pool"](hidden).flatten(1))
        return found

    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    norm.running_var = torch.rand(4) + 0.5
    return Net(
        run,
        stem=nn.Conv2d(2, 4, 3, padding=1),
        inner=nn.Conv2d(4, 4, 3, padding=1),
        norm=norm,
        pool=nn.AvgPool2d(2),
        head=nn.Linear(4 * (size // 2) ** 2, 3),
    )


def test_layers_that_see_a_part_are_pushed_together() -> None:
    points = torch.randn(2, 2, 10, 10, dtype=torch.float64)
    assert compare(residual(10), points, Modes()) == ["stem", "inner", "stem#2"]


def test_without_tolerances_every_matrix_takes_the_svd() -> None:
    points = torch.randn(1, 2, 7, 7, dtype=torch.float64)
    request = Request(Selection(), demand=Demand(None))
    assert "inner" in compare(residual(), points, Modes(), request)


def test_a_deficient_jacobian_has_its_rank() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1))
    with torch.no_grad():
        for name in ("0.weight", "2.weight"):
            weight = model.get_parameter(name)
            weight[:, 1] = weight[:, 0]
    points = torch.randn(1, 2, 7, 7, dtype=torch.float64)
    assert compare(model, points, Modes()) == ["0", "2"]


def test_the_eigenvalues_of_a_deficient_jacobian_are_computed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1)).double().eval()
    with torch.no_grad():
        weight = model.get_parameter("0.weight")
        weight[:, 1] = weight[:, 0]
    points = torch.randn(1, 2, 10, 10, dtype=torch.float64)
    sizes = []

    def counted(gram: Tensor) -> Tensor:
        sizes.append(gram.shape[-1])
        return symmetric_eigenvalues(gram)

    for module in (solve, deflation):
        monkeypatch.setattr(module, "symmetric_eigenvalues", counted)
    compare(model, points, Modes())
    assert sizes == [200]


def test_a_point_that_is_not_finite_counts_as_failed_and_spares_the_others() -> None:
    points = torch.randn(2, 2, 7, 7, dtype=torch.float64)
    points[1, 0, 3, 3] = torch.inf
    compare(residual(), points, Modes())


def random_network(seed: int) -> tuple[nn.Module, Tensor]:
    """Draw convolutions of some dimension, of any stride, padding, dilation and groups."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    dims = draw.choice([1, 2, 2, 3])
    length = {1: 24, 2: 7, 3: 3}[dims]
    convolution: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    pool: Any = draw.choice([
        (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    ])[dims - 1]  # fmt: skip
    channels = [2, draw.choice([4, 6]), 4]
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(channels):
        layers.append(
            convolution(
                n_in,
                n_out,
                tuple(draw.choice([1, 2, 3]) for _ in range(dims)),
                stride=draw.choice([1, 1, 2]),
                padding=draw.choice([1, 2]),
                dilation=draw.choice([1, 1, 2]) if n_in == 2 else 1,
                groups=draw.choice([1, 2]),
            )
        )
        activations: list[type[nn.Module]] = [nn.ReLU, nn.Tanh, nn.GELU]
        layers.append(draw.choice(activations)())
        if draw.random() < 0.3:
            layers.append(pool(2, stride=1, padding=draw.choice([0, 1])))
    return nn.Sequential(*layers), torch.randn(1, 2, *[length] * dims, dtype=torch.float64)


@pytest.mark.parametrize("seed", one_in(3, range(12)))
def test_random_convolutions_give_the_naive_singular_values(seed: int) -> None:
    compare(*random_network(seed), Modes())


@pytest.mark.parametrize("portion", [3, 256])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize(("n", "step"), [(6, 1), (7, 2)])
def test_what_is_rebuilt_in_tiles_of_any_size(
    monkeypatch: pytest.MonkeyPatch, n: int, step: int, size: int, portion: int
) -> None:
    monkeypatch.setattr(local, "_PORTION", portion)
    monkeypatch.setattr(LocalJacobian, "_tile", lambda _, **__: size)
    axis = tuple((max(0, at - 1), min(n, at + 2)) for at in range(0, n, step))
    field = Field((axis, axis[:-1]), (n, n))
    fold = Fold.of(2, [field])
    jacobian = LocalJacobian(torch.randn(fold.n_directions, 3, *field.grid).double(), fold, field)
    entries = [
        [
            *(low <= at < high for at, (low, high) in zip((y, x), (axis[i], axis[j]), strict=True)),
            jacobian.outputs[(channel * 3 + y % 3) * 3 + x % 3, out, i, j],
        ]
        for out in range(3)
        for i, j in np.ndindex(field.grid)
        for channel in range(2)
        for y, x in np.ndindex(n, n)
    ]
    whole = torch.tensor([value * one * other for one, other, value in entries])
    whole = whole.view(jacobian.shape)
    assert torch.equal(jacobian.dense(), whole)
    vectors = torch.randn(2 * n * n, 4, dtype=torch.float64)
    # Sums of up to 150 products of numbers of size 1 in another order.
    assert torch.allclose(jacobian.times(vectors), whole @ vectors, atol=1e-12)
    assert torch.allclose(jacobian.gram().tril(), (whole.mT @ whole).tril(), atol=1e-12)


@pytest.mark.parametrize("seeds", [4, pytest.param(12, marks=pytest.mark.long)])
def test_random_convolutions_are_pushed_together(seeds: int) -> None:
    together = 0
    for seed in range(seeds):
        model, points = random_network(seed)
        modes = Modes()
        layer_spectra(model.double(), points, Request(Selection(), demand=DEMAND), modes)
        together += any(TOGETHER in route for route in modes.routes)
    assert together >= seeds / 2


def mixed(between: Callable[[Tensor], Tensor]) -> Net:
    """Two convolutions, and what no module shows between them."""
    torch.manual_seed(0)
    return Net(
        lambda net, x: net["last"](between(torch.tanh(net["first"](x)))),
        first=nn.Conv2d(2, 4, 3, padding=1),
        last=nn.Conv2d(4, 4, 3, padding=1),
    )


MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "roll": lambda x: x.roll(3, -1),
    "transpose": lambda x: x.mT.contiguous(),
    "flip": lambda x: x.flip(-1),
    "mean": lambda x: x + x.mean((2, 3), keepdim=True),
    "softmax": lambda x: x.flatten(2).softmax(-1).view_as(x),
    "one far position": lambda x: torch.cat([x[..., :1] + 1e-3 * x[..., -1:], x[..., 1:]], -1),
    "some points alone": lambda x: torch.where(
        x.mean((1, 2, 3), keepdim=True) > x[:, :1, :1, :1], x, x.roll(3, -1)
    ),
}


@pytest.mark.parametrize("name", MIXING)
def test_positions_that_are_mixed_between_modules_are_found(name: str) -> None:
    points = torch.randn(2, 2, 7, 7, dtype=torch.float64)
    assert compare(mixed(MIXING[name]), points, Modes()) == ["first"]


@pytest.mark.parametrize(
    "size",
    [
        *(1e-6, 1e-11, 1e-13, 1e-18),
        *(pytest.param(size, marks=pytest.mark.long) for size in (1e-9, 1e-15)),
    ],
)
def test_a_faint_mixture_is_found_or_below_the_rounding(size: float) -> None:
    points = torch.randn(2, 2, 7, 7, dtype=torch.float64)

    def between(x: Tensor) -> Tensor:
        return x + size * x.roll(3, -1)

    together = compare(mixed(between), points, Modes())
    # 1e-11 of the Jacobian is above the rounding of its SVD, 196 * 2**-52.
    assert ("last" in together) <= (size < 1e-11)


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_padding_with_other_positions_is_no_receptive_field(mode: Any) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, padding_mode=mode))
    points = torch.randn(2, 2, 7, 7, dtype=torch.float64)
    assert compare(model, points, Modes()) == []
