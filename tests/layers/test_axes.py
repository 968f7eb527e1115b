"""Which axis of an output holds its features."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from localrank_cli.layers.axes import Axes, FeatureAxis, find_axes
from localrank_cli.layers.capture import Call
from localrank_cli.layers.setting import analysis_setting
from localrank_cli.layers.survey import survey
from tests.networks import Net


class _Turned(nn.Module):
    """A norm of tokens that turns them to (features, tokens) and back, as PatchTST does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return found


class _Patches(nn.Module):
    """A convolution whose output becomes tokens, as Wav2Vec2 does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 6, 2, stride=2)
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.drop(self.conv(x).transpose(1, 2))
        return found


class _ConvNeXt(nn.Module):
    """A block whose inner layers have the channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.linear = nn.Linear(6, 6)
        self.drop = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.drop(self.linear(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return x + found


CASES: dict[str, tuple[nn.Module, tuple[int, ...], dict[str, int]]] = {
    "norm that turns tokens": (
        nn.Sequential(nn.Linear(3, 6), _Turned(6), nn.Dropout(), nn.Linear(6, 2)),
        (5, 3),
        {"0": 2, "1": 2, "1.norm": 1, "2": 2, "3": 2},
    ),
    "convolution to tokens": (_Patches(), (3, 10), {"conv": 1, "drop": 2}),
    "convolutions of a sequence": (
        nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.AvgPool1d(2), nn.Tanh()),
        (3, 10),
        {"0": 1, "1": 1, "2": 1, "3": 1, "4": 1},
    ),
    "channels last within a block": (
        nn.Sequential(_ConvNeXt(), nn.ReLU()),
        (6, 5, 4),
        {"0": 1, "0.conv": 1, "0.linear": 3, "0.drop": 1, "1": 1},
    ),
    # With axes of equal length, a run of fewer tokens shows a turn.
    "norm that turns tokens, square": (
        nn.Sequential(nn.Linear(3, 6), _Turned(6), nn.Dropout()),
        (6, 3),
        {"0": 2, "1": 2, "1.norm": 1, "2": 2},
    ),
    "convolution to tokens, square": (_Patches(), (3, 12), {"conv": 1, "drop": 2}),
    "channels last within a block, cube": (
        nn.Sequential(_ConvNeXt(), nn.ReLU()),
        (6, 6, 6),
        {"0": 1, "0.conv": 1, "0.linear": 3, "0.drop": 1, "1": 1},
    ),
    # With as many tokens as features, halves are no turn.
    "gated tokens": (nn.Sequential(nn.Linear(3, 8), nn.GLU()), (8, 3), {"0": 2, "1": 2}),
    "gated channels": (nn.Sequential(nn.Conv1d(3, 8, 1), nn.GLU(1)), (3, 8), {"0": 1, "1": 1}),
}


def _axes_of(model: nn.Module, shape: tuple[int, ...]) -> tuple[dict[Call, Axes], Axes]:
    """Return the axes of each call's output, and of the input, at a random point."""
    point = torch.randn(1, *shape, dtype=torch.float64)
    model = model.double()
    with analysis_setting(model, torch.float64):
        return find_axes(model, point, survey(model, point).records)


@pytest.mark.parametrize("name", CASES)
def test_the_feature_axis(name: str) -> None:
    model, shape, wanted = CASES[name]
    found, _ = _axes_of(model, shape)
    assert {call.label: axes.feature for call, axes in found.items()} == wanted


def _taken(change: Callable[[Tensor], Tensor], layer: nn.Module) -> nn.Module:
    return Net(lambda m, x: m["layer"](change(x)), layer=layer)


# The network, the shape of a point, and the feature axis of the input for a batch of one.
INPUTS: dict[str, tuple[nn.Module, tuple[int, ...], int | None]] = {
    "itself": (nn.Sequential(nn.Conv1d(3, 4, 1)), (3, 6), 1),
    "turned for a convolution": (
        _taken(lambda x: x.transpose(1, 2), nn.Conv1d(3, 4, 3)), (6, 3), 2,
    ),
    "turned for a linear layer": (
        _taken(lambda x: x.permute(0, 2, 3, 1), nn.Linear(3, 4)), (3, 4, 5), 1,
    ),
    "pixels as tokens": (
        _taken(lambda x: x.flatten(2).transpose(1, 2), nn.Linear(3, 4)), (3, 4, 5), 1,
    ),
    "tokens first": (_taken(lambda x: x.transpose(0, 1), nn.Linear(3, 4)), (6, 3), 2),
    "some of the features": (_taken(lambda x: x[..., :2], nn.Linear(2, 4)), (6, 3), 2),
    "turned and copied": (
        _taken(lambda x: x.permute(0, 3, 1, 2).contiguous(), nn.Conv2d(3, 4, 1)), (4, 5, 3), 3,
    ),
    "scaled": (_taken(lambda x: x / 255, nn.Linear(3, 4)), (4, 5, 3), 3),
    "by name": (Net(lambda m, x: m["a"](input=x), a=nn.Linear(3, 4)), (4, 5, 3), 3),
    "one channel added": (_taken(lambda x: x.unsqueeze(1), nn.Conv2d(1, 4, 3)), (5, 6), None),
    # With axes of equal length, only the derivative shows a turn.
    "turned and copied, square": (
        _taken(lambda x: x.transpose(1, 2).contiguous(), nn.Linear(5, 4)), (5, 5), 1,
    ),
    "turned and scaled, square": (
        _taken(lambda x: (x / 2 - 1).transpose(1, 2) * 2, nn.Conv1d(5, 4, 1)), (5, 5), 2,
    ),
    "scaled, square": (_taken(lambda x: x / 2, nn.Linear(5, 4)), (5, 5), 2),
    "turned and copied, cube": (
        _taken(lambda x: x.permute(0, 3, 1, 2).contiguous(), nn.Conv2d(5, 4, 1)), (5, 5, 5), 3,
    ),
    "flattened": (nn.Sequential(nn.Flatten(), nn.Linear(60, 4)), (3, 4, 5), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", INPUTS)
def test_the_inputs_feature_axis_is_that_which_its_first_consumer_sees(name: str) -> None:
    model, shape, wanted = INPUTS[name]
    _, axes = _axes_of(model, shape)
    assert (axes.batch, axes.feature) == (0, wanted)


def _table(turn: bool) -> nn.Module:
    """Return a network that takes no fewer than 6 tokens, for it adds a table of places."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.out = nn.Linear(3, 6), nn.Identity()
            self.table = nn.Parameter(torch.randn(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            x = self.linear(x) + self.table
            found: Tensor = self.out(x.mT if turn else x)
            return found

    return Table()


def test_an_axis_that_nothing_shows_is_a_guess() -> None:
    def mixed(x: Tensor) -> Tensor:
        return x @ x.mT

    _, square = _axes_of(_taken(mixed, nn.Linear(5, 4)), (5, 5))
    assert square.is_guess
    for change, shape in ((lambda x: x / 2, (5, 5)), (lambda x: x, (5, 5))):
        _, clear = _axes_of(_taken(change, nn.Linear(shape[1], 4)), shape)
        assert not clear.is_guess
    for turn in (False, True):
        found, whole = _axes_of(_table(turn), (6, 3))
        assert {call.name for call, one in found.items() if one.is_guess} == {"out"}
        assert not whole.is_guess


def test_an_axis_that_is_given_is_no_guess() -> None:
    point = torch.randn(1, 6, 3, dtype=torch.float64)
    model = _table(turn=True).double()
    with analysis_setting(model, torch.float64):
        records = survey(model, point).records
        found, _ = find_axes(model, point, records, [FeatureAxis(1, "out")])
    assert (found[Call("out")].feature, found[Call("out")].is_guess) == (1, False)
