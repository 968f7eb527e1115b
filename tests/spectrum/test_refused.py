"""Models and questions without an answer: each is refused in a sentence, and leaves no trace."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from localrank_cli.errors import BudgetError, LayerError, LocalrankError, ModelError
from tests.asking import PLENTY, spectra_of
from tests.cases import Case
from tests.forwards import energy
from tests.networks import Net, ab, embedding, mlp
from tests.traces import unchanged


@dataclass(frozen=True)
class Refused:
    """A case that must fail."""

    name: str
    make: Callable[[], tuple[nn.Module, Tensor]]
    error: type[LocalrankError]
    words: tuple[str, ...]
    layers: tuple[str, ...] = ()
    wrt: str = ""
    memory: int = PLENTY


def random_noise(net: Net, x: Tensor) -> Any:
    return net["b"](torch.tanh(net["a"](x + 1e-4 * torch.randn_like(x))))


def only_where_positive(net: Net, x: Tensor) -> Any:
    hidden = torch.tanh(x)
    return net["b"](net["a"](hidden) if (x > 0).any() else F.pad(hidden, (0, 1)))


def as_long_as_the_point(net: Net, x: Tensor) -> Any:
    return net["b"](net["a"](x[:, (x > 0).any(0)].T.contiguous().expand(-1, 6)))


def some_negative() -> Tensor:
    return torch.stack([torch.rand(6), -torch.rand(6), torch.rand(6)])


def of_growing_length() -> Tensor:
    return torch.stack([torch.tensor([1.0] * k + [-1.0] * (6 - k)) for k in (2, 3, 5)])


REFUSED = (
    Refused("functional_dropout", lambda: (ab(lambda m, x: m["b"](F.dropout(m["a"](x)))),
                                           torch.randn(3, 6)),
            ModelError, ("random in eval mode", "training=self.training")),
    Refused("noise", lambda: (ab(random_noise), torch.randn(3, 6)),
            ModelError, ("random in eval mode", "'a'")),
    Refused("dropout_unseen_at_the_first_point",
            lambda: (ab(lambda m, x: m["b"](m["a"](F.dropout(x)))),
                     torch.cat([torch.zeros(1, 6), torch.ones(3, 6)])),
            ModelError, ("random in eval mode",)),
    Refused("tokens_without_wrt", lambda: (embedding(), torch.randint(11, (3, 4))),
            LayerError, ("integers", "--wrt emb")),
    Refused("integers_without_embedding", lambda: (mlp(4, 3), torch.randint(255, (3, 4))),
            LayerError, ("integers", "--data-scale")),
    Refused("wrong_width", lambda: (nn.Sequential(nn.Tanh(), nn.Linear(4, 3)), torch.randn(3, 5)),
            ModelError, ("forward pass failed in '1' (Linear)", "(1, 5)", "shape")),
    Refused("detached", lambda: (ab(lambda m, x: m["b"](m["a"](x.detach()))), torch.randn(3, 6)),
            LayerError, ("no chosen layer depends on the input", "a, b")),
    Refused("no_layers", lambda: (nn.Sequential(nn.Tanh()), torch.randn(3, 6)),
            LayerError, ("no Linear or Conv layer", "--layers", "0 (Tanh)")),
    Refused("runs_at_some_points", lambda: (ab(only_where_positive), some_negative()),
            LayerError, ("'a' did not run", "must not depend on the point")),
    Refused("another_shape_at_each_point", lambda: (ab(as_long_as_the_point), of_growing_length()),
            ModelError, ("'a' gives shape (3, 7)", "(2, 7)", "--exclude")),
    Refused("no_such_wrt", lambda: (mlp(4, 5, 3), torch.randn(3, 4)),
            LayerError, ("--wrt 9", "0, 1, 2"), wrt="9"),
    Refused("wrt_after_every_layer", lambda: (mlp(4, 5, 3), torch.randn(3, 4)),
            LayerError, ("'0' does not depend on the output of '2'",), layers=("0",), wrt="2"),
    Refused("no_memory", lambda: (mlp(40, 50, 3), torch.randn(3, 40)),
            ModelError, ("'0'", "50 x 40", "62.8 KiB", "--wrt"), memory=40 * 40 * 8 * 3),
    Refused("differentiates_itself_apart", lambda: (
        ab(lambda m, x: energy(m, x.detach())), torch.randn(3, 6)),
        ModelError, ("cannot be differentiated", "--exclude")),
)  # fmt: skip


@pytest.mark.parametrize(
    "refused",
    [pytest.param(one, id=one.name) for one in REFUSED],
)
def test_refused(refused: Refused) -> None:
    case = Case(refused.name, refused.make)
    model, points = case.build()
    with unchanged(model, points), pytest.raises(refused.error) as caught:
        spectra_of(model, points, refused.layers, refused.wrt, memory=refused.memory)
    for words in refused.words:
        assert words in str(caught.value)
    # What does not fit has a line of its own, and so has what does.
    most = 3 if isinstance(caught.value, BudgetError) else 1
    assert len(str(caught.value).splitlines()) <= most


def test_a_point_that_the_model_refuses_is_named() -> None:
    def picky(net: Net, x: Tensor) -> Any:
        if float(x.detach().sum()) > 100:
            raise ValueError("too bright")
        return net["b"](net["a"](x))

    model, points = Case("picky", lambda: (ab(picky), torch.zeros(3, 6))).build()
    points[2] = 50
    with pytest.raises(ModelError, match=r"at point 2 .*ValueError: too bright"):
        spectra_of(model, points)


def test_a_layer_that_runs_at_some_points_can_be_left_out() -> None:
    model, points = Case("some", lambda: (ab(only_where_positive), some_negative())).build()
    assert list(spectra_of(model, points, exclude=("a",))) == ["b"]
