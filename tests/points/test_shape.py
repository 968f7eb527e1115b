"""`--data-shape`: the entries of a point keep their order."""

from typing import Any

import pytest
import torch
from torch import nn

from localrank_cli.errors import DataError
from localrank_cli.points.shape import keeps_axes, proposals, reshaped


def test_flat_images_and_images_without_channels() -> None:
    data = torch.arange(24.0).reshape(2, 12)
    assert torch.equal(reshaped(data, (1, 3, 4), "x"), torch.stack([p.view(1, 3, 4) for p in data]))
    image = data.reshape(2, 3, 4, 1)
    assert torch.equal(reshaped(image, (1, 3, 4), "x"), image.permute(0, 3, 1, 2))
    assert torch.equal(reshaped(image, (12,), "x"), data)
    one = torch.arange(3.0)
    assert torch.equal(reshaped(one, (1,), "x"), one[:, None])


@pytest.mark.parametrize(
    ("there", "shape", "keeps"),
    [
        ((784,), (1, 28, 28), True),
        ((28, 28), (1, 28, 28), True),
        ((28, 28, 1), (1, 28, 28), True),
        ((3, 1024), (3, 32, 32), True),
        ((3, 32, 32), (3072,), True),
        ((32, 32, 3), (3, 32, 32), False),
        ((1024, 3), (3, 32, 32), False),
        ((2, 3), (3, 2), False),
        ((2, 2, 4), (4, 2, 2), False),
    ],
)
def test_axes_that_would_have_to_move(there: Any, shape: Any, keeps: bool) -> None:
    assert keeps_axes(there, shape) is keeps
    if not keeps:
        with pytest.raises(DataError, match="mix up their axes"):
            reshaped(torch.zeros(5, *there), shape, "x")


def test_another_number_of_entries() -> None:
    with pytest.raises(DataError, match=r"has 756 entries, but the points of x have 784"):
        reshaped(torch.zeros(5, 784), (28, 27), "x")


@pytest.mark.parametrize(
    ("there", "layer", "wanted"),
    [
        ((784,), nn.Conv2d(1, 2, 3), (1, 28, 28)),
        ((28, 28), nn.Conv2d(1, 2, 3), (1, 28, 28)),
        ((3072,), nn.Conv2d(3, 2, 3), (3, 32, 32)),
        ((24,), nn.Conv1d(3, 2, 3), (3, 8)),
        ((8,), nn.Conv3d(1, 2, 1), (1, 2, 2, 2)),
        ((28, 28), nn.Linear(784, 2), (784,)),
        ((12,), nn.GRU(4, 2), (3, 4)),
        ((), nn.Linear(1, 2), (1,)),
    ],
)
def test_shapes_that_a_network_may_take(there: Any, layer: nn.Module, wanted: Any) -> None:
    assert wanted in list(proposals(there, nn.Sequential(layer)))
