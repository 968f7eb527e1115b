"""No number depends on the state of the caller's random number generators."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from localrank_cli.errors import ModelError
from tests.asking import spectra_of
from tests.networks import mlp


class Lazy(nn.Module):
    """Draws at the first forward pass, and keeps what it drew."""

    def __init__(self, draw: Callable[[], Tensor]) -> None:
        super().__init__()
        self.a, self.draw = nn.Linear(3, 3), draw
        self.features: Tensor | None = None

    def forward(self, x: Tensor) -> Any:
        if self.features is None:
            self.features = self.draw()
        return self.a(x * self.features)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.randn(3),
        lambda: torch.from_numpy(np.random.rand(3)),
        lambda: torch.full((3,), random.random()),
    ],
)
def test_what_the_first_forward_pass_draws_and_keeps_is_refused(draw: Callable[[], Tensor]) -> None:
    points = torch.randn(2, 3, dtype=torch.float64)
    with pytest.raises(ModelError, match=r"draws random numbers and keeps them: layer '0\.a'"):
        spectra_of(nn.Sequential(Lazy(draw)).double(), points, ("0.a",))


def test_the_generators_are_left_as_found() -> None:
    def states() -> list[object]:
        return [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]

    model, points = mlp(3, 4, 2).double(), torch.randn(2, 3, dtype=torch.float64)
    before = states()
    spectra_of(model, points)
    assert states() == before
