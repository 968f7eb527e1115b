"""What a forward pass may leave behind in a network's objects, and how it is removed again."""

import functools
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Attributes that torch gives every module: hooks and the like.
_OWN = frozenset(vars(nn.Module()))
_LRU = type(functools.lru_cache(len))
_SCALARS = (type(None), bool, int, float, complex, str, bytes, np.generic, torch.dtype)
# Longer containers are restored, but not searched: they are data, and searching takes long.
_MOST_SEARCHED = 10_000
# Larger tensors and arrays are not copied before each pass.
_MOST_COPIED = 10**6
# Of the standard library and of torch, only objects that hold the user's own are searched.
_HOLDERS = {"argparse", "collections", "types", "weakref"}
_CLOSED = sys.stdlib_module_names - _HOLDERS | {
    "torch", "numpy", "pandas", "scipy", "localrank_cli",
}  # fmt: skip

Namespace = dict[str, Any]


class Snapshot:
    """The content of everything that a network reaches, beside parameters and buffers.

    Searched are the attributes of modules and of helper objects, lists, dicts, sets and tuples;
    the attributes of the user's classes; the global variables that methods and functions use; and
    dicts in closures. Other variables of closures are left alone: a function given from Python may
    record in them what it is called with.
    """

    def __init__(self, model: nn.Module) -> None:
        self._undo: list[Callable[[], None]] = []
        self._seen: dict[int, object] = {}  # keeps objects alive: an id may be reused
        self._globals: set[tuple[int, str]] = set()
        for tensor in (*model.parameters(), *model.buffers()):
            self._seen[id(tensor)] = tensor
        self._storages = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._todo: list[object] = list(model.modules())
        while self._todo:
            value = self._todo.pop()
            if not isinstance(value, _SCALARS) and id(value) not in self._seen:
                self._seen[id(value)] = value
                self._take(value)

    def restore(self) -> None:
        """Give every object the content that it had."""
        for undo in self._undo:
            undo()

    def _take(self, value: Any) -> None:
        if isinstance(value, (Tensor, np.ndarray)):
            self._take_array(value)
        elif isinstance(value, _LRU):
            self._undo.append(value.cache_clear)
            self._search((getattr(value, "__wrapped__", None),))
        elif isinstance(value, types.FunctionType):
            self._take_function(value)
        elif isinstance(value, type):
            self._take_class(value)
        elif isinstance(value, nn.Module):
            self._take_module(value)
        elif not isinstance(value, types.ModuleType):
            self._take_container(value)
            self._take_object(value)

    def _take_array(self, value: Tensor | np.ndarray[Any, Any]) -> None:
        if isinstance(value, np.ndarray):
            if value.size <= _MOST_COPIED and value.flags.writeable:
                self._undo.append(functools.partial(np.copyto, value, value.copy()))
        elif value.numel() <= _MOST_COPIED and _storage(value) not in self._storages:
            self._undo.append(functools.partial(restore_tensor, value, value.detach().clone()))

    def _take_function(self, function: types.FunctionType) -> None:
        """Take the global variables that a function's code names, and its default arguments."""
        self._search((function.__defaults__, function.__kwdefaults__, vars(function)))
        if not _is_users(function.__module__):
            return
        cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
        held = (dict, _LRU, types.FunctionType)
        self._search(value for value in cells if isinstance(value, held))
        names = _names_in(function.__code__)
        spaces = [function.__globals__]
        for name in names & function.__globals__.keys():
            value = function.__globals__[name]
            if isinstance(value, types.ModuleType) and _is_users(value.__name__):
                spaces.append(vars(value))  # utils.cached(...)
        for space in spaces:
            new = {name for name in names if (id(space), name) not in self._globals}
            self._globals |= {(id(space), name) for name in new}
            self._take_namespace(space, new)

    def _take_class(self, cls: type) -> None:
        for base in cls.__mro__:
            if not _is_users(base.__module__):
                self._todo += [part for part in vars(base).values() if isinstance(part, _LRU)]
                continue
            held = {k: v for k, v in vars(base).items() if not k.startswith("__") or callable(v)}
            self._undo.append(functools.partial(_restore_class, base, held))
            for value in held.values():
                self._search(_functions_of(value))

    def _take_module(self, module: nn.Module) -> None:
        own = vars(module)
        self._undo.append(
            functools.partial(_restore_namespace, own, {k: own[k] for k in own if k not in _OWN})
        )
        # Modules out of the network's tree (in a list) reach their own children and tensors.
        held = (module._parameters, module._buffers, module._modules)  # noqa: SLF001  # torch has no public way to ask
        self._search(part for parts in held for part in parts.values())
        self._search(value for key, value in own.items() if key not in _OWN)
        self._todo.append(type(module))

    def _take_container(self, value: Any) -> None:
        if isinstance(value, Mapping) and isinstance(value, dict):
            self._undo.append(functools.partial(_restore_dict, value, dict(value)))
            self._search(value.values())
        elif isinstance(value, (list, deque)):
            self._undo.append(functools.partial(_restore_list, value, list(value)))
            self._search(value)
        elif isinstance(value, set):
            self._undo.append(functools.partial(_restore_set, value, set(value)))
            self._search(value)
        elif isinstance(value, (tuple, frozenset)):
            self._search(value)
        elif isinstance(value, functools.partial):
            self._search((value.func, value.args, value.keywords))
        elif isinstance(value, types.MethodType):
            self._search((value.__self__, value.__func__))

    def _take_object(self, value: object) -> None:
        cls = type(value)
        if _is_closed(cls.__module__) or isinstance(value, types.MethodType):
            return
        own = _own_of(value)
        if type(own) is dict:
            self._undo.append(functools.partial(_restore_namespace, own, dict(own)))
            self._search(own.values())
        for slot in _slots(cls):
            held = slot.__get__(value) if _has(slot, value) else _ABSENT
            self._undo.append(functools.partial(_restore_slot, slot, value, held))
            self._todo.append(held)
        self._todo.append(cls)

    def _take_namespace(self, space: Namespace, names: set[str]) -> None:
        held = {name: space[name] for name in names if name in space}

        def undo() -> None:
            for name in names & space.keys() - held.keys():
                del space[name]
            space.update((k, v) for k, v in held.items() if space.get(k, _ABSENT) is not v)

        self._undo.append(undo)
        self._search(held.values())

    def _search(self, values: Iterable[Any]) -> None:
        several = [value for value in values if not isinstance(value, _SCALARS)]
        if len(several) <= _MOST_SEARCHED:
            self._todo += several


