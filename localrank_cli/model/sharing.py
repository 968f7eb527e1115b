"""Second places of a network's weights: attributes that are a saved tensor, or a view of one."""

import functools
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from localrank_cli import walk
from localrank_cli.errors import ModelError
from localrank_cli.walk import Parts, Place, Put


class Aliases:
    """The places that hold a buffer itself, found before the buffers are moved.

    Raises:
        ModelError: If a place holds a view of a parameter or of a buffer that checkpoints fill, or
            such a buffer where it cannot be replaced: it would keep the values from before.
    """

    def __init__(self, model: nn.Module) -> None:
        self._moved: list[tuple[Put, Callable[[], Any]]] = []
        parameters = {id(parameter) for parameter in model.parameters()}
        buffers = _buffers(model)
        owners = _owners(model)
        saved = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
        for held in held_arrays(model):
            if id(held.value) in parameters:
                continue
            owner = next((name for name, spans in owners if spans(held.value)), None)
            # A buffer that is not saved may itself be a view of one that is.
            is_whole = id(held.value) in saved or owner is None
            if held.put is not None and id(held.value) in buffers and is_whole:
                self._moved.append((held.put, buffers[id(held.value)]))
                continue
            if owner is not None:
                what = "is" if id(held.value) in saved else "is a view of"
                raise ModelError(
                    f"the attribute {held.name!r} {what} the {owner}, made before the weights are"
                    " loaded.",
                    "Make the view in the forward pass, or keep it as a property.",
                )

    def restore(self) -> None:
        """Put the buffers, which have been moved, in their second places."""
        for put, moved in self._moved:
            put(moved())


def _buffers(model: nn.Module) -> dict[int, Callable[[], Any]]:
    """Return how each buffer is found again, by the id of its tensor; saved ones come first."""
    found: dict[int, Callable[[], Any]] = {}
    for saved in (True, False):
        for module in model.modules():
            for key, buffer in module.named_buffers(recurse=False):
                if (key not in module._non_persistent_buffers_set) == saved:  # noqa: SLF001  # torch has no public way to ask
                    found.setdefault(id(buffer), functools.partial(getattr, module, key))
    return found


def _owners(model: nn.Module) -> list[tuple[str, Callable[[Any], bool]]]:
    """Return what checkpoints fill: a description, and whether a value shares its memory."""
    spans: list[tuple[str, Callable[[Any], bool]]] = []
    for name, tensor in model.state_dict(keep_vars=True).items():
        span = _span(tensor) if isinstance(tensor, Tensor) else None
        if span is not None:
            kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
            spans.append((f"{kind} {name!r}", functools.partial(_overlap, span)))
    return spans


def _overlap(owner: tuple[int, int], value: Any) -> bool:
    span = _span(value)
    return span is not None and owner[0] < span[1] and span[0] < owner[1]


def _span(value: Any) -> tuple[int, int] | None:
    """Return where the memory of a tensor or array begins and ends; None where it has none."""
    if isinstance(value, np.ndarray):
        start, size = value.__array_interface__["data"][0], value.nbytes
    elif value.layout != torch.strided or value.is_nested or value.is_meta:
        return None
    else:
        steps = zip(value.shape, value.stride(), strict=True)
        reach = sum((length - 1) * stride for length, stride in steps) + 1
        start, size = value.data_ptr(), reach * value.element_size() if value.numel() else 0
    return (start, start + size) if size else None


def held_arrays(model: nn.Module) -> Iterator[Place]:
    """Yield where modules hold tensors and arrays beside what checkpoints fill."""
    start = [
        Place(f"{name}{part.name}".removeprefix("."), part.value, part.put)
        for name, module in model.named_modules()
        for part in walk.unsaved_parts(module)
    ]
    for place in walk.walk(start, _parts, model.modules()):
        if isinstance(place.value, (Tensor, np.ndarray)):
            yield place


def _parts(value: Any) -> Parts:
    if isinstance(value, nn.Module):  # in a list, say, where torch does not reach it
        return walk.module_parts(value, walk.SCALARS)
    if isinstance(value, FunctionType):
        return walk.closure_parts(value) + walk.default_parts(value)
    parts = walk.items(value, walk.SCALARS) + walk.call_parts(value)
    is_opened = not isinstance(value, (type, ModuleType)) and not walk.is_machinery(value)
    return parts + walk.attributes(value, walk.SCALARS) if is_opened else parts
