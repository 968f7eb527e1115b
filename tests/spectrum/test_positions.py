"""Jacobians of single positions and of pairs, against parts of naive whole Jacobians."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from localrank_cli.errors import LayerError
from localrank_cli.jacobian.engine import Modes
from localrank_cli.jacobian.metric_factor import PositionFactors
from localrank_cli.layers import convolution
from localrank_cli.layers.positions import Positions
from localrank_cli.layers.select import Selection, named_call
from localrank_cli.spectrum.layer import LayerSpectrum, Request, layer_spectra
from tests.naive import Array, naive_jacobians, naive_spectra

# Of the largest singular value of the whole Jacobian. Two orders of summation differ by some ulps
# per layer; a wrong entry, row or position shows at 1e-3.
CLOSE = 1e-10
SEED, INDICES = 3, (5, 11)  # of the positions; indices of the points in their data


@dataclass(frozen=True)
class Network:
    """A network, and where the outputs of its layers have their features, as a person reads it."""

    build: Callable[[], tuple[nn.Module, Tensor]]
    layers: dict[str, str]  # name -> "last" or "first"
    wrt: str
    source: str = "last"
    has_past: bool = False


def _of_transformers(name: str, shape: tuple[int, ...] = (), **hints: Any) -> Any:
    def build() -> tuple[nn.Module, Tensor]:
        transformers = pytest.importorskip("transformers")
        from tests.families.shrink import VOCAB, small_config
        from tests.families.table import FAMILIES

        family = FAMILIES[name]
        config = small_config(transformers.CONFIG_MAPPING[name], dict(family.hints) | hints)
        config.use_cache = False
        torch.manual_seed(1)
        choices = {"attn_implementation": "eager"}
        kind = getattr(transformers, family.architecture)
        if hasattr(kind, "get_correct_experts_implementation"):
            choices["experts_implementation"] = "eager"
        model = kind._from_config(config, **choices)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        if shape:
            return model.double().eval(), torch.randn(2, *shape, dtype=torch.float64)
        return model.double().eval(), torch.randint(4, VOCAB, (2, 6))

    return build


def _resnet() -> tuple[nn.Module, Tensor]:
    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.one = nn.Conv2d(width, width, 3, padding=1)
            self.norm = nn.BatchNorm2d(width)
            self.two = nn.Conv2d(width, width, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            inner: Tensor = self.two(torch.relu(self.norm(self.one(x))))
            return torch.relu(x + inner)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Block(4), nn.Conv2d(4, 6, 1), Block(6))
    return model.double().eval(), torch.randn(2, 3, 4, 5, dtype=torch.float64)


def _lstm() -> tuple[nn.Module, Tensor]:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Linear(3, 4)
            self.lstm = nn.LSTM(4, 5)  # sequence first
            self.leave = nn.Linear(5, 7)

        def forward(self, x: Tensor) -> Tensor:
            seen, _ = self.lstm(self.enter(x).transpose(0, 1))
            left: Tensor = self.leave(seen)
            return left

    torch.manual_seed(0)
    return Recurrent().double(), torch.randn(2, 6, 3, dtype=torch.float64)


def _mlp() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 9)
    ).double(), torch.randn(2, 5, dtype=torch.float64)


class PrefixDecoder(nn.Module):
    """Attention in which the first `prefix` tokens see one another; it takes a cache."""

    def __init__(self, prefix: int, width: int = 8) -> None:
        super().__init__()
        self.prefix = prefix
        self.embed = nn.Embedding(32, width)
        self.blocks = nn.ModuleList(_Attention(width, index) for index in range(2))
        self.head = nn.Linear(width, 32)

    def forward(self, inputs: Tensor, past_key_values: Any = None, use_cache: bool = False) -> Any:
        past = past_key_values.get_seq_length() if use_cache else 0
        total = past + inputs.shape[1]
        row = torch.arange(past, total)[:, None]
        column = torch.arange(total)
        mask = (column <= row) | ((row < self.prefix) & (column < self.prefix))
        x = self.embed(inputs)
        for block in self.blocks:
            x = block(x, mask, past_key_values if use_cache else None)
        return self.head(x)


class _Attention(nn.Module):
    def __init__(self, width: int, index: int) -> None:
        super().__init__()
        self.three = nn.Linear(width, 3 * width)
        self.index = index

    def forward(self, x: Tensor, mask: Tensor, past: Any) -> Tensor:
        q, k, v = self.three(x).chunk(3, dim=-1)
        if past is not None:
            k, v = past.update(k[:, None], v[:, None], self.index)
            k, v = k[:, 0], v[:, 0]
        scores = (q @ k.mT).masked_fill(~mask, -torch.inf)
        seen: Tensor = scores.softmax(-1) @ v
        return x + seen


def _prefixed(prefix: int) -> Any:
    def build() -> tuple[nn.Module, Tensor]:
        pytest.importorskip("transformers.cache_utils")
        torch.manual_seed(0)
        return PrefixDecoder(prefix).double(), torch.randint(0, 32, (2, 6))

    return build


BLOCKS = {"model.layers.1": "last", "model.layers.1.mlp.up_proj": "last", "lm_head": "last"}
NETWORKS = {
    "gpt2": Network(
        _of_transformers("gpt2"),
        {"transformer.h.1": "last", "transformer.h.1.attn.c_attn": "last", "lm_head": "last"},
        "transformer.h.0",
        has_past=True,
    ),
    "gpt_neox": Network(
        _of_transformers("gpt_neox"),
        {"gpt_neox.layers.1": "last", "lm_head": "last"},
        "gpt_neox.layers.0",
        has_past=True,
    ),
    "llama": Network(
        _of_transformers("llama", num_key_value_heads=1), BLOCKS, "model.layers.0", has_past=True
    ),
    "mistral": Network(
        _of_transformers("mistral", sliding_window=3), BLOCKS, "model.layers.0", has_past=True
    ),
    "mixtral": Network(
        _of_transformers("mixtral"),
        {"model.layers.1": "last", "lm_head": "last"},
        "model.layers.0",
        has_past=True,
    ),
    "bert": Network(
        _of_transformers("bert"),
        {"bert.encoder.layer.1": "last", "bert.encoder.layer.1.intermediate.dense": "last"},
        "bert.encoder.layer.0",
    ),
    "vit": Network(
        _of_transformers("vit", (3, 16, 16)),
        {"vit.layers.1": "last", "vit.layernorm": "last"},
        "vit.layers.0",
    ),
    "swin": Network(
        _of_transformers("swin", (3, 16, 16)),
        {
            "swin.encoder.layers.0.blocks.0": "last",
            "swin.encoder.layers.0.blocks.0.mlp.fc1": "last",
        },
        "swin.embeddings",
    ),
    "mamba": Network(
        _of_transformers("mamba"),
        {"backbone.layers.1": "last", "lm_head": "last"},
        "backbone.layers.0",
    ),
    "resnet": Network(_resnet, {"1": "first", "2": "first", "3": "first"}, "0", "first"),
    "resnet of the input": Network(_resnet, {"0": "first", "1": "first"}, "", "first"),
    "lstm": Network(_lstm, {"lstm": "last", "leave": "last"}, "enter"),
    "mlp": Network(_mlp, {"2": "last", "4": "last"}, "0"),
    "causal": Network(
        _prefixed(0), {"blocks.1": "last", "head": "last"}, "blocks.0", has_past=True
    ),
    "prefix": Network(_prefixed(4), {"blocks.1": "last", "head": "last"}, "blocks.0"),
}
# Of a single position there is one Jacobian, and no more can be asked for.
SINGLE = {"mlp": {"same:3": "same", "last-each:2": "last-each", "each:2": "each"}}
KINDS = ("same", "same:3", "first", "last", "last-all", "last-each:2", "each:2")
# Other families of transformers, whose positions are found as those of gpt2 are.
ALIKE = ("gpt_neox", "llama", "mistral", "mixtral", "mamba")
# A prefix decoder and an encoder whose past can be held at the end alone.
AT_THE_END = {("prefix", "last"), ("bert", "last")}


def is_left_to_test_long(name: str, kind: str) -> bool:
    """All kinds of one transformer and of convolutions are tested each time; others in turn."""
    if name in ("gpt2", "resnet") or (name, kind) in AT_THE_END:
        return False
    turn = 0 if name in ALIKE else list(NETWORKS).index(name)
    return kind != KINDS[turn % len(KINDS)]


@cache
def built(name: str) -> tuple[nn.Module, Tensor]:
    return NETWORKS[name].build()


@dataclass(frozen=True)
class _Shapes:
    output: tuple[int, ...]
    source: tuple[int, ...]


@cache
def truth(name: str) -> dict[str, tuple[Array, _Shapes]]:
    """Return layer -> whole Jacobians and the shapes of the tensors for one point."""
    network, (model, points) = NETWORKS[name], built(name)
    layers = list(network.layers)
    with _in_float64(model):
        jacobians = naive_jacobians(model, points, layers, network.wrt)
    shapes = _shapes(model, points[:1], [*layers, network.wrt])
    return {
        layer: (jacobians[layer], _Shapes(shapes[layer], shapes[network.wrt])) for layer in layers
    }


def _in_float64(model: nn.Module) -> Any:
    pytest.importorskip("transformers")
    from tests.families.truth import (
        asking_by_default,
        float32_means_float64,
    )

    return float32_means_float64(asking_by_default(model))


def _shapes(model: nn.Module, point: Tensor, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    found = {"": tuple(point.shape)}
    handles = []
    for name in filter(None, names):

        def keep(_: object, __: object, output: Any, name: str = name) -> None:
            first = output[0] if isinstance(output, tuple) else output
            found.setdefault(name, tuple(first.shape))

        handles.append(model.get_submodule(name).register_forward_hook(keep))
    with torch.no_grad():
        model(point)
    for handle in handles:
        handle.remove()
    return found


def by_position(whole: Array, shapes: _Shapes, output: str, source: str) -> Array:
    """Return J as (positions of the output, features, positions of the source, features)."""
    moved = whole.reshape(*shapes.output, *shapes.source)
    n = len(shapes.output)
    # Axes of length 1 are those of the points, wherever they are.
    moved = np.moveaxis(moved, _feature(shapes.output, output), n - 1)
    moved = np.moveaxis(moved, n + _feature(shapes.source, source), -1)
    features = moved.shape[n - 1], moved.shape[-1]
    return moved.reshape(-1, features[0], whole.shape[1] // features[1], features[1])


def _feature(shape: tuple[int, ...], where: str) -> int:
    others = [axis for axis, length in enumerate(shape) if length != 1]
    return others[0] if where == "first" else others[-1]


def expected(
    kind: str, jacobian: Array, grid: tuple[int, ...], index: int, factors: Array | None = None
) -> list[Array]:
    """Return the matrices of one point, cut from its whole Jacobian.

    `factors` are those of metrics of the source's positions.
    """
    positions = Positions.parse(kind)
    drawn = positions.of_points(grid, SEED, [index])[0].tolist()
    if factors is not None:
        jacobian = np.stack([jacobian[:, :, j] @ one for j, one in enumerate(factors)], axis=2)
    end = jacobian.shape[0] - 1
    if positions.kind in ("same", "first", "last"):
        return [jacobian[i, :, i] for i in drawn]
    if positions.kind == "last-each":
        return [jacobian[end, :, j] for j in drawn]
    return [jacobian[i].reshape(jacobian.shape[1], -1) for i in drawn]


def spectra_of(
    name: str, selection: Selection, memory: int = 2**31, modes: Modes | None = None
) -> list[LayerSpectrum]:
    model, points = built(name)
    request = Request(selection, memory=memory, seed=SEED, indices=INDICES)
    return layer_spectra(model, points, request, modes)


def check(
    name: str,
    kind: str,
    spectra: Sequence[LayerSpectrum],
    residual: bool = False,
    factors: Array | None = None,
) -> None:
    network = NETWORKS[name]
    assert spectra
    for spectrum in spectra:
        whole, shapes = truth(name)[spectrum.layer]
        of = network.layers[spectrum.layer], network.source
        if residual:
            whole = whole - np.eye(whole.shape[1])
        scale = np.linalg.norm(whole[0])
        rows = spectrum.computed.numpy().reshape(len(whole), spectrum.n_positions, -1)
        for point, index in enumerate(INDICES):
            jacobian = by_position(whole[point], shapes, *of)
            shape = shapes.source if kind.startswith("last-each") else shapes.output
            where = of[1] if kind.startswith("last-each") else of[0]
            grid = tuple(
                n for axis, n in enumerate(shape) if n != 1 and axis != _feature(shape, where)
            )
            matrices = expected(kind, jacobian, grid, index, factors)
            assert len(matrices) == spectrum.n_positions
            assert (spectrum.n_out, spectrum.n_in) == matrices[0].shape
            for row, matrix in zip(rows[point], matrices, strict=True):
                values = np.linalg.svd(matrix, compute_uv=False)
                assert np.abs(row - values).max() <= CLOSE * scale


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=pytest.mark.long if is_left_to_test_long(name, kind) else ())
        for name in NETWORKS
        for kind in KINDS
    ],
)
def test_positions_are_parts_of_the_whole_jacobian(name: str, kind: str) -> None:
    network, modes = NETWORKS[name], Modes()
    kind = SINGLE.get(name, {}).get(kind, kind)
    layers = tuple(network.layers)
    if Positions.parse(kind).needs_equal_grids and name == "resnet of the input":
        layers = ("0", "1")
    selection = Selection(layers, (), network.wrt, positions=Positions.parse(kind))
    check(name, kind, spectra_of(name, selection, modes=modes))
    if Positions.parse(kind).needs_equal_grids:
        held = all("past held" in route for route in modes.routes)
        # From the end of its prefix on, a prefix decoder is causal too. Of an encoder, the block
        # after the source sees the other tokens' keys and values as they are held fixed.
        assert held == (network.has_past or (name, kind) in AT_THE_END), modes.routes


@pytest.mark.cover(1)
@pytest.mark.parametrize(
    ("name", "kind", "residual"),
    [
        # Of llama alone the naive Jacobians take as long as all others.
        pytest.param(name, kind, residual, marks=pytest.mark.long if name == "llama" else ())
        for name in ("gpt2", "bert", "resnet", "lstm", "llama")
        for kind in ("same", "same:3", "last", "last-each:2")
        for residual in (False, True)
        if not (residual and name == "lstm")  # no layer has the shape of the source
    ],
)
def test_each_position_has_a_metric_of_its_own(name: str, kind: str, residual: bool) -> None:
    network, (model, points) = NETWORKS[name], built(name)
    # The first layer has the shape of the source, as J - 1 needs.
    layers = [next(iter(network.layers))] if residual else list(network.layers)
    shape = truth(name)[layers[0]][1].source
    n_features = shape[_feature(shape, network.source)]
    n_positions = int(np.prod(shape)) // n_features
    generator = torch.Generator().manual_seed(0)
    for width in (n_features, 3):
        factors = torch.randn(
            n_positions, n_features, width, generator=generator, dtype=torch.float64
        )
        metric = PositionFactors(factors, torch.arange(n_positions), 99)
        selection = Selection(
            tuple(layers), (), network.wrt, positions=Positions.parse(kind), residual=residual
        )
        source = named_call(model, network.wrt)
        request = Request(selection, seed=SEED, indices=INDICES, metrics={source: metric})
        modes = Modes()
        found = layer_spectra(model, points, request, modes)
        check(name, kind, found, residual=residual, factors=factors.numpy())
        if network.has_past and Positions.parse(kind).needs_equal_grids:
            assert all("past held" in route for route in modes.routes)


@pytest.mark.parametrize("kind", ["each:1", "each:2", "same:2", "last-all", "all"])
def test_convolutions_that_are_cut_to_what_a_position_sees(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are left to torch where they are as small as here."""
    monkeypatch.setattr(convolution, "_FEWEST_PRODUCTS", 0)
    name = "resnet of the input" if kind.startswith("each") else "resnet"
    selection = Selection(
        tuple(NETWORKS[name].layers), (), NETWORKS[name].wrt, positions=Positions.parse(kind)
    )
    found = spectra_of(name, selection)
    if kind != "all":
        check(name, kind, found)
    monkeypatch.undo()
    for one, other in zip(found, spectra_of(name, selection), strict=True):
        assert (one.computed - other.computed).abs().max() <= CLOSE * other.computed.max()


