"""What can be reached from an object of Python, or from the code that a network runs."""

import enum
import logging
import random
import sys
import warnings
from collections.abc import Iterable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from localrank_cli.userimport import is_library

Parts = list[tuple[str, object]]

# Types whose objects lead into the interpreter, to files or to other threads, not to data.
_MACHINERY = {
    "_asyncio", "_contextvars", "_ctypes", "_io", "_socket", "_ssl", "_thread", "_weakref",
    "asyncio", "concurrent", "contextvars", "ctypes", "importlib", "inspect", "io", "logging",
    "multiprocessing", "queue", "socket", "ssl", "subprocess", "tempfile", "threading",
    "traceback", "unittest", "warnings", "weakref",
}  # fmt: skip
# Values whose reduction says nothing about data, or that have none.
_ATOMS = (type(None), type(Ellipsis), type(NotImplemented), ModuleType, CodeType, logging.Logger)
_NUMPY = (np.random.Generator, np.random.BitGenerator)
_PYTHON = random.Random  # noqa: S311  # a user's code may hold one
_LEGACY = np.random.RandomState  # a user's code may hold one
_REDUCED = 5  # entries of what __reduce_ex__ returns: function, arguments, state, items, pairs


def state_of_generator(value: Any) -> str | None:
    """Return the state of a random number generator as text; None for anything else."""
    state: object = None
    with np.printoptions(threshold=sys.maxsize):
        if isinstance(value, torch.Generator):
            state = value.get_state().cpu().numpy().tobytes()
        elif isinstance(value, _PYTHON) and not isinstance(value, random.SystemRandom):
            state = value.getstate()
        elif isinstance(value, _LEGACY):
            state = value.get_state(legacy=False)
        elif isinstance(value, _NUMPY):
            bits: Any = getattr(value, "bit_generator", value)
            state = bits.state
        return None if state is None else repr(state)


def object_parts(value: Any) -> Parts:
    """Return what an object holds beside the items of a container, and how it is reached."""
    if isinstance(value, _ATOMS) or type(value).__module__.partition(".")[0] in _MACHINERY:
        return []
    if isinstance(value, enum.Enum):
        return [("", f"{type(value).__qualname__}.{value.name}"), (".value", value.value)]
    if isinstance(value, (MethodType, BuiltinFunctionType)):
        return [("", getattr(value, "__func__", None)), ("", value.__self__)]
    if isinstance(value, FunctionType) or hasattr(type(value), "cache_info"):
        return [("", one) for one in _wrapped(value)] + _function_parts(value)
    # Of a generator the state counts, which is one value.
    attributes = _attributes(value) if state_of_generator(value) is None else []
    return attributes + _reduced(value, attributes)


def _wrapped(value: Any) -> list[object]:
    """Return the function inside one of functools.lru_cache."""
    return [] if isinstance(value, FunctionType) else [vars(value).get("__wrapped__")]


def _attributes(value: Any) -> Parts:
    """Return what an object has in its `__dict__` and in its `__slots__`."""
    try:
        found = dict(object.__getattribute__(value, "__dict__"))
    except (AttributeError, TypeError, ValueError):
        found = {}
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else tuple(slots):
            hidden = slot.startswith("__") and not slot.endswith("__")
            name = f"_{cls.__name__.lstrip('_')}{slot}" if hidden else slot
            # The descriptor itself: a __getattr__ of the user's may do anything.
            member = vars(cls).get(name)
            if slot in {"__dict__", "__weakref__"} or not hasattr(type(member), "__get__"):
                continue
            try:
                found.setdefault(name, member.__get__(value, type(value)))  # type: ignore[union-attr]  # a slot's descriptor
            except AttributeError:  # not set
                continue
    return [(f".{key}", part) for key, part in found.items()]