_ABSENT = type("_Absent", (), {"__slots__": ()})()


def restore_tensor(tensor: Tensor, saved: Tensor) -> None:
    """Copy saved values into a tensor, unless it has them still."""
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
    for key in [key for key in space if key not in _OWN and key not in held]:
        del space[key]
    space.update((k, v) for k, v in held.items() if space.get(k, _ABSENT) is not v)


def _restore_class(cls: type, held: Namespace) -> None:
    for key in [key for key in vars(cls) if not key.startswith("__") and key not in held]:
        delattr(cls, key)
    for key, value in held.items():
        if vars(cls).get(key, _ABSENT) is not value:
            setattr(cls, key, value)


def _restore_dict(value: dict[Any, Any], held: dict[Any, Any]) -> None:
    if len(value) != len(held) or any(value.get(k, _ABSENT) is not v for k, v in held.items()):
        value.clear()
        value.update(held)


def _restore_list(value: Any, held: list[Any]) -> None:
    if len(value) != len(held) or any(a is not b for a, b in zip(value, held, strict=True)):
        value.clear()
        value.extend(held)


def _restore_set(value: set[Any], held: set[Any]) -> None:
    if value != held:
        value.clear()
        value.update(held)


def _restore_slot(slot: Any, value: object, held: object) -> None:
    now = slot.__get__(value) if _has(slot, value) else _ABSENT
    if now is not held and held is _ABSENT:
        slot.__delete__(value)
    elif now is not held:
        slot.__set__(value, held)


def _has(slot: Any, value: object) -> bool:
    try:
        slot.__get__(value)
    except AttributeError:
        return False
    return True


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018  # an empty cell raises
    except ValueError:
        return False
    return True


def _own_of(value: object) -> object:
    """Return an object's attributes, without asking a `__getattr__` that may raise anything."""
    try:
        return object.__getattribute__(value, "__dict__")
    except AttributeError:
        return None


def _slots(cls: type) -> list[Any]:
    bases = [base for base in cls.__mro__ if "__slots__" in vars(base)]
    every = [part for base in bases for part in vars(base).values()]
    return [part for part in every if isinstance(part, types.MemberDescriptorType)]


def _functions_of(value: Any) -> tuple[Any, ...]:
    """Return what an entry of a class holds: the functions of properties and the like."""
    if isinstance(value, property):
        return value.fget, value.fset
    if isinstance(value, (staticmethod, classmethod)):
        return (value.__func__,)
    if isinstance(value, functools.cached_property):
        return (value.func,)
    return (value,)


def _names_in(code: types.CodeType) -> set[str]:
    inner = [part for part in code.co_consts if isinstance(part, types.CodeType)]
    return set(code.co_names).union(*map(_names_in, inner))


def _is_closed(name: str | None) -> bool:
    return (name or "").partition(".")[0] in _CLOSED


@functools.cache
def _is_users(name: str | None) -> bool:
    """Return whether a module is code of the user's own, not of an installed package."""
    file = getattr(sys.modules.get(name or ""), "__file__", None) or ""
    is_installed = "site-packages" in file or "dist-packages" in file
    return not _is_closed(name) and not is_installed


def _storage(tensor: Tensor) -> int:
    """Return where a tensor's values are; 0 where it has no memory of its own."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # sparse and nested tensors
        return 0