@pytest.mark.cover(1)
@pytest.mark.parametrize("kind", ["same", "last", "last-each:2", "last-all", "each:2"])
@pytest.mark.parametrize("name", ["gpt2", "bert", "resnet", "mlp"])
def test_the_residual_part_is_j_less_the_identity(name: str, kind: str) -> None:
    network = NETWORKS[name]
    kind = SINGLE.get(name, {}).get(kind, kind)
    layer = next(iter(network.layers))
    selection = Selection((layer,), (), network.wrt, positions=Positions.parse(kind), residual=True)
    check(name, kind, spectra_of(name, selection), residual=True)


@pytest.mark.parametrize("name", ["gpt2", "resnet"])
@pytest.mark.parametrize(
    ("kind", "memory"),
    [
        ("each:2", 400_000),
        ("same:3", 60_000),
        # The other two pairs.
        pytest.param("each:2", 60_000, marks=pytest.mark.long),
        pytest.param("same:3", 400_000, marks=pytest.mark.long),
    ],
)
def test_little_memory_gives_the_same(name: str, kind: str, memory: int) -> None:
    """In groups of layers and positions, and at last in blocks of one Jacobian."""
    network = NETWORKS[name]
    layers = list(network.layers)[: -1 if name == "gpt2" else None]  # its head has many outputs
    selection = Selection(tuple(layers), (), network.wrt, positions=Positions.parse(kind))
    check(name, kind, spectra_of(name, selection, memory))


