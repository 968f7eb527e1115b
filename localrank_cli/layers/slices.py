"""Parts of a tensor in numpy's notation: `0, 8:24, 8:24`, `-1`, `..., :3`, `center:16`."""

import re
from types import EllipsisType

import torch
from torch import Tensor

from localrank_cli.errors import LayerError, UsageError

Index = int | slice | EllipsisType

_PART = re.compile(r"^(-?\d+)?(:)?(-?\d+)?(:)?(-?\d+)?$")
_CENTER = re.compile(r"^center:(\d+)$")
_FORMS = "Give integers, start:stop:step, ... and center:N, separated by commas."


def parse_slice(text: str, option: str) -> tuple[Index, ...] | int:
    """Return the index that a text denotes; for `center:N` the N.

    Raises:
        UsageError: If it is not an index.
    """
    center = _CENTER.match(text.strip())
    if center is not None and int(center.group(1)) > 0:
        return int(center.group(1))
    parts = tuple(_part(part.strip(), text, option) for part in text.split(","))
    if sum(part is ... for part in parts) > 1:
        raise UsageError(f"{option} {text}: more than one ellipsis.", _FORMS)
    return parts


def _part(part: str, text: str, option: str) -> Index:
    if part == "...":
        return ...
    match = _PART.match(part)
    if not part or match is None:
        raise UsageError(f"{option} {text}: {part!r} is not an index.", _FORMS)
    start, first, stop, second, step = match.groups()
    if first is None:
        return int(part)
    if step is not None and (second is None or int(step) < 1):
        raise UsageError(f"{option} {text}: steps must be positive.", _FORMS)
    return slice(*(None if bound is None else int(bound) for bound in (start, stop, step)))


def positions(
    text: str, batch: tuple[int, ...], option: str, where: str, *, is_complex: bool = False
) -> Tensor:
    """Return the positions of a slice in the flat tensor: int64, CPU, ascending.

    `batch` is the shape of the tensor for a batch of one point. With `is_complex` its last axis is
    that of real and imaginary parts: the notation is that of the complex tensor, and both parts of
    an entry are included. `option` and `where`, what is sliced, are for messages.

    Raises:
        LayerError: If the points do not lie along the first axis, or if the notation does not fit
            the shape or leaves nothing.
    """
    index = parse_slice(text, option)
    if not batch or batch[0] != 1:
        raise LayerError(
            f"{option} {text}: {where} has shape {batch} for one point; its first axis is not the"
            " point axis.",
            "Choose other layers with --layers.",
        )
    shape = batch[1:-1] if is_complex else batch[1:]
    whole = torch.arange(int(torch.Size(shape).numel()), device="cpu").reshape(shape)
    if isinstance(index, int):
        if len(shape) < 2 or min(shape[-2:]) < index:
            raise LayerError(
                f"{option} {text}: {where} has shape {shape}, but no square of {index} x {index}.",
                "Choose a smaller one, or give the indices.",
            )
        low, left = ((length - index) // 2 for length in shape[-2:])
        index = (..., slice(low, low + index), slice(left, left + index))
    try:
        found = whole[index].flatten()
    except IndexError as error:
        raise LayerError(
            f"{option} {text}: does not fit {where} of shape {shape} ({error}).",
            "The point axis is not counted; choose layers with --layers.",
        ) from error
    if found.numel() == 0:
        raise LayerError(
            f"{option} {text}: leaves nothing of {where} of shape {shape}.",
            "Give an index within it, or leave the layer out with --exclude.",
        )
    return torch.stack([2 * found, 2 * found + 1], dim=1).flatten() if is_complex else found
