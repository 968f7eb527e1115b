"""What must hold for every network."""

from itertools import accumulate

import numpy as np
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor, nn

from localrank_cli.measures.points import local_ranks
from localrank_cli.spectrum.layer import LayerSpectrum
from localrank_cli.spectrum.tolerance import Tolerance
from tests.asking import numbers, spectra_of
from tests.drawing import drawn
from tests.naive import naive_outputs
from tests.networks import bias, mlp, weight

ACTS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "sigmoid": nn.Sigmoid}
TOLERANCES = (Tolerance(atol=0.01), Tolerance(atol=0.1), Tolerance(rtol=1e-3), Tolerance(rtol=0.1))

# Two ways to one matrix, at most 5 layers of at most 12 terms: 5 * 12 u times a ratio of norms
# under 1000 (weights near 1/sqrt(n), slopes of sigmoids down to 1/4 in each of 4 layers).
SAME = 5 * 12 * 2.0**-53 * 1000  # 6.7e-12, relative to sigma_1
# The same for the pre-activations: a unit this far from 0 cannot change sides of the kink.
KINK = 5 * 12 * 2.0**-53 * 1000

widths = st.lists(st.integers(1, 12), min_size=2, max_size=5)
seeds = st.integers(0, 2**20)
acts = st.sampled_from(sorted(ACTS))


