"""Which layers can be factored, and the reasons of the others."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from localrank_cli.compress.eligible import exact_factors, find_layers
from localrank_cli.errors import ModelError
from localrank_cli.layers.setting import analysis_setting
from tests.compress.cases import convolutional, mlp, normal, run


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(self.embed(x)))
        return found


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.again = nn.Linear(8, 8)
        self.unused = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.again(self.first(x)).tanh())


class Reader(nn.Module):
    """Reads a weight while it trains, and the shape of another one."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(8, 8)
        self.asked = nn.Linear(8, 8)
        self.free = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.read.weight.T + self.read.bias if self.training else self.read(x)
        return self.free(self.asked(x) / self.asked.in_features)


def normed() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 8))


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].register_forward_hook(lambda *found: 2 * found[-1])
    return model


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 25, 8)
    )


READ = "its weight is also read outside its own forward pass"
REASONS: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, str]]] = {
    "tied": (Tied, torch.arange(8)[None].expand(3, 8), {"head": "tied"}),
    "twice": (
        Twice,
        normal(3, 8),
        {"again": "it runs more than once", "unused": "it does not run"},
    ),
    "reader": (
        Reader,
        normal(3, 8),
        dict.fromkeys(("read", "asked"), READ),
    ),
    "weight_norm": (normed, normal(3, 8), {"0": "parametrized"}),
    "hook": (hooked, normal(3, 8), {"0": "it has hooks"}),
    "groups": (grouped, normal(3, 4, 9, 9), {"0": "a Conv2d of this kind cannot be factored"}),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.3),
        normal(3, 5, 8),
        dict.fromkeys(
            ("self_attn.out_proj", "linear1", "linear2"),
            "its weight is also read outside its own forward pass",
        ),
    ),
}


@pytest.mark.filterwarnings("ignore:.*nested tensor")
@pytest.mark.parametrize("case", [name for name in REASONS if name != "transformer"])
def test_other_layers_stay_dense_for_a_reason(case: str) -> None:
    build, batch, expected = REASONS[case]
    torch.manual_seed(0)
    model = build().double().eval()
    found = find_layers(model, batch, run)
    assert found.dense == expected
    assert found.chosen
    assert not set(found.chosen) & set(expected)
    assert not model.training


def test_a_layer_without_gradients_stays_dense() -> None:
    """No gradient could say what its outputs are worth."""

    class Frozen(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                hidden = self[0](x)
            found: Tensor = self[2](self[1](hidden))
            return found

    found = find_layers(Frozen(*mlp(8, 8, 8)), normal(3, 8), run)
    assert list(found.chosen) == ["2"]
    assert found.dense == {"0": "it runs without gradients, as under torch.no_grad()"}


def test_fused_attention_reads_weights() -> None:
    """Torch's encoder layer reads them in eval mode without gradients."""
    build, batch, expected = REASONS["transformer"]
    with pytest.raises(ModelError, match="no layer can be factored") as caught:
        find_layers(build().double().eval(), batch, run)
    assert all(name in str(caught.value) for name in expected)


def test_layers_are_in_the_order_in_which_they_run() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(8, 6), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x))

    found = find_layers(Backwards().double(), normal(3, 8), run)
    assert list(found.chosen) == ["first", "last"]
    assert found.weights == 64 + 48


def test_keep_leaves_layers_out_of_the_budget() -> None:
    found = find_layers(mlp(8, 8, 8, 8), normal(3, 8), run, ["[24]"])
    assert found.weights == 64
    assert found.dense == dict.fromkeys(("2", "4"), "kept by --keep")
    assert not found.has_last
    assert find_layers(mlp(8, 8, 8, 8), normal(3, 8), run, ["0"]).has_last
    with pytest.raises(ModelError, match="--keep nothing: no layer has a matching name"):
        find_layers(mlp(8, 8), normal(3, 8), run, ["nothing"])


def test_a_network_without_such_layers_is_refused() -> None:
    for model in (nn.Sequential(nn.ReLU()), mlp(3, 3)):
        with pytest.raises(ModelError, match="no layer can be factored"):
            find_layers(model, normal(2, 3), run)


def test_exact_factors_compute_what_the_layer_does() -> None:
    model, images = convolutional(), normal(2, 3, 7, 6)
    with analysis_setting(model, torch.float64):
        found = exact_factors(model.first)(images)
        # Float64, sums of 27 products.
        torch.testing.assert_close(found, model.first(images), rtol=0, atol=1e-12)
