"""What a network holds beside its state dict, where no checkpoint fills it."""

import dataclasses
import functools
import hashlib
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from localrank_cli.model.build import WholeLayer

# Attributes that torch gives every module: hooks and the like.
_OWN = frozenset(vars(nn.Module()))
_SCALARS = (bool, int, float, complex, str, bytes, np.generic)
_PYTHON = sys.stdlib_module_names
_CODE = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type)


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """The fingerprint of a value."""

    digest: str
    is_array: bool = False
    is_label: bool = False  # a whole number or a text, as counters, ids and dates are


def fingerprints(model: nn.Module, *, state_too: bool = False) -> dict[str, Fingerprint]:
    """Return fingerprints of what a network holds beside its state dict, by name.

    They are of tensors, arrays, numbers and names of functions and classes; with `state_too` also
    of the entries of the state dict.
    """
    found = {name: _print(value) for name, value in _leaves(model)}
    if state_too:
        for name, value in model.state_dict(keep_vars=True).items():
            if isinstance(value, Tensor):
                found[name] = _print(value)
    return found


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
    # Objects by id, kept alive: an id may be reused. Parameters are filled wherever they are held.
    seen: dict[int, object] = {id(one): one for one in (*modules.values(), *root.parameters())}
    # Name, value, and whether numbers count: in a helper object they may be anything.
    todo: list[tuple[str, object, bool]] = []
    for place, module in modules.items():
        yield place or "the network", _code_name(type(module))
        prefix = f"{place}." if place else ""
        todo += [(prefix + key, value, True) for key, value in _own(module)]
    while todo:
        name, value, numbers = todo.pop()
        if isinstance(value, np.ndarray) and value.dtype.hasobject:
            value = value.tolist()
        if isinstance(value, (*_SCALARS, *_CODE)):
            if numbers:
                yield name, value if isinstance(value, _SCALARS) else _code_name(value)
        elif isinstance(value, (Tensor, np.ndarray)):
            if not isinstance(value, nn.Parameter) or id(value) not in seen:
                yield name, value
        elif id(value) not in seen:
            seen[id(value)] = value
            some = numbers and not _is_helper(value)
            todo += [(name + key, part, some) for key, part in _parts(value)]


def _own(module: nn.Module) -> Iterator[tuple[str, object]]:
    """Yield what a module holds beside its state dict, and beside other modules."""
    for key in module._non_persistent_buffers_set:  # noqa: SLF001  # torch has no public way to ask
        yield key, module._buffers.get(key)  # noqa: SLF001  # torch has no public way to ask
    renewed = _renewed(module)
    for key, value in vars(module).items():
        if key not in _OWN and key not in renewed:
            yield key, value


def _parts(value: Any) -> Iterable[tuple[str, object]]:
    """Return what an object holds, and how it is reached."""
    if isinstance(value, dict):
        pairs = enumerate(value.items())
        return [(f"[{k!r}]" if isinstance(k, str) else f"[{i}]", part) for i, (k, part) in pairs]
    if isinstance(value, (list, tuple, deque)):
        return [(f"[{index}]", part) for index, part in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        # The order of a set of strings differs from process to process.
        return [("", str(sorted(repr(part) for part in value if isinstance(part, _SCALARS))))]
    return _parts_of_object(value)


def _parts_of_object(value: Any) -> Iterable[tuple[str, object]]:
    if isinstance(value, functools.partial):
        return [(".func", value.func), (".args", value.args), (".keywords", value.keywords)]
    if isinstance(value, nn.Module):  # in a list, say, where the state dict does not reach it
        held = (value._parameters, value._buffers, value._modules)  # noqa: SLF001  # torch has no public way to ask
        own = {key: part for key, part in vars(value).items() if key not in _OWN}
        named = [(f".{key}", part) for parts in (*held, own) for key, part in parts.items()]
        return [("", _code_name(type(value))), *named]
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return [(f".{name}", getattr(value, name, None)) for name in names]
    if _is_helper(value) and type(value).__module__.partition(".")[0] not in _PYTHON:
        return [(f".{key}", part) for key, part in getattr(value, "__dict__", {}).items()]
    return []


def _is_helper(value: object) -> bool:
    known = (dict, list, tuple, deque, set, frozenset, functools.partial, nn.Module)
    return not isinstance(value, known) and not dataclasses.is_dataclass(value)


def _renewed(module: nn.Module) -> set[str]:
    """Return attributes that torch's own hooks compute before each forward pass (weight_norm)."""
    hooks = module._forward_pre_hooks.values()  # noqa: SLF001  # torch has no public way to ask
    return {
        str(getattr(hook, "name", getattr(hook, "_tensor_name", "")))
        for hook in hooks
        if type(hook).__module__.startswith("torch.nn.utils.")
    }


def _code_name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"


def _print(value: object) -> Fingerprint:
    if isinstance(value, Tensor):
        head, data = f"{value.dtype}|{tuple(value.shape)}|", _bytes_of(value)
    elif isinstance(value, np.ndarray):
        head, data = f"{value.dtype}|{value.shape}|", np.ascontiguousarray(value).tobytes()
    else:
        return Fingerprint(repr(value), is_label=isinstance(value, (int, str, bytes)))
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
    return tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b""
