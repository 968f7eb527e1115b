"""The objects that can be reached from a network, each with its name and how to replace it.

`walk` visits them. The caller chooses what it follows, from the functions below: items of
containers, attributes and slots, contents of modules, closures, default arguments, globals.
"""

import functools
import operator
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePath
from types import CellType, CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from localrank_cli.userimport import is_library

# Attributes that torch gives every module: hooks and the like.
OWN = frozenset(vars(nn.Module()))
SCALARS = (
    type(None), bool, int, float, complex, str, bytes, bytearray, memoryview, np.generic, PurePath,
)  # fmt: skip
LRU = type(functools.lru_cache(len))
# Longer containers hold data, and searching them would be slow.
MAX_SEARCHED = 10_000

# Packages whose objects lead into the interpreter, to files or to other threads, not to data.
_MACHINERY = {
    "_asyncio", "_contextvars", "_ctypes", "_io", "_socket", "_ssl", "_thread", "_weakref",
    "asyncio", "concurrent", "contextvars", "ctypes", "importlib", "inspect", "io", "logging",
    "multiprocessing", "queue", "socket", "ssl", "subprocess", "tempfile", "threading",
    "traceback", "unittest", "warnings", "weakref",
}  # fmt: skip

# Lightning's networks hold their trainer, which holds the process's handlers of signals, and these
# a notebook's kernel, say, with all its variables.
_TRAINERS = {"lightning.pytorch.trainer.trainer", "pytorch_lightning.trainer.trainer"}

EMPTY = object()  # content of a slot that was never set

Put = Callable[[Any], object]
Namespace = dict[str, Any]
Types = tuple[type, ...]


class Place(NamedTuple):
    """A value, the name of where it is, and how it is replaced there; None where it cannot be."""

    name: str
    value: Any
    put: Put | None = None

    def below(self, name: str) -> "Place":
        """Return the place as seen from what holds the object of that name; empty: the network."""
        return Place(name + self.name if name else self.name.removeprefix("."), *self[1:])


Parts = list[Place]


def walk(
    start: Iterable[Place],
    parts: Callable[[Any], Parts],
    seen: dict[int, object] | None = None,
    most: int | None = MAX_SEARCHED,
) -> Iterator[Place]:
    """Yield the places that can be reached, breadth first.

    Tensors, arrays and scalars are yielded at each of their places, any other object at the first.

    Args:
        start: Where the walk begins.
        parts: Returns what an object holds, under names relative to it.
        seen: Objects that are not visited, by id; those visited are added, which keeps them alive:
            an id may be reused.
        most: Objects with more parts are yielded and not searched; None searches all.
    """
    visited = {} if seen is None else seen
    todo = deque(start)
    while todo:
        place = todo.popleft()
        name, value, _ = place
        is_array = isinstance(value, (Tensor, np.ndarray))
        if isinstance(value, SCALARS) or (is_array and not holds_objects(value)):
            yield place
        elif id(value) not in visited:
            visited[id(value)] = value
            yield place
            found = parts(value)
            if most is None or len(found) <= most:
                todo.extend([part.below(name) for part in found] if name else found)


def items(value: Any, skip: Types = ()) -> Parts:
    """Return the items of a container, and the keys of a dict that are no text.

    Those of the types `skip` are left out.
    """
    if isinstance(value, dict):
        return _dict_items(value, skip)
    if isinstance(value, np.ndarray) and holds_objects(value):
        value = value.tolist()
        value = value if isinstance(value, list) else [value]  # of no axis
    if isinstance(value, (list, deque, tuple)):
        if _are_all(value, skip):
            return []
        is_fixed = isinstance(value, tuple)
        return [
            Place(f"[{index}]", part, None if is_fixed else _setter(value, index))
            for index, part in enumerate(value)
            if not isinstance(part, skip)
        ]
    if isinstance(value, (set, frozenset)):
        # All share one name, since the order of a set differs between processes.
        return [Place("", part) for part in value if not isinstance(part, skip)]
    return []


