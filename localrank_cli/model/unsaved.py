"""What a network holds beside its state dict, where no checkpoint fills it."""

import dataclasses
import functools
import hashlib
from collections import deque
from collections.abc import Iterator
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from localrank_cli.model.build import WholeLayer
from localrank_cli.model.reach import (
    Parts,
    code_parts,
    object_parts,
    state_of_generator,
)

# Attributes that torch gives every module: hooks and the like.
_OWN = frozenset(vars(nn.Module()))
_SCALARS = (bool, int, float, complex, str, bytes, bytearray, memoryview, np.generic, PurePath)
_CODE = (FunctionType, BuiltinFunctionType, MethodType, type)
_MOST_VALUES = 300_000  # more are not looked at; the forward passes of two builds are compared too
_MOST_SCALARS = 100  # a longer list of scalars is one value


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """The fingerprint of a value, or of several that cannot be told apart by name."""

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
    # Objects by id, kept alive: an id may be reused. Parameters are filled wherever they are held.
    seen: dict[int, object] = {id(one): one for one in (*modules.values(), *root.parameters())}
    todo: deque[tuple[str, object]] = deque()
    for place, module in modules.items():
        yield place or "the network", _code_name(type(module))
        prefix = f"{place}." if place else ""
        todo += [(prefix + key, value) for key, value in _own(module)]
    # What code refers to comes last: an attribute of the network gives the better name.
    for place, module in modules.items():
        prefix = f"{place}." if place else ""
        todo += [(f"{prefix}hook", hook) for hook in _hooks(module)]
        todo += code_parts(module, prefix)
    for _ in range(_MOST_VALUES):
        if not todo:
            return
        name, value = todo.popleft()
        if isinstance(value, np.ndarray) and value.dtype.hasobject:
            value = value.tolist()
        if isinstance(value, (Tensor, np.ndarray)):
            if not isinstance(value, nn.Parameter) or id(value) not in seen:
                yield name, value
            continue
        leaf = _leaf(value)
        if leaf is not None:
            yield name, leaf
        if not isinstance(value, _SCALARS) and id(value) not in seen:
            seen[id(value)] = value
            todo += [(name + key, part) for key, part in _parts(value)]


def _leaf(value: object) -> object:
    """Return what is compared of a value itself, whatever it holds beside that; None if nothing."""
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, _SCALARS):
        return value
    if isinstance(value, _CODE):
        return _code_name(value)
    if _is_long(value):
        return hashlib.sha256(repr(value).encode()).hexdigest()
    return state_of_generator(value)


def _is_long(value: object) -> bool:
    return (
        isinstance(value, (list, tuple, deque))
        and len(value) > _MOST_SCALARS
        and all(type(part) in {bool, int, float, complex, str, bytes} for part in value)
    )


def _own(module: nn.Module) -> Iterator[tuple[str, object]]:
    """Yield what a module holds beside its state dict, and beside other modules."""
    for key in module._non_persistent_buffers_set:  # noqa: SLF001  # torch has no public way to ask
        yield key, module._buffers.get(key)  # noqa: SLF001  # torch has no public way to ask
    renewed = _renewed(module)
    for key, value in vars(module).items():
        if key not in _OWN and key not in renewed:
            yield key, value


def _hooks(module: nn.Module) -> list[object]:
    return [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]  # noqa: SLF001  # torch has no public way to ask


def _parts(value: Any) -> Parts:
    """Return what an object holds, and how it is reached."""
    if _is_long(value):
        return []
    parts: Parts = []
    if isinstance(value, dict):
        for index, (key, part) in enumerate(value.items()):
            is_text = isinstance(key, str)
            parts.append((f"[{key!r}]" if is_text else f"[{index}]", part))
            if not is_text:
                parts.append((f".keys[{index}]", key))
    elif isinstance(value, (list, tuple, deque)):
        parts += [(f"[{index}]", part) for index, part in enumerate(value)]
    elif isinstance(value, (set, frozenset)):
        # One name for all: the order of a set differs from process to process.
        parts += [("", part) for part in value]
    if isinstance(value, nn.Module):  # in a list, say, where the state dict does not reach it
        held = (value._parameters, value._buffers, value._modules)  # noqa: SLF001  # torch has no public way to ask
        own = {key: part for key, part in vars(value).items() if key not in _OWN}
        named = [(f".{key}", part) for some in (*held, own) for key, part in some.items()]
        hooks = [(".hook", hook) for hook in _hooks(value)]
        return [("", _code_name(type(value))), *named, *hooks, *code_parts(value, ".")]
    if isinstance(value, functools.partial):
        return [(".func", value.func), (".args", value.args), (".keywords", value.keywords)]
    return parts if isinstance(value, type) else parts + object_parts(value)


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
    return tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b""
