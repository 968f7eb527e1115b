"""A default device that the user has set is not where the tool's own numbers go."""

import pytest
import torch
from torch import nn

from localrank_cli.jacobian.engine import Modes
from localrank_cli.measures.layer import LayerMeasures, measure
from localrank_cli.measures.table import demand_of
from localrank_cli.points.draw import draw, sample
from localrank_cli.spectrum.tolerance import Tolerance
from tests.asking import PLENTY, spectra_of
from tests.networks import mlp

TOLERANCES = (Tolerance(atol=0.01), Tolerance(rtol=0.1))


def measures(model: nn.Module, modes: Modes, memory: int) -> list[LayerMeasures]:
    points = sample("normal", (8,), 5, 0).tensor
    points = draw(points, 3, 0, None, "points").tensor
    found = spectra_of(model, points, memory=memory, modes=modes, demand=demand_of(TOLERANCES))
    return [measure(spectrum, TOLERANCES, 1.0) for spectrum in found.values()]


@pytest.mark.parametrize("memory", [PLENTY, 4000])
@pytest.mark.parametrize("chain", [True, False])
@pytest.mark.parametrize("forward", [True, False])
def test_nothing_is_put_on_the_default_device(chain: bool, forward: bool, memory: int) -> None:
    torch.manual_seed(0)
    model = mlp(8, 6, 5).double()
    expected = measures(model, Modes(chain=chain, forward=forward), memory)
    # A meta tensor has no values: a number that came by one would not be there.
    with torch.device("meta"):
        assert measures(model, Modes(chain=chain, forward=forward), memory) == expected