@pytest.mark.parametrize(
    "name", ["gpt2", pytest.param("llama", marks=pytest.mark.long), "resnet", "lstm", "mlp"]
)
def test_each_pair_of_several_sources_is_that_of_the_source_alone(name: str) -> None:
    network = NETWORKS[name]
    last = list(network.layers)[-1]
    sources = [network.wrt, next(iter(network.layers))]
    modes = Modes()
    found = spectra_of(name, Selection((last,), (), ",".join(filter(None, sources))), modes=modes)
    assert [one.wrt for one in found] == sources
    for source in sources:
        assert any(route.startswith(f"from {source}: {last}: ") for route in modes.routes)
    for spectrum in found:
        (alone,) = spectra_of(name, Selection((last,), (), spectrum.wrt))
        torch.testing.assert_close(spectrum.computed, alone.computed, rtol=0, atol=CLOSE)


# The network, a layer whose batch axis holds more than points, and a source.
MERGED = {
    "windows": ("swin", "swin.encoder.layers.0.blocks.0.attention.q_proj", "swin.embeddings"),
    "router": ("mixtral", "model.layers.0.mlp.gate", "model.embed_tokens"),
}


@pytest.mark.parametrize("name", MERGED)
def test_outputs_without_an_axis_of_the_points_have_whole_jacobians_alone(name: str) -> None:
    network, layer, wrt = MERGED[name]
    model, points = built(network)
    with _in_float64(model):
        whole = naive_jacobians(model, points, [layer], wrt)[layer]
    (spectrum,) = spectra_of(network, Selection((layer,), (), wrt))
    values = np.linalg.svd(whole, compute_uv=False)
    assert np.abs(spectrum.computed.numpy() - values).max() <= CLOSE * values.max()
    for kind in ("same", "last-all"):
        parts = Selection((layer,), (), wrt, positions=Positions.parse(kind))
        with pytest.raises(LayerError, match="have no separate point axis"):
            spectra_of(network, parts)


