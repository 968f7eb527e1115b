"""Undo what a forward pass leaves behind in the objects of a network."""

import functools
import operator
import sys
from collections import deque
from collections.abc import Callable
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from localrank_cli import walk
from localrank_cli.walk import EMPTY, Namespace, Parts, Place

_SKIPPED = (*walk.SCALARS, torch.dtype)
_MAX_COPIED = 10**6  # entries; larger tensors and arrays are not copied before each pass
# Of the standard library and of torch, only objects that hold the user's own are restored.
_HOLDERS = {"argparse", "collections", "types", "weakref"}
_CLOSED = sys.stdlib_module_names - _HOLDERS | {
    "torch", "numpy", "pandas", "scipy", "localrank_cli",
}  # fmt: skip


class Snapshot:
    """The content of everything that a network reaches, beside parameters and buffers.

    Restored are the attributes of modules and of helper objects, lists, dicts, sets and tuples;
    the attributes of the user's classes; the global variables that methods and functions use; and
    dicts in closures. Other variables of closures are left alone: a function given from Python may
    record in them what it is called with.
    """

    def __init__(self, model: nn.Module) -> None:
        self._undo: list[Callable[[], None]] = []
        self._globals: set[tuple[int, str]] = set()
        weights = [*model.parameters(), *model.buffers()]
        arrays: dict[int, object] = {id(tensor): tensor for tensor in weights}
        storages = {_storage(tensor) for tensor in weights}
        start = [Place("", module) for module in model.modules()]
        self._tree = {id(module) for module in model.modules()}
        for _, value, _ in walk.walk(start, self._take):
            if isinstance(value, (Tensor, np.ndarray)) and id(value) not in arrays:
                arrays[id(value)] = value
                self._take_array(value, storages)

    def restore(self) -> None:
        """Restore the content of every object."""
        for undo in self._undo:
            undo()

    def _take(self, value: Any) -> Parts:
        """Keep the content of an object, and return its parts."""
        if isinstance(value, walk.LRU):
            self._undo.append(value.cache_clear)
            return walk.call_parts(value)
        if isinstance(value, FunctionType):
            return self._take_function(value)
        if isinstance(value, type):
            return self._take_class(value)
        if isinstance(value, nn.Module):
            own = vars(value)
            held = {key: own[key] for key in own if key not in walk.OWN}
            self._undo.append(functools.partial(_restore_namespace, own, held))
            # Modules out of the network's tree (in a list) reach their own children and tensors.
            in_tree = id(value) in self._tree
            parts = walk.module_attributes if in_tree else walk.module_parts
            return [*parts(value, _SKIPPED), Place("", type(value))]
        if isinstance(value, (ModuleType, np.ndarray)):
            return walk.items(value, _SKIPPED)
        self._take_container(value)
        called = walk.call_parts(value)
        return [*walk.items(value, _SKIPPED), *called, *self._take_object(value)]

    def _take_array(self, value: Tensor | np.ndarray[Any, Any], storages: set[int]) -> None:
        if isinstance(value, np.ndarray):
            if value.size <= _MAX_COPIED and value.flags.writeable:
                self._undo.append(functools.partial(np.copyto, value, value.copy()))
        elif value.numel() <= _MAX_COPIED and _storage(value) not in storages:
            self._undo.append(functools.partial(restore_tensor, value, value.detach().clone()))

    def _take_function(self, function: FunctionType) -> Parts:
        """Keep the global variables that a function's code names."""
        held_by = (function.__defaults__, function.__kwdefaults__, vars(function))
        parts = [Place("", held) for held in held_by]  # the dicts themselves: they are restored
        if not _is_restored(function.__module__):
            return parts
        held = (dict, walk.LRU, FunctionType)
        parts += [part for part in walk.closure_parts(function) if isinstance(part.value, held)]
        names = walk.names_in(function.__code__)
        for _, space in walk.global_spaces(function):
            if isinstance(space, dict):  # and no class, which is found by its name
                new = {name for name in names if (id(space), name) not in self._globals}
                self._globals |= {(id(space), name) for name in new}
                parts += self._take_globals(space, new)
        return parts

    def _take_globals(self, space: Namespace, names: set[str]) -> Parts:
        held = {name: space[name] for name in names if name in space}

        def undo() -> None:
            """Put the globals back, and remove those that are new."""
            for name in names & space.keys() - held.keys():
                del space[name]
            _put_back(space, held)

        self._undo.append(undo)
        return walk.named(held, _SKIPPED)

    def _take_class(self, cls: type) -> Parts:
        parts: Parts = []
        for base in cls.__mro__:
            own = vars(base)
            if not _is_restored(base.__module__):
                parts += [Place("", part) for part in own.values() if isinstance(part, walk.LRU)]
                continue
            held = {k: v for k, v in own.items() if not k.startswith("__") or callable(v)}
            self._undo.append(functools.partial(_restore_class, base, held))
            for value in held.values():
                parts += [Place("", part) for part in _functions_of(value)]
        return parts

    def _take_container(self, value: Any) -> None:
        if isinstance(value, dict):
            self._undo.append(functools.partial(_restore_dict, value, dict(value)))
        elif isinstance(value, (list, deque)):
            self._undo.append(functools.partial(_restore_list, value, list(value)))
        elif isinstance(value, set):
            self._undo.append(functools.partial(_restore_set, value, set(value)))

    def _take_object(self, value: object) -> Parts:
        cls = type(value)
        if _is_closed(cls.__module__) or isinstance(value, MethodType):
            return []
        own = walk.namespace(value)
        if own is not None:
            self._undo.append(functools.partial(_restore_namespace, own, dict(own)))
        for slot in walk.slots(cls):
            held = walk.slot_content(slot, value)
            self._undo.append(functools.partial(_restore_slot, slot, value, held))
        return [*walk.attributes(value, _SKIPPED), Place("", cls)]


