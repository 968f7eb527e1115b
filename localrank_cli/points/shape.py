"""`--data-shape`: points in the shape that the network takes, their entries in order."""

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import mul
from typing import overload

from torch import Tensor, nn

from localrank_cli.errors import DataError
from localrank_cli.points.rows import Data

Shape = tuple[int, ...]

_SPATIAL = ((nn.Conv1d, 1), (nn.Conv2d, 2), (nn.Conv3d, 3))
_MOST_WIDTHS = 4  # of layers, whose inputs may be the network's


def written(shape: Sequence[int]) -> str:
    """Return a shape as on the command line: `1x28x28`."""
    return "x".join(map(str, shape)) or "1"


@overload
def reshaped(data: Tensor, shape: Shape, name: str) -> Tensor: ...
@overload
def reshaped(data: Data, shape: Shape, name: str) -> Data: ...
def reshaped(data: Data, shape: Shape, name: str) -> Data:
    """Return the data, shape (points, ...), with each point in a shape.

    Axes may be added, dropped, split and joined. What would need axes to move is refused: the
    entries of (32, 32, 3) read as (3, 32, 32) are a scrambled image.

    Raises:
        DataError: If the points have another number of entries, or their axes would have to move.
    """
    if data.ndim == 0:
        return data  # `draw` refuses data without points
    there = tuple(data.shape[1:])
    if math.prod(there) != math.prod(shape):
        raise DataError(
            f"--data-shape {written(shape)}: has {math.prod(shape)} entries, but the points of"
            f" {name} have {math.prod(there)} ({written(there)}).",
            "Give a shape with the same number.",
        )
    if not keeps_axes(there, shape):
        raise DataError(
            f"--data-shape {written(shape)}: the points of {name} have the shape {written(there)},"
            " and reshaping alone would mix up their axes.",
            "Move their axes before they are saved (x.permute(0, 3, 1, 2) puts the channels"
            " first), or in a function for --data file.py:name.",
        )
    return data.reshape(data.shape[0], *shape)


def keeps_axes(one: Sequence[int], other: Sequence[int]) -> bool:
    """Return whether a shape follows from another by splitting its axes, or by joining them."""
    first, second = set(accumulate(one, mul)), set(accumulate(other, mul))
    return first - {1} <= second or second - {1} <= first


def proposals(there: Shape, model: nn.Module) -> Iterator[Shape]:
    """Yield shapes that points of a shape may be meant to have, the likeliest first."""
    size = math.prod(there)
    bare = tuple(length for length in there if length > 1)
    shapes = []
    for width, axes in _widths(model):
        side = round((size / width) ** (1 / axes)) if axes else size // width
        if axes and width * side**axes == size:
            shapes.append((width, *[side] * axes))
        elif not axes and width * side == size:
            shapes += [(size,), (side, width)]
    shapes += [(1, *there), (1, *bare), bare, (size,), (*there, 1)]
    for shape in dict.fromkeys(shapes):
        if shape and shape != there and keeps_axes(there, shape):
            yield shape


def _widths(model: nn.Module) -> list[tuple[int, int]]:
    """Return the widths of what the first layers take, each with its number of spatial axes."""
    found: list[tuple[int, int]] = []
    for module in model.modules():
        axes = next((axes for kind, axes in _SPATIAL if isinstance(module, kind)), 0)
        name = "in_channels" if axes else "in_features"
        width = getattr(module, name, getattr(module, "input_size", None))
        if isinstance(width, int) and width > 0:
            found.append((width, axes))
    return list(dict.fromkeys(found))[:_MOST_WIDTHS]
