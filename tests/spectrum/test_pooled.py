"""Means over points of Jacobians and of their squares, against numpy on naive whole Jacobians."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from localrank_cli.errors import BudgetError, LayerError, LocalrankError
from localrank_cli.layers.positions import Positions
from localrank_cli.layers.select import Selection
from localrank_cli.measures.pooled import pooled_measures
from localrank_cli.spectrum.layer import LayerSpectrum, Request, layer_spectra
from localrank_cli.spectrum.pooled import pooled_spectrum
from localrank_cli.spectrum.tolerance import Tolerance
from tests.naive import Array, naive_counts, naive_jacobians
from tests.spectrum.test_positions import (
    CLOSE,
    INDICES,
    NETWORKS,
    SEED,
    SINGLE,
    built,
    by_position,
    expected,
    truth,
)

TOLERANCES = (Tolerance(atol=0.05), Tolerance(rtol=0.3), Tolerance(rtol=1e-3))


def pooled_of(name: str, kind: str, memory: int = 2**31) -> list[LayerSpectrum]:
    network, (model, points) = NETWORKS[name], built(name)
    layers = tuple(network.layers)
    selection = Selection(layers, (), network.wrt, positions=Positions.parse(kind))
    request = Request(selection, memory=memory, seed=SEED, indices=INDICES, pooled=True)
    return layer_spectra(model, points, request)


def grid_of(shape: tuple[int, ...], features: str) -> tuple[int, ...]:
    """Return the lengths of the axes of positions; the others are those of points and features."""
    longer = [length for length in shape if length != 1]
    return tuple(longer[1:] if features == "first" else longer[:-1])


def matrices_of(name: str, kind: str, layer: str) -> Array:
    """Return the Jacobians of all positions of all points, (jacobians, n_out, n_in)."""
    network, (whole, shapes) = NETWORKS[name], truth(name)[layer]
    if kind == "all":
        return whole
    found = []
    for point, index in enumerate(INDICES):
        of = network.layers[layer], network.source
        jacobian = by_position(whole[point], shapes, *of)
        grid = grid_of(shapes.source if kind.startswith("last-each") else shapes.output, of[0])
        found += expected(kind, jacobian, grid, index)
    return np.stack(found)


def check(spectrum: LayerSpectrum, matrices: Array) -> None:
    """Compare with numpy: the SVDs of the mean and of all Jacobians stacked, and the measures."""
    pooled = spectrum.pooled
    assert pooled is not None
    scale = float(np.linalg.norm(matrices, axis=(1, 2)).max())
    mean = np.linalg.svd(matrices.mean(axis=0), compute_uv=False)
    stack = np.concatenate(list(matrices)) / len(matrices) ** 0.5
    active = np.linalg.svd(stack, compute_uv=False)
    # The squares of these are the eigenvalues of E[J^T J], by the definition.
    squares = np.linalg.eigvalsh(np.einsum("pij,pik->jk", matrices, matrices) / len(matrices))
    assert np.abs(active**2 - squares[::-1][: len(active)]).max() <= CLOSE * scale**2
    for found, wanted in ((pooled.mean.numpy(), mean), (pooled.active.numpy(), active)):
        padded = np.zeros(len(wanted))  # zeros by shape are left out
        padded[: len(found)] = found[: len(wanted)]
        assert np.abs(padded - wanted).max() <= CLOSE * scale
    measures = pooled_measures(pooled, TOLERANCES)
    assert measures is not None
    for ranks, tolerance in zip(measures.ranks, TOLERANCES, strict=True):
        of = {"atol": tolerance.atol, "rtol": tolerance.rtol or 0.0}
        assert [ranks.pooled] == naive_counts(mean[None], **of)
        assert [ranks.active] == naive_counts(active[None], **of)
        assert ranks.undecided == 0
    shares = active[active > 1e-12 * active[0]]
    shares = shares / shares.sum()
    # Relative, as for every measure: a value at the floor adds less than 1e-10.
    assert measures.active_effective_rank == pytest.approx(
        np.exp(-(shares * np.log(shares)).sum()), rel=1e-6
    )


@pytest.mark.cover(1)
@pytest.mark.parametrize("name", ["gpt2", "llama", "resnet", "mlp"])
@pytest.mark.parametrize("kind", ["all", "same:3", "last", "last-all", "last-each:2", "each:2"])
def test_pooled_matrices_are_means_of_naive_jacobians(name: str, kind: str) -> None:
    kind = SINGLE.get(name, {}).get(kind, kind)
    spectra = pooled_of(name, kind)
    assert spectra
    for spectrum in spectra:
        check(spectrum, matrices_of(name, kind, spectrum.layer))


def mlp(*sizes: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).double()


def spectra_of(
    model: nn.Module, points: Tensor, *, is_part: bool = False, memory: int = 2**31
) -> list[LayerSpectrum]:
    request = Request(Selection(), memory=memory, pooled=True, is_part=is_part)
    return layer_spectra(model, points, request)


@pytest.mark.parametrize("n_points", [1, 7, 8, 9, 20])
def test_blocks_of_points_give_bit_for_bit_the_sum_of_a_single_run(n_points: int) -> None:
    model, points = mlp(6, 12, 5, 9), torch.randn(n_points, 6, dtype=torch.float64)
    whole = spectra_of(model, points)
    naive = naive_jacobians(model, points)
    parts = [spectra_of(model, points[a : a + 8], is_part=True) for a in range(0, n_points, 8)]
    for index, spectrum in enumerate(whole):
        check(spectrum, naive[spectrum.layer])
        assert spectrum.pooled is not None
        blocks = [block for part in parts for block in part[index].blocks]
        assert len(blocks) == -(-n_points // 8)
        merged = pooled_spectrum(blocks, spectrum.n_out, torch.float64)
        assert merged is not None
        assert torch.equal(merged.mean, spectrum.pooled.mean)
        assert torch.equal(merged.active, spectrum.pooled.active)
        assert merged.rounding == spectrum.pooled.rounding


@pytest.mark.parametrize("kind", ["all", "each:6", "same"])
def test_the_least_memory_gives_the_same(kind: str) -> None:
    """Few points at once, and of `same` few positions of one point."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 4)
            self.two = nn.Linear(4, 10)

        def forward(self, x: Tensor) -> Tensor:
            seen: Tensor = self.two(torch.tanh(self.one(x).cumsum(1)))
            return seen

    torch.manual_seed(0)
    model, points = Tokens().double(), torch.randn(2, 6, 4, dtype=torch.float64)
    selection = Selection(positions=Positions.parse(kind))

    def found(memory: int) -> list[LayerSpectrum]:
        return layer_spectra(model, points, Request(selection, memory=memory, pooled=True))

    low, high = 2**10, 2**20  # refused, and enough
    while high - low > 2**8:
        middle = (low + high) // 2
        try:
            found(middle)
            high = middle
        except LocalrankError:
            low = middle
    for spectrum, other in zip(found(high), found(2**31), strict=True):
        assert spectrum.pooled is not None
        assert other.pooled is not None
        scale = float(other.pooled.active[0])
        for name in ("mean", "active"):
            one, two = getattr(spectrum.pooled, name), getattr(other.pooled, name)
            torch.testing.assert_close(one, two, rtol=0, atol=CLOSE * scale)