def _dict_items(value: dict[Any, Any], skip: Types) -> Parts:
    parts: Parts = []
    if not _are_all(value, skip):
        keys = [(index, key) for index, key in enumerate(value) if not isinstance(key, str)]
        parts = [Place(f".keys[{i}]", key) for i, key in keys if not isinstance(key, skip)]
    if not _are_all(value.values(), skip):
        # By number, as the repr of an object may contain its address.
        parts += [
            Place(f"[{key!r}]" if isinstance(key, str) else f"[{i}]", part, _setter(value, key))
            for i, (key, part) in enumerate(value.items())
            if not isinstance(part, skip)
        ]
    return parts


def _are_all(values: Iterable[object], skip: Types) -> bool:
    """Return whether values are of some types, asked of each type once: there may be many."""
    return bool(skip) and all(issubclass(kind, skip) for kind in set(map(type, values)))


def attributes(value: object, skip: Types = ()) -> Parts:
    """Return what an object has in its `__dict__` and in its `__slots__`."""
    found = named(namespace(value) or {}, skip)
    for slot in slots(type(value)):
        part = slot_content(slot, value)
        if part is not EMPTY and not isinstance(part, skip):
            found.append(Place(f".{slot.__name__}", part, functools.partial(slot.__set__, value)))
    return found


def named(space: Mapping[str, Any], skip: Types = (), but: frozenset[str] = frozenset()) -> Parts:
    """Return the entries of a namespace as attributes, but those of the names `but`."""
    return [
        Place(f".{key}", part, _setter(space, key))
        for key, part in space.items()
        if key not in but and not isinstance(part, skip)
    ]


def namespace(value: object) -> Namespace | None:
    """Return an object's `__dict__`, without asking a `__getattr__` that may raise anything."""
    try:
        own = object.__getattribute__(value, "__dict__")
    except (AttributeError, TypeError, ValueError):
        return None
    return own if isinstance(own, dict) else None


def slots(cls: type) -> list[MemberDescriptorType]:
    """Return the descriptors of a class's slots, those of its bases too."""
    bases = [base for base in cls.__mro__ if "__slots__" in vars(base)]
    every = [part for base in bases for part in vars(base).values()]
    return [part for part in every if isinstance(part, MemberDescriptorType)]


def slot_content(slot: MemberDescriptorType, value: object) -> Any:
    """Return what a slot of an object holds; EMPTY if it was never set."""
    try:
        return slot.__get__(value)
    except AttributeError:
        return EMPTY


def module_attributes(module: nn.Module, skip: Types = ()) -> Parts:
    """Return the attributes of a module beside those that torch gives it."""
    return named(vars(module), skip, OWN)


def module_parts(module: nn.Module, skip: Types = ()) -> Parts:
    """Return what a module holds: parameters, buffers, children and attributes."""
    held = (module._parameters, module._buffers, module._modules)
    registered = [part for space in held for part in named(space, skip)]
    return registered + module_attributes(module, skip)


def pre_hooks(module: nn.Module) -> list[Any]:
    """Return the hooks that run before a module's forward pass."""
    return list(module._forward_pre_hooks.values())


def hooks(module: nn.Module) -> list[Any]:
    """Return the hooks that run after a module's forward pass, then those that run before it."""
    return [*module._forward_hooks.values(), *pre_hooks(module)]


def unsaved_parts(module: nn.Module) -> Parts:
    """Return what a module holds beside its state dict and its children."""
    saved = set(module._buffers) - module._non_persistent_buffers_set
    return named(module._buffers, but=frozenset(saved)) + module_attributes(module)


def call_parts(value: Any) -> Parts:
    """Return what a partial function, a method or a cached function calls, and with what."""
    if isinstance(value, functools.partial):
        return [
            Place(".func", value.func), Place(".args", value.args),
            Place(".keywords", value.keywords),
        ]  # fmt: skip
    if isinstance(value, MethodType):
        return [Place("", value.__func__), Place("", value.__self__)]
    if isinstance(value, LRU):
        return [Place("", vars(value).get("__wrapped__"))]
    return []