def restore_tensor(tensor: Tensor, saved: Tensor) -> None:
    """Copy saved values into a tensor, unless it still has them."""
    if not _is_equal(tensor, saved):
        with torch.no_grad():
            tensor.copy_(saved)


def _is_equal(one: Tensor, other: Tensor) -> bool:
    if one.is_nested:
        return False
    if one.layout != torch.strided:
        one, other = one.to_dense(), other.to_dense()
    return torch.equal(one, other)


def _restore_namespace(space: Namespace, held: Namespace) -> None:
    for key in [key for key in space if key not in walk.OWN and key not in held]:
        del space[key]
    _put_back(space, held)


def _put_back(space: Namespace, held: Namespace) -> None:
    space.update((k, v) for k, v in held.items() if space.get(k, EMPTY) is not v)


def _restore_class(cls: type, held: Namespace) -> None:
    for key in [key for key in vars(cls) if not key.startswith("__") and key not in held]:
        delattr(cls, key)
    for key, value in held.items():
        if vars(cls).get(key, EMPTY) is not value:
            setattr(cls, key, value)


def _restore_dict(value: dict[Any, Any], held: dict[Any, Any]) -> None:
    if len(value) != len(held) or any(dict.get(value, k, EMPTY) is not v for k, v in held.items()):
        value.clear()
        value.update(held)


def _restore_list(value: Any, held: list[Any]) -> None:
    if len(value) != len(held) or not all(map(operator.is_, value, held)):
        value.clear()
        value.extend(held)


def _restore_set(value: set[Any], held: set[Any]) -> None:
    if value != held:
        value.clear()
        value.update(held)


def _restore_slot(slot: Any, value: object, held: object) -> None:
    now = walk.slot_content(slot, value)
    if now is not held and held is EMPTY:
        slot.__delete__(value)
    elif now is not held:
        slot.__set__(value, held)


def _functions_of(value: Any) -> tuple[Any, ...]:
    """Return what an entry of a class holds: the functions of properties and the like."""
    if isinstance(value, property):
        return value.fget, value.fset
    if isinstance(value, (staticmethod, classmethod)):
        return (value.__func__,)
    if isinstance(value, functools.cached_property):
        return (value.func,)
    return (value,)


def _is_closed(module: str | None) -> bool:
    return (module or "").partition(".")[0] in _CLOSED


def _is_restored(module: str | None) -> bool:
    return not _is_closed(module) and walk.is_users(module)


def _storage(tensor: Tensor) -> int:
    """Return where a tensor's values are; 0 where it has no memory of its own."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # sparse and nested tensors
        return 0