def network(sizes: list[int], act: str, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    model = mlp(*sizes, act=ACTS[act]).double()
    for module in model:
        if isinstance(module, nn.Linear):
            module.weight.data = torch.randn_like(module.weight) / module.in_features**0.5
    return model


def points_for(model: nn.Sequential, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    n_in = weight(model, "0").shape[1]
    return torch.randn(count, n_in, generator=generator, dtype=torch.float64)


def assume_no_kink(model: nn.Module, points: Tensor, act: str) -> None:
    if act == "relu":
        for point in points:
            for values in naive_outputs(model, point).values():
                assume(np.abs(values).min() > KINK)


def assert_same(
    first: dict[str, LayerSpectrum],
    second: dict[str, LayerSpectrum],
    order: list[int] | None = None,
) -> None:
    """Spectra agree to rounding, and counts exactly where both are decided."""
    assert list(first) == list(second)
    for label, one in first.items():
        two = second[label]
        rows = order if order is not None else list(range(len(one.values)))
        expected, found = numbers(one)[rows], numbers(two)
        assert (np.abs(expected - found) <= SAME * expected[:, :1]).all(), label
        for tolerance in TOLERANCES:
            tol = np.maximum(tolerance.atol, (tolerance.rtol or 0) * expected[:, :1])
            near = (np.abs(expected - tol) <= SAME * expected[:, :1]).any(axis=1)
            decided = ~near | (expected[:, 0] == 0)
            counts = local_ranks(one, tolerance).counts.numpy()[rows]
            assert (counts == local_ranks(two, tolerance).counts.numpy())[decided].all(), label


@drawn(5, 25, sizes=widths, act=acts, seed=seeds)
def test_rank_is_at_most_the_narrowest_width_so_far(sizes: list[int], act: str, seed: int) -> None:
    # No tolerance is needed: beyond that width singular values are rounding, which counts as 0.
    model = network(sizes, act, seed)
    found = spectra_of(model, points_for(model, 3, seed))
    narrowest = list(accumulate(sizes, min))[1:]
    for spectrum, width in zip(found.values(), narrowest, strict=True):
        assert ((numbers(spectrum) > 0).sum(axis=1) <= width).all()


@drawn(5, 25, sizes=widths, act=acts, seed=seeds)
def test_rotating_the_input_with_the_first_weight_changes_nothing(
    sizes: list[int], act: str, seed: int
) -> None:
    model = network(sizes, act, seed)
    points = points_for(model, 3, seed)
    assume_no_kink(model, points, act)
    before = spectra_of(model, points)
    generator = np.random.default_rng(seed)
    rotation = torch.from_numpy(np.linalg.qr(generator.standard_normal((sizes[0], sizes[0])))[0])
    weight(model, "0").copy_(weight(model, "0") @ rotation)
    assert_same(before, spectra_of(model, points @ rotation))


@drawn(5, 25, sizes=widths, act=acts, seed=seeds, data=st.data())
def test_renaming_hidden_units_changes_no_spectrum(
    sizes: list[int], act: str, seed: int, data: st.DataObject
) -> None:
    model = network([*sizes, 3], act, seed)
    points = points_for(model, 2, seed)
    assume_no_kink(model, points, act)
    before = spectra_of(model, points)
    order = data.draw(st.permutations(range(sizes[1])))
    weight(model, "0").copy_(weight(model, "0")[order])
    bias(model, "0").copy_(bias(model, "0")[order])
    weight(model, "2").copy_(weight(model, "2")[:, order])
    assert_same(before, spectra_of(model, points))


@drawn(5, 25, sizes=widths, act=acts, seed=seeds, order=st.permutations(range(5)))
def test_order_of_points_is_order_of_rows(
    sizes: list[int], act: str, seed: int, order: list[int]
) -> None:
    model = network(sizes, act, seed)
    points = points_for(model, 5, seed)
    assume_no_kink(model, points, act)
    assert_same(spectra_of(model, points), spectra_of(model, points[order]), order)


@drawn(5, 25, sizes=widths, act=acts, seed=seeds, spare=st.integers(0, 20_000))
def test_portions_of_points_and_directions_change_nothing(
    sizes: list[int], act: str, seed: int, spare: int
) -> None:
    model = network(sizes, act, seed)
    points = points_for(model, 7, seed)
    assume_no_kink(model, points, act)
    largest = 6 * max(sizes[1:]) * sizes[0] * 8  # bytes; less would be refused
    assert_same(spectra_of(model, points), spectra_of(model, points, memory=largest + spare))


@drawn(5, 25, sizes=widths, act=acts, seed=seeds)
def test_a_point_alone_is_a_point_among_others(sizes: list[int], act: str, seed: int) -> None:
    model = network(sizes, act, seed)
    points = points_for(model, 4, seed)
    assume_no_kink(model, points, act)
    together = spectra_of(model, points)
    for index in range(4):
        assert_same(together, spectra_of(model, points[index : index + 1]), [index])


@drawn(5, 25, sizes=widths, act=acts, seed=seeds)
def test_deeper_layers_change_nothing_before_them(sizes: list[int], act: str, seed: int) -> None:
    model = network(sizes, act, seed)
    points = points_for(model, 3, seed)
    assume_no_kink(model, points, act)
    deeper = nn.Sequential(*model, nn.Tanh(), nn.Linear(sizes[-1], 4).double())
    found = spectra_of(deeper, points)
    last = list(found)[-1]
    assert_same(spectra_of(model, points), {k: v for k, v in found.items() if k != last})
    assert_same(spectra_of(model, points), spectra_of(deeper, points, exclude=(last,)))


@drawn(5, 25, sizes=widths, act=acts, seed=seeds, power=st.integers(-20, 20))
def test_scaling_the_last_weight_scales_its_spectrum(
    sizes: list[int], act: str, seed: int, power: int
) -> None:
    # By a power of two, which rounds nothing; relative counts stay.
    model = network(sizes, act, seed)
    points = points_for(model, 3, seed)
    before = list(spectra_of(model, points).values())[-1]
    weight(model, str(len(model) - 1)).mul_(2.0**power)
    after = list(spectra_of(model, points).values())[-1]
    expected = numbers(before) * 2.0**power
    assert (np.abs(numbers(after) - expected) <= SAME * expected[:, :1]).all()
    for tolerance in (Tolerance(rtol=1e-3), Tolerance(rtol=0.1)):
        assert tolerance.rtol is not None
        distance = np.abs(expected - tolerance.rtol * expected[:, :1])
        assume((distance > SAME * expected[:, :1]).all() or not expected.any())
        first, second = (local_ranks(one, tolerance).counts for one in (before, after))
        assert first.tolist() == second.tolist()


@drawn(5, 25, sizes=widths, seed=seeds)
def test_norms_of_a_chain_are_at_most_the_products(sizes: list[int], seed: int) -> None:
    # Slopes of tanh are at most 1, so |J_l| <= |W_l| ... |W_1|.
    model = network(sizes, "tanh", seed)
    bound = 1.0
    layers = [module for module in model if isinstance(module, nn.Linear)]
    found = spectra_of(model, points_for(model, 3, seed))
    for layer, spectrum in zip(layers, found.values(), strict=True):
        bound *= float(np.linalg.norm(layer.weight.detach().numpy(), 2))
        assert (numbers(spectrum)[:, 0] <= bound * (1 + SAME)).all()