def _reduced(value: Any, attributes: Parts) -> Parts:
    """Return what a pickle holds beside the attributes, where a library wrote the class."""
    containers = (dict, list, tuple, set, frozenset)
    if isinstance(value, containers) or state_of_generator(value) is not None:
        return []
    names = {"__reduce__", "__reduce_ex__", "__getstate__"}
    writer = next(base for base in type(value).__mro__ if names & set(vars(base)))
    if is_user_class(type(value) if writer is object else writer):
        return []  # it would run the user's code, or hold no more than the attributes do
    if writer is object and attributes:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = value.__reduce_ex__(4)
            parts = found[1:_REDUCED] if isinstance(found, tuple) else [found]
            held = [list(part) if isinstance(part, Iterator) else part for part in parts]
    except Exception:  # there is no pickle of it: a lock, a file, or whatever a library raises
        return []
    known = {id(part) for _, part in attributes}
    for index, part in enumerate(held):
        if isinstance(part, dict):
            held[index] = {key: one for key, one in part.items() if id(one) not in known}
    return [("", part) for part in held]


def code_parts(module: nn.Module, prefix: str) -> Parts:
    """Return what the code of a module's forward pass refers to: see `_function_parts`.

    Methods and class attributes are followed by the names in the code, from `forward` on: what
    only training uses is no part of the numbers.
    """
    names, parts = ["forward"], []
    done: set[str] = set()
    while names:
        name = names.pop()
        if name in done:
            continue
        done.add(name)
        found = _of_class(type(module), name)
        if found is None:
            continue
        value = found[0]
        functions = list(_functions(value))
        if not functions:
            parts.append((f"{prefix}{name}", value))
        for function in functions:
            parts += [(f"{prefix}{name}{key}", part) for key, part in _function_parts(function)]
            names += _names(function.__code__)
    return parts


def _of_class(cls: type, name: str) -> tuple[object] | None:
    """Return what a user's class holds under a name, in a tuple; None if nothing."""
    for base in cls.__mro__:
        if name in vars(base):
            return (vars(base)[name],) if is_user_class(base) else None
    return None


def _functions(value: Any) -> Iterator[FunctionType]:
    """Yield the user's functions in a class attribute: methods, properties, wrapped functions."""
    wrapped = [getattr(value, name, None) for name in ("__func__", "fget", "func", "__wrapped__")]
    for one in (value, *wrapped):
        if isinstance(one, FunctionType) and not is_library(one.__code__.co_filename):
            yield one
        elif one is not value and one is not None:
            yield from _functions(one)


def _function_parts(function: Any) -> Parts:
    """Return closures, defaults, attributes and global variables of a function of the user's."""
    if not isinstance(function, FunctionType) or is_library(function.__code__.co_filename):
        return []
    code = function.__code__
    parts: Parts = []
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            parts.append((f".{name}", cell.cell_contents))
        except ValueError:  # not set yet
            continue
    parts.append((".defaults", function.__defaults__))
    parts += [(f".{name}", value) for name, value in (function.__kwdefaults__ or {}).items()]
    parts += [(f".{name}", value) for name, value in vars(function).items()]
    space, names = function.__globals__, set(_names(code))
    for name in sorted(names & set(space)):
        value = space[name]
        if not isinstance(value, ModuleType):
            parts.append((f".{name}", value))
        if _is_users(value):
            own = vars(value)
            parts += [(f".{name}.{one}", own[one]) for one in sorted(names & set(own))]
    return parts


def _is_users(value: object) -> bool:
    """Return whether a value is a module or a class of the user's."""
    if isinstance(value, ModuleType):
        return not is_library(vars(value).get("__file__") or "<frozen")
    return isinstance(value, type) and is_user_class(value)


def _names(code: CodeType) -> Iterable[str]:
    """Return the names of attributes and global variables in code, inner functions included."""
    inner = [name for one in code.co_consts if isinstance(one, CodeType) for name in _names(one)]
    return [*code.co_names, *inner]


def is_user_class(cls: type) -> bool:
    """Return whether a class is the user's own: none of Python's or of an installed package."""
    module = cls.__module__
    if module in sys.builtin_module_names or module.partition(".")[0] in sys.stdlib_module_names:
        return module == "__main__"
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is None or not is_library(file)
