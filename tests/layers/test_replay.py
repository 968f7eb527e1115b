"""What comes before several sources is run once for all of them, and replays what each would."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from localrank_cli.jacobian.budget import Budget
from localrank_cli.layers.capture import Call
from localrank_cli.layers.positions import Positions
from localrank_cli.layers.replay import Replay, Replays, record, record_all
from localrank_cli.layers.select import Selection
from localrank_cli.spectrum.layer import Request, layer_spectra

DEPTH, WIDTH, TOKENS = 6, 5, 4


class Block(nn.Module):
    """A block with an inner module that returns a tuple, and one that all blocks share."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.inner = _Pair()
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.inner(x)
        found: Tensor = x + self.shared(left.cumsum(1)) * right
        return found


class _Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, float]:
        return torch.tanh(self.one(x)), 0.5


class Network(nn.Module):
    """Blocks of tokens after an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, WIDTH)
        shared = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block(shared) for _ in range(DEPTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return x


def network() -> tuple[Network, Tensor]:
    torch.manual_seed(0)
    return Network().double(), torch.randn(2, TOKENS, 3, dtype=torch.float64)


def wanted() -> dict[Call, Sequence[Call]]:
    """Return a source before each block, inner ones and a second call of a module among them."""
    found: dict[Call, Sequence[Call]] = {
        Call(f"blocks.{i}"): [Call(f"blocks.{i + 1}")] for i in range(DEPTH - 1)
    }
    return found | {Call("blocks.2.inner.one"): [Call("blocks.3")], Call("blocks.0.shared", 3): []}


def same(one: Replay | None, other: Replay | None) -> bool:
    if one is None or other is None:
        return one is other
    pairs = zip(one.outputs, other.outputs, strict=True)
    return set(one.names) == set(other.names) and all(torch.equal(a, b) for a, b in pairs)


def test_one_pass_for_all_sources_records_what_a_pass_for_each_does() -> None:
    model, points = network()
    together = record_all(model, points, wanted())
    for wrt, calls in wanted().items():
        assert same(together[wrt], record(model, points, wrt, calls)), wrt
    fourth = together[Call("blocks.3")]
    assert fourth is not None
    blocks = {f"blocks.{i}" for i in range(3)}
    assert set(fourth.names) == {"embed", "blocks.3.inner"} | blocks


def test_what_does_not_fit_is_recorded_for_each_source() -> None:
    model, points = network()
    for most in (0, 2**20):
        replays = Replays(model, wanted(), most)
        for wrt, calls in wanted().items():
            for first in (0, 1):
                found = replays.take(first, points[first:], wrt)
                assert same(found, record(model, points[first:], wrt, calls))


def spectra(model: nn.Module, points: Tensor, n_blocks: int) -> list[Tensor]:
    layers = tuple(f"blocks.{i}" for i in range(DEPTH - n_blocks, DEPTH))
    selection = Selection(layers, (), "previous", positions=Positions.parse("same"))
    return [one.computed for one in layer_spectra(model, points, Request(selection))]


def test_more_sources_do_not_run_the_beginning_again(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    plain = Block.forward

    def counted(self: Block, x: Tensor) -> Tensor:
        runs.append(self)
        return plain(self, x)

    monkeypatch.setattr(Block, "forward", counted)
    counts = []
    for n_blocks in (2, 5):
        model, points = network()
        spectra(model, points[:1], n_blocks)
        counts.append(sum(one is model.blocks[0] for one in runs))
    assert counts[0] == counts[1] > 0


def test_spectra_are_the_same_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, points = network()
    together = spectra(model, points, 5)
    monkeypatch.setattr(Budget, "replays", property(lambda _: 0))
    alone = spectra(model, points, 5)
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