class _ByName(nn.Sequential):
    """Its last layer is given its input by name."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self[0](x)).cumsum(1)
        found: Tensor = self[1](input=hidden)
        return found


class _Hypernetwork(nn.Sequential):
    """Its last layer runs with weights that depend on the input."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self[0](x))
        own = self[1].weight
        assert isinstance(own, Tensor)
        weight = {"weight": own * hidden.mean()}
        found: Tensor = torch.func.functional_call(self[1], weight, (hidden,))
        return found


@pytest.mark.parametrize("kind", [_ByName, _Hypernetwork])
@pytest.mark.parametrize("positions", ["same", "each:2"])
def test_a_layer_that_runs_otherwise_than_its_weight_says(
    kind: type[nn.Sequential], positions: str
) -> None:
    """It does not enter through the triangular factor of that weight."""
    torch.manual_seed(0)
    model = kind(nn.Linear(3, 4), nn.Linear(4, 9)).double()
    points = torch.randn(1, 5, 3, dtype=torch.float64)
    whole = naive_jacobians(model, points, ["1"], "0")["1"][0]
    selection = Selection(("1",), (), "0", positions=Positions.parse(positions))
    (spectrum,) = layer_spectra(model, points, Request(selection, seed=SEED, indices=(5,)))
    jacobian = by_position(whole, _Shapes((1, 5, 9), (1, 5, 4)), "last", "last")
    matrices = expected(positions, jacobian, (5,), 5)
    for row, matrix in zip(spectrum.computed.numpy(), matrices, strict=True):
        values = np.linalg.svd(matrix, compute_uv=False)
        assert np.abs(row - values).max() <= CLOSE * np.linalg.norm(whole)