def closure_parts(function: FunctionType) -> Parts:
    """Return the variables of a function's closure that are set."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return [
        Place(f".{name}", cell.cell_contents, functools.partial(setattr, cell, "cell_contents"))
        for name, cell in cells
        if _is_filled(cell)
    ]


def default_parts(function: FunctionType) -> Parts:
    """Return the default arguments of a function, and its attributes."""
    defaults = Place(".defaults", function.__defaults__)
    return [defaults, *named(function.__kwdefaults__ or {}), *named(vars(function))]


def names_in(code: CodeType) -> set[str]:
    """Return the names of attributes and global variables in code, inner functions included."""
    inner = [part for part in code.co_consts if isinstance(part, CodeType)]
    return set(code.co_names).union(*map(names_in, inner))


def global_spaces(function: FunctionType) -> list[tuple[str, Mapping[str, Any]]]:
    """Return where names in a function's code are looked up, each with the prefix of its names.

    These are its global variables, and the user's modules and classes among those that it names.
    """
    space = function.__globals__
    spaces: list[tuple[str, Mapping[str, Any]]] = [("", space)]
    for name in sorted(names_in(function.__code__) & space.keys()):
        value = space[name]
        if isinstance(value, ModuleType):
            is_own = not is_library(vars(value).get("__file__") or "<frozen")
        else:
            is_own = isinstance(value, type) and is_users(value.__module__)
        if is_own:
            spaces.append((f".{name}", vars(value)))
    return spaces


def code_parts(module: nn.Module) -> Parts:
    """Return what the code of a module's forward pass refers to: see `used_parts`.

    Methods and class attributes are followed by the names in the code, from `forward` on: what
    only training uses is no part of the numbers.
    """
    names, parts = ["forward"], list[Place]()
    done: set[str] = set()
    while names:
        name = names.pop()
        if name in done:
            continue
        done.add(name)
        base = next((base for base in type(module).__mro__ if name in vars(base)), None)
        if base is None or not is_users(base.__module__):
            continue
        value = vars(base)[name]
        functions = list(_functions(value))
        if not functions:
            parts.append(Place(f".{name}", value))
        for function in functions:
            found = used_parts(function)
            parts += [Place(f".{name}{part.name}", part.value) for part in found]
            names += names_in(function.__code__)
    return parts


def _functions(value: Any) -> Iterator[FunctionType]:
    """Yield the user's functions in a class attribute: methods, properties, wrapped functions."""
    wrapped = [getattr(value, name, None) for name in ("__func__", "fget", "func", "__wrapped__")]
    for one in (value, *wrapped):
        if isinstance(one, FunctionType) and not is_library(one.__code__.co_filename):
            yield one
        elif one is not value and one is not None:
            yield from _functions(one)


def used_parts(function: FunctionType) -> Parts:
    """Return the closure, defaults, attributes and global variables of a function of the user's."""
    if is_library(function.__code__.co_filename):
        return []
    return closure_parts(function) + default_parts(function) + global_parts(function)


def global_parts(function: FunctionType) -> Parts:
    """Return the global variables that a function of the user's names."""
    if is_library(function.__code__.co_filename):
        return []
    names = names_in(function.__code__)
    return [
        Place(f"{prefix}.{name}", space[name])
        for prefix, space in global_spaces(function)
        for name in sorted(names & space.keys())
        if not isinstance(space[name], ModuleType)
    ]


def is_users(module: str | None) -> bool:
    """Return whether a module is the user's: none of Python's or of an installed package."""
    name = module or ""
    if name in sys.builtin_module_names or name.partition(".")[0] in sys.stdlib_module_names:
        return name == "__main__"
    file = getattr(sys.modules.get(name), "__file__", None)
    return file is None or not is_library(file)


def _setter(container: Any, key: Any) -> Put:
    return functools.partial(operator.setitem, container, key)


def _is_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018  # an empty cell raises
    except ValueError:
        return False
    return True


def holds_objects(value: object) -> bool:
    """Return whether a value is an array of Python objects."""
    return isinstance(value, np.ndarray) and value.dtype.hasobject


def is_machinery(value: object) -> bool:
    """Return whether an object leads into the interpreter, to files or to other threads."""
    kind = type(value)
    top = kind.__module__.partition(".")[0]
    return top in _MACHINERY or any(base.__module__ in _TRAINERS for base in kind.__mro__)
