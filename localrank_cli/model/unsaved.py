"""Values that a network holds beside its state dict, which no checkpoint fills."""

import enum
import hashlib
import logging
import random
import sys
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from localrank_cli import walk
from localrank_cli.model.build import WholeLayer
from localrank_cli.model.sharing import renewed
from localrank_cli.walk import Parts, Place

_CODE = (FunctionType, BuiltinFunctionType, MethodType, type)
# Objects that hold no data.
_ATOMS = (type, ModuleType, CodeType, logging.Logger)
# More values are not compared: the forward passes of two builds are, too.
_MAX_VALUES = 300_000
_MAX_SCALARS = 100  # a longer list of scalars is one value
_NUMPY = (np.random.Generator, np.random.BitGenerator)
_PYTHON = random.Random  # noqa: S311  # only recognized in the user's code, never drawn from
_LEGACY = np.random.RandomState  # a user's code may hold one
_REDUCED = 5  # entries of what __reduce_ex__ returns: function, arguments, state, items, pairs


@dataclass(frozen=True)
class Fingerprint:
    """The fingerprint of a value, or of several under one name."""

    digest: str
    is_array: bool = False  # not a number, a text or a name of code


def fingerprints(model: nn.Module, *, state_too: bool = False) -> dict[str, Fingerprint]:
    """Return fingerprints of what a network holds beside its state dict, by name.

    They are of tensors, arrays, numbers, texts, states of generators and names of functions and
    classes; with `state_too` also of the entries of the state dict.
    """
    found: dict[str, list[Fingerprint]] = {}
    for name, value in _leaves(model):
        found.setdefault(name, []).append(_print(value))
    if state_too:
        for name, value in model.state_dict(keep_vars=True).items():
            if isinstance(value, Tensor):
                found[name] = [_print(value)]
    return {name: _joined(prints) for name, prints in found.items()}


def state_aliases(model: nn.Module) -> set[str]:
    """Return the names, as in `fingerprints`, of what the state dict holds in another place too.

    The model must be on its device and in its dtype: a buffer's second place may be left behind
    then.
    """
    state = {id(value) for value in model.state_dict(keep_vars=True).values()}
    return {name for name, value in _leaves(model) if id(value) in state}


def _leaves(model: nn.Module) -> Iterator[tuple[str, object]]:
    root = model.model if isinstance(model, WholeLayer) else model
    modules = dict(root.named_modules())
    parameters = {id(one) for one in root.parameters()}  # filled wherever they are held
    start: Parts = []
    for name, module in modules.items():
        yield name or "the network", _code_name(type(module))
        computed = {f".{key}" for key in renewed(module)}
        held = [part for part in walk.unsaved_parts(module) if part.name not in computed]
        start += [part.below(name) for part in held]
    # References in code come last, since an attribute of the network gives a better name.
    for name, module in modules.items():
        start += [part.below(name) for part in _hooks(module) + walk.code_parts(module)]
    seen: dict[int, object] = {id(module): module for module in modules.values()}
    places = walk.walk(start, _parts, seen, most=None)
    for name, value, _ in islice(places, _MAX_VALUES):
        if isinstance(value, (Tensor, np.ndarray)):
            is_filled = isinstance(value, nn.Parameter) and id(value) in parameters
            if not is_filled and not walk.holds_objects(value):
                yield name, value
            continue
        leaf = _leaf(value)
        if leaf is not None:
            yield name, leaf


def _leaf(value: object) -> object:
    """Return what is compared of a value itself, whatever it holds beside that; None if nothing."""
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, walk.SCALARS):
        return value
    if isinstance(value, _CODE):
        return _code_name(value)
    if _is_long(value):
        return hashlib.sha256(repr(value).encode(errors="surrogatepass")).hexdigest()
    return _state_of_generator(value)


def _is_long(value: object) -> bool:
    return (
        isinstance(value, (list, tuple, deque))
        and len(value) > _MAX_SCALARS
        and all(type(part) in {bool, int, float, complex, str, bytes} for part in value)
    )


def _hooks(module: nn.Module) -> Parts:
    return [Place(".hook", hook) for hook in walk.hooks(module)]


def _parts(value: Any) -> Parts:
    """Return what an object holds that may decide a number."""
    if isinstance(value, nn.Module):  # in a list, say, where the state dict does not reach it
        name = Place("", _code_name(type(value)))
        parts = [name, *walk.module_parts(value), *_hooks(value), *walk.code_parts(value)]
    elif isinstance(value, _ATOMS) or walk.is_machinery(value) or _is_long(value):
        parts = []
    elif isinstance(value, enum.Enum):
        name = Place("", f"{type(value).__qualname__}.{value.name}")
        parts = [name, Place(".value", value.value)]
    elif isinstance(value, BuiltinFunctionType):
        parts = [Place("", value.__self__)]
    elif isinstance(value, FunctionType):
        parts = walk.used_parts(value)
    else:
        parts = walk.call_parts(value) or _object_parts(value)
    return parts


def _object_parts(value: Any) -> Parts:
    # A generator counts as one value, its state.
    attributes = walk.attributes(value) if _state_of_generator(value) is None else []
    return walk.items(value) + attributes + _reduced(value, attributes)


def _reduced(value: Any, attributes: Parts) -> Parts:
    """Return what a pickle holds beside the attributes, where a library wrote the class."""
    containers = (dict, list, tuple, set, frozenset, np.ndarray)
    if isinstance(value, containers) or _state_of_generator(value) is not None:
        return []
    names = {"__reduce__", "__reduce_ex__", "__getstate__"}
    writer = next(base for base in type(value).__mro__ if names & set(vars(base)))
    if walk.is_users((type(value) if writer is object else writer).__module__):
        return []  # pickling would run the user's code, or give no more than the attributes
    if writer is object and attributes:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = value.__reduce_ex__(4)
            parts = found[1:_REDUCED] if isinstance(found, tuple) else [found]
            held = [list(part) if isinstance(part, Iterator) else part for part in parts]
    except Exception:  # it cannot be pickled (a lock, a file); libraries raise anything then
        return []
    known = {id(part.value) for part in attributes}
    for index, part in enumerate(held):
        if isinstance(part, dict):
            held[index] = {key: one for key, one in part.items() if id(one) not in known}
    return [Place("", part) for part in held]


def _state_of_generator(value: Any) -> str | None:
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


def _code_name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"


def _joined(prints: list[Fingerprint]) -> Fingerprint:
    if len(prints) == 1:
        return prints[0]
    digest = "|".join(sorted(one.digest for one in prints))
    return Fingerprint(digest, any(one.is_array for one in prints))


def _print(value: object) -> Fingerprint:
    if isinstance(value, Tensor) and value.is_nested:
        return _joined([_print(part) for part in value.unbind()])
    if isinstance(value, Tensor):
        head, data = f"{value.dtype}|{tuple(value.shape)}|", _bytes_of(value)
    elif isinstance(value, np.ndarray):
        head, data = f"{value.dtype}|{value.shape}|", np.ascontiguousarray(value).tobytes()
    else:
        return Fingerprint(repr(value))
    digest = hashlib.sha256(head.encode())
    digest.update(data)
    return Fingerprint(digest.hexdigest(), is_array=True)


def _bytes_of(tensor: Tensor) -> Any:
    if tensor.is_meta:
        return b""
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    # Not `numpy()`: it forbids to resize the tensor, as observers of quantization do on loading.
    return np.from_dlpack(tensor.reshape(-1).view(torch.uint8)).data if tensor.numel() else b""