def test_the_factor_of_a_weight_is_computed_once_for_all_sources(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    factored = []
    qr = torch.linalg.qr

    def count(matrix: Tensor, **options: Any) -> Any:
        factored.append(tuple(matrix.shape))
        return qr(matrix, **options)

    monkeypatch.setattr(torch.linalg, "qr", count)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 9)).double()
    selection = Selection(("3",), (), "0,1,2", positions=Positions.parse("same"))
    found = layer_spectra(model, torch.randn(2, 5, 3, dtype=torch.float64), Request(selection))
    assert [one.wrt for one in found] == ["0", "1", "2"]
    assert factored.count((9, 4)) == 1


@pytest.mark.parametrize("kind", ["same", "last-each"])
@pytest.mark.parametrize(("inner", "outer"), [(4, 200), (200, 4)])
def test_one_position_too_large_to_hold_varies_its_own_part_of_the_source(
    inner: int, outer: int, kind: str
) -> None:
    """In blocks of rows, or of columns, and never with the columns of other positions."""

    class Product(nn.Module):  # no Linear, which would enter through its triangular factor
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(outer, inner))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x.cumsum(1) @ self.weight.T / 4)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, inner), Product()).double()
    points = torch.randn(1, 3, 3, dtype=torch.float64)
    positions = Positions.parse(kind)
    selection = Selection(("1",), (), "0", positions=positions)

    def found(memory: int) -> Tensor:
        (spectrum,) = layer_spectra(model, points, Request(selection, memory=memory))
        return spectrum.computed

    held = found(2**30)
    # A third of this does not hold the 6,400 bytes of the Jacobian.
    in_blocks = found(4000)
    torch.testing.assert_close(in_blocks, held, rtol=0, atol=CLOSE * float(held.max()))


