"""The past held: what is not causal goes the dense way, and nothing else does."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from localrank_cli.jacobian.engine import Modes
from localrank_cli.layers.positions import Positions
from localrank_cli.layers.select import Selection
from localrank_cli.spectrum.layer import LayerSpectrum, Request, layer_spectra
from tests.naive import naive_jacobians
from tests.spectrum.test_positions import CLOSE, PrefixDecoder

TOKENS, WIDTH = 6, 8
PREFIXED = 1  # the first token of points whose tokens see one another
LAYERS = ("blocks.0", "blocks.1", "pool", "head")
NOTE = "all tokens are computed at once"

pytestmark = pytest.mark.usefixtures("transformers_cache")


@pytest.fixture(scope="module")
def transformers_cache() -> None:
    pytest.importorskip("transformers.cache_utils")


class Mixed(PrefixDecoder):
    """A decoder with a layer whose past is not in the cache.

    Points that begin with a certain token are a prefix, in which all tokens see one another.
    """

    def __init__(self) -> None:
        super().__init__(0, WIDTH)
        self.pool = nn.Linear(WIDTH, WIDTH)

    def forward(self, inputs: Tensor, past_key_values: Any = None, use_cache: bool = False) -> Any:
        past = past_key_values.get_seq_length() if use_cache else 0
        total = past + inputs.shape[1]
        row, column = torch.arange(past, total)[:, None], torch.arange(total)
        both = torch.tensor([bool(one[0] == PREFIXED) for one in inputs])[:, None, None]
        mask = (column <= row) | (both & (past == 0))
        x = self.embed(inputs)
        for block in self.blocks:
            x = block(x, mask, past_key_values if use_cache else None)
        self.pool(x + x.square().mean(1, keepdim=True))
        return self.head(x)


def network() -> Mixed:
    torch.manual_seed(0)
    return Mixed().double()


def points_of(*first: int) -> Tensor:
    ids = torch.randint(2, 32, (len(first), TOKENS), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = torch.tensor(first)
    return ids


def spectra(
    model: nn.Module, points: Tensor, layers: tuple[str, ...], kind: str, modes: Modes
) -> list[LayerSpectrum]:
    selection = Selection(layers, (), "embed", positions=Positions.parse(kind))
    return layer_spectra(model, points, Request(selection, seed=0), modes)


def check(
    model: nn.Module, points: Tensor, layers: tuple[str, ...], kind: str, modes: Modes
) -> None:
    truth = naive_jacobians(model, points, layers, "embed")
    for spectrum in spectra(model, points, layers, kind, modes):
        rows = spectrum.computed.reshape(len(points), spectrum.n_positions, -1).numpy()
        by_token = truth[spectrum.layer].reshape(len(points), TOKENS, -1, TOKENS, WIDTH)
        for point, jacobian in enumerate(by_token):
            drawn = Positions.parse(kind).of_points((TOKENS,), 0, [point])[0].tolist()
            for row, i in zip(rows[point], drawn, strict=True):
                values = np.linalg.svd(jacobian[i, :, i], compute_uv=False)
                assert np.abs(row - values).max() <= CLOSE * values[0], spectrum.layer


MORE = ("same:2", "first")


def held(modes: Modes) -> set[str]:
    return {route.split(" ")[0] for route in modes.routes if "past held" in route}


@pytest.mark.parametrize(
    "kind", ["same", "last", *(pytest.param(kind, marks=pytest.mark.long) for kind in MORE)]
)
def test_a_layer_that_is_not_causal_goes_the_dense_way_alone(kind: str) -> None:
    modes = Modes()
    check(network(), points_of(5, 6, 7), LAYERS, kind, modes)
    # At the first token nothing is held, and later ones are missing in a mean.
    assert held(modes) == {"blocks.0", "blocks.1", "head"}
    (note,) = modes.notes
    assert NOTE in note
    assert "pool" in note
    assert "blocks" not in note
    # Causal layers are still pushed through one by one, at further checkpoints, too.
    check(network(), points_of(8, 9), LAYERS, kind, modes)
    assert held(modes) == {"blocks.0", "blocks.1", "head"}
    assert len(modes.notes) == 1


@pytest.mark.parametrize("first", [(PREFIXED, 5, 6), (5, PREFIXED, 6), (PREFIXED, 5, PREFIXED)])
def test_a_point_that_is_not_causal_goes_the_dense_way_alone(first: tuple[int, ...]) -> None:
    modes = Modes()
    check(network(), points_of(*first), ("blocks.0", "blocks.1", "head"), "same:4", modes)
    assert held(modes) == {"blocks.0", "blocks.1", "head"}
    count = first.count(PREFIXED)
    assert all(f"at {count} of 3 points" in route for route in modes.routes)
    assert NOTE in modes.notes[0]


def test_points_that_are_not_causal_everywhere() -> None:
    modes = Modes()
    check(network(), points_of(PREFIXED, PREFIXED), ("blocks.1", "head"), "same:4", modes)
    assert not held(modes)
    check(network(), points_of(5, 6), ("blocks.1", "head"), "same:4", modes)
    assert held(modes) == {"blocks.1", "head"}


def test_a_point_that_is_not_finite_is_not_taken_for_one_that_is_not_causal() -> None:
    model = network()
    with torch.no_grad():
        model.embed.weight[31] = torch.nan
    points = points_of(5, 6, 7)
    points[points == 31] = 30
    points[1, 2] = 31
    modes = Modes()
    found = spectra(model, points, ("blocks.1", "head"), "last", modes)
    for spectrum in found:
        assert spectrum.finite.tolist() == [True, False, True]
    assert held(modes) == {"blocks.1", "head"}
    assert not modes.notes


class Faint(PrefixDecoder):
    """A decoder whose last layer is nearly the identity, and a little of all tokens besides."""

    def __init__(self) -> None:
        super().__init__(0, WIDTH)
        self.faint = _Faint(WIDTH)

    def forward(self, inputs: Tensor, past_key_values: Any = None, use_cache: bool = False) -> Any:
        x = self.embed(inputs)
        return self.faint(x)


class _Faint(nn.Linear):
    def __init__(self, width: int) -> None:
        super().__init__(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-8 * super().forward(x) + 1e-12 * x * x.mean(1, keepdim=True)


@pytest.mark.parametrize("residual", [False, True])
def test_the_residual_part_is_the_same_and_not_only_j(residual: bool) -> None:
    """Without the other tokens, J is off by 1e-12 of its size, and J - 1 by 1e-4."""
    torch.manual_seed(0)
    model, points = Faint().double(), points_of(5, 6)
    selection = Selection(
        ("faint",), (), "embed", positions=Positions.parse("last"), residual=residual
    )
    modes = Modes()
    (found,) = layer_spectra(model, points, Request(selection, seed=0), modes)
    assert ("faint" in held(modes)) is not residual
    truth = naive_jacobians(model, points, ["faint"], "embed")["faint"]
    for row, whole in zip(found.computed.numpy(), truth, strict=True):
        own = whole[-WIDTH:, -WIDTH:] - residual * np.eye(WIDTH)
        values = np.linalg.svd(own, compute_uv=False)
        # J is rounded to 1e-16, which is 1e-8 of J - 1.
        assert np.abs(row - values).max() <= 1e-6 * values[0]