def test_points_that_are_not_finite_do_not_count() -> None:
    model, points = mlp(4, 6, 5), torch.randn(10, 4, dtype=torch.float64)
    points[3, 1], points[9, 0] = torch.nan, torch.inf
    good = [index for index in range(10) if index not in (3, 9)]
    naive = naive_jacobians(model, points[good])
    for spectrum in spectra_of(model, points):
        check(spectrum, naive[spectrum.layer])


def test_without_a_point_that_counts_there_is_nothing() -> None:
    for spectrum in spectra_of(mlp(4, 6), torch.full((2, 4), torch.nan, dtype=torch.float64)):
        assert spectrum.pooled is None


def test_jacobians_that_cancel_have_rank_zero() -> None:
    class Even(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            seen: Tensor = self.inner(x.square() / 3)
            return seen

    point = torch.randn(1, 5, dtype=torch.float64)
    request = Request(Selection(("inner",)), pooled=True)
    # J(x) = 2 diag(x) / 3: the mean over x and -x, thrice each, is 0 but for rounding.
    points = torch.cat([point, -point, point / 3, -point / 3, point, -point])
    (spectrum,) = layer_spectra(Even(), points, request)
    measures = pooled_measures(spectrum.pooled, (Tolerance(atol=1e-3), Tolerance(rtol=0.1)))
    assert measures is not None
    assert [ranks.pooled for ranks in measures.ranks] == [0, 0]
    assert measures.ranks[0].active == 5
    assert measures.ranks[0].undecided == 0


def test_a_value_at_the_tolerance_is_undecided() -> None:
    layer = nn.Linear(4, 4, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor([1.0, 0.5, 0.01, 0.0], dtype=torch.float64)))
    request = Request(Selection(), pooled=True)
    points = torch.randn(3, 4, dtype=torch.float64)
    (spectrum,) = layer_spectra(nn.Sequential(layer), points, request)
    measures = pooled_measures(spectrum.pooled, (Tolerance(atol=0.01), Tolerance(atol=0.02)))
    assert measures is not None
    # Once in each of the two matrices.
    assert [ranks.undecided for ranks in measures.ranks] == [2, 0]


def test_sums_that_do_not_fit_are_refused_with_what_fits() -> None:
    model, points = mlp(200, 300, 10), torch.randn(2, 200, dtype=torch.float64)
    with pytest.raises(BudgetError, match=r"--pooled: the sums over points need .* MiB") as caught:
        spectra_of(model, points, memory=2**21)
    enough = int(caught.value.advice.split("--memory ")[1].split("MiB")[0])
    assert spectra_of(model, points, memory=enough * 2**20)


def test_whole_sources_of_more_than_8192_entries_are_refused() -> None:
    model, points = mlp(8193, 2), torch.randn(1, 8193, dtype=torch.float64)
    with pytest.raises(LayerError, match="8193 columns, and pooled matrices have at most 8192"):
        spectra_of(model, points, memory=2**36)
