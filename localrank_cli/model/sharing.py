"""Second places of a network's weights: attributes that are a saved tensor, or a view of one."""

import functools
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from localrank_cli.errors import ModelError

# Attributes that torch gives every module: hooks and the like.
_OWN = frozenset(vars(nn.Module()))
_CLOSED = sys.stdlib_module_names - {"argparse", "collections", "types"} | {
    "torch", "numpy", "pandas", "scipy",
}  # fmt: skip
_MOST_SEARCHED = 10_000  # longer containers are data

Put = Callable[[Any], object]


@dataclass(frozen=True)
class _Held:
    """A value, how it is reached, and how it is replaced; None where that is not possible."""

    name: str
    value: Any
    put: Put | None


class Aliases:
    """The places that hold a buffer itself, found before the buffers are moved.

    Raises:
        ModelError: If a place holds a view of a parameter or of a buffer that checkpoints fill, or
            such a buffer where it cannot be replaced: it would keep the values from before.
    """

    def __init__(self, model: nn.Module) -> None:
        self._again: list[tuple[Put, Callable[[], Any]]] = []
        parameters = {id(parameter) for parameter in model.parameters()}
        buffers = _buffers(model)
        owners = _owners(model)
        saved = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
        for held in held_values(model):
            if id(held.value) in parameters:
                continue
            owner = next((name for name, spans in owners if spans(held.value)), None)
            # A buffer that is not saved may itself be a view of one that is.
            is_whole = id(held.value) in saved or owner is None
            if held.put is not None and id(held.value) in buffers and is_whole:
                self._again.append((held.put, buffers[id(held.value)]))
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
        for put, moved in self._again:
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


def held_values(model: nn.Module) -> Iterator[_Held]:
    """Yield the tensors and arrays that modules hold beside what checkpoints fill."""
    seen: dict[int, object] = {id(module): module for module in model.modules()}
    todo: list[_Held] = []
    for place, module in model.named_modules():
        prefix = f"{place}." if place else ""
        todo += [
            _Held(prefix + key, module._buffers[key], _item(module._buffers, key))  # noqa: SLF001  # torch has no public way to ask
            for key in module._non_persistent_buffers_set  # noqa: SLF001  # as above
        ]
        own = vars(module)
        todo += [_Held(prefix + k, v, _item(own, k)) for k, v in own.items() if k not in _OWN]
    while todo:
        held = todo.pop()
        if isinstance(held.value, (Tensor, np.ndarray)):
            yield held
        elif id(held.value) not in seen:
            seen[id(held.value)] = held.value
            parts = list(_parts(held))
            todo += parts if len(parts) <= _MOST_SEARCHED else []


def _parts(held: _Held) -> Iterator[_Held]:
    yield from _inside(held.name, held.value)
    yield from _of_function(held.name, held.value)
    yield from _of_object(held.name, held.value)


def _inside(name: str, value: Any) -> Iterable[_Held]:
    if isinstance(value, dict):
        return (_Held(f"{name}[{k!r}]", part, _item(value, k)) for k, part in value.items())
    if isinstance(value, (list, deque)):
        return (_Held(f"{name}[{i}]", part, _item(value, i)) for i, part in enumerate(value))
    if isinstance(value, (tuple, set, frozenset)):
        return (_Held(f"{name}[{i}]", part, None) for i, part in enumerate(value))
    return ()


def _of_function(name: str, value: Any) -> Iterator[_Held]:
    parts: tuple[Any, ...] = ()
    if isinstance(value, functools.partial):
        parts = value.func, value.args, value.keywords
    elif isinstance(value, types.MethodType):
        parts = value.__self__, value.__func__
    elif isinstance(value, types.FunctionType):
        for key, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            if _is_filled(cell):
                put = functools.partial(setattr, cell, "cell_contents")
                yield _Held(f"{name} ({key})", cell.cell_contents, put)
    yield from (_Held(name, part, None) for part in parts)


def _of_object(name: str, value: Any) -> Iterator[_Held]:
    if isinstance(value, nn.Module):  # in a list, say, where torch does not reach it
        for inner in (value._parameters, value._buffers, value._modules):  # noqa: SLF001  # torch has no public way to ask
            yield from (_Held(f"{name}.{k}", part, _item(inner, k)) for k, part in inner.items())
    elif type(value).__module__.partition(".")[0] in _CLOSED:
        return
    own = _own_of(value)
    if type(own) is dict:
        named = [(k, part) for k, part in own.items() if k not in _OWN]
        yield from (_Held(f"{name}.{k}", part, _item(own, k)) for k, part in named)
    for slot in _slots(type(value)):
        with suppress(AttributeError):  # an empty one
            part = slot.__get__(value)
            yield _Held(f"{name}.{slot.__name__}", part, functools.partial(slot.__set__, value))


def _own_of(value: object) -> object:
    """Return an object's attributes, without asking a `__getattr__` that may raise anything."""
    try:
        return object.__getattribute__(value, "__dict__")
    except AttributeError:
        return None


def _item(container: Any, key: Any) -> Put:
    return functools.partial(container.__setitem__, key)


def _slots(cls: type) -> list[types.MemberDescriptorType]:
    bases = [base for base in cls.__mro__ if "__slots__" in vars(base)]
    every = [part for base in bases for part in vars(base).values()]
    return [part for part in every if isinstance(part, types.MemberDescriptorType)]


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018  # an empty cell raises
    except ValueError:
        return False
    return True