class _Checkpointed(nn.Module):
    """Runs its middle by torch's `checkpoint`, or plainly."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.enter, self.leave = nn.Linear(3, 4), nn.Linear(4, 5)
        self.middle = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        if self.kind == "plain":
            x = self.middle(x)
        else:
            x = checkpoint(self.middle, x, use_reentrant=self.kind == "reentrant")
        found: Tensor = self.leave(torch.tanh(x).cumsum(1))
        return found


@pytest.mark.cover(1)
@pytest.mark.parametrize("positions", ["all", "same:2", "last-all"])
@pytest.mark.parametrize("wrt", ["enter", "middle.0", "middle"])
@pytest.mark.parametrize("kind", ["reentrant", "not reentrant"])
def test_what_a_network_recomputes_is_differentiated(kind: str, wrt: str, positions: str) -> None:
    layers = ("leave",) if wrt == "middle" else ("middle.2", "leave")
    found = []
    for one in (kind, "plain"):
        torch.manual_seed(0)
        model, points = _Checkpointed(one).double(), torch.randn(2, 5, 3, dtype=torch.float64)
        if one == "plain" and positions == "all":
            values = naive_spectra(naive_jacobians(model, points, layers, wrt))
            found.append([torch.from_numpy(values[layer]) for layer in layers])
            continue
        selection = Selection(layers, (), wrt, positions=Positions.parse(positions))
        spectra = layer_spectra(model, points, Request(selection, seed=SEED, indices=INDICES))
        found.append([spectrum.computed for spectrum in spectra])
    torch.testing.assert_close(*found, rtol=0, atol=CLOSE)
