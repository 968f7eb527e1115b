"""Second places of a network's weights: attributes that are a saved tensor, or a view of one."""

import functools
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from localrank_cli import walk
from localrank_cli.errors import ModelError
from localrank_cli.walk import Parts, Place, Put


class Aliases:
    """Attributes that hold a buffer itself, found before the buffers are moved.

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
        computed = {
            id(vars(module)[key]) for module in model.modules() for key in renewed(module)
            if isinstance(vars(module).get(key), Tensor)
        }  # fmt: skip
        for held in held_arrays(model, in_code=True):
            if id(held.value) in parameters or id(held.value) in computed:
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
                    "Make it in the forward pass from the module's own tensor, or keep it as a"
                    " property.",
                )

    def restore(self) -> None:
        """Assign the buffers, which have been moved, to their second places again."""
        for put, moved in self._moved:
            put(moved())


def _buffers(model: nn.Module) -> dict[int, Callable[[], Any]]:
    """Return how each buffer is found again, by the id of its tensor; saved ones come first."""
    found: dict[int, Callable[[], Any]] = {}
    for saved in (True, False):
        for module in model.modules():
            for key, buffer in module.named_buffers(recurse=False):
                if (key not in module._non_persistent_buffers_set) == saved:
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


def held_arrays(model: nn.Module, *, in_code: bool = False) -> Iterator[Place]:
    """Yield where modules hold tensors and arrays beside what checkpoints fill.

    With `in_code` also those in class attributes and global variables that forward passes use,
    which cannot be replaced: another build of the network may share them.
    """
    seen: dict[int, object] = {id(module): module for module in model.modules()}
    yield from filter(_is_array, held_objects(model, seen))
    if in_code:
        functions = [one for one in seen.values() if isinstance(one, FunctionType)]
        used = _places(model, walk.code_parts)
        used += [
            part.below(one.__qualname__) for one in functions for part in walk.global_parts(one)
        ]
        for place in walk.walk(used, lambda value: _parts(value, in_code=True), seen):
            if _is_array(place):
                yield place._replace(put=None)


def held_objects(model: nn.Module, seen: dict[int, object] | None = None) -> Iterator[Place]:
    """Yield everything that modules hold beside what checkpoints fill; `seen` is that of `walk`."""
    seen = {id(module): module for module in model.modules()} if seen is None else seen
    return walk.walk(_places(model, walk.unsaved_parts), _parts, seen)


def _places(model: nn.Module, parts: Callable[[nn.Module], Parts]) -> Parts:
    return [part.below(name) for name, module in model.named_modules() for part in parts(module)]


def _is_array(place: Place) -> bool:
    return isinstance(place.value, (Tensor, np.ndarray))


def _parts(value: Any, *, in_code: bool = False) -> Parts:
    if isinstance(value, nn.Module):  # in a list, say, where torch does not reach it
        return walk.module_parts(value, walk.SCALARS)
    if isinstance(value, FunctionType):
        own = walk.closure_parts(value) + walk.default_parts(value)
        return own + walk.global_parts(value) if in_code else own
    parts = walk.items(value, walk.SCALARS) + walk.call_parts(value)
    is_opened = not isinstance(value, (type, ModuleType)) and not walk.is_machinery(value)
    return parts + walk.attributes(value, walk.SCALARS) if is_opened else parts


def renewed(module: nn.Module) -> set[str]:
    """Return the attributes that a module's hooks compute before each forward pass.

    Those of torch.nn.utils are known by name. Others are found by running the user's hooks without
    input: a hook that needs an input computes no weight.
    """
    hooks = walk.pre_hooks(module)
    found = {
        getattr(hook, "name", getattr(hook, "_tensor_name", ""))
        for hook in hooks
        if type(hook).__module__.startswith("torch.nn.utils.")
    } - {""}
    others = [hook for hook in hooks if not type(hook).__module__.startswith("torch.")]
    own = vars(module)
    held = {
        key: value
        for key, value in own.items()
        if isinstance(value, Tensor) and key not in walk.OWN and key not in found
    }
    if not others or not held:
        return found
    training = module.training
    module.training = False
    try:
        for hook in others:
            with suppress(Exception), torch.no_grad():  # a hook that needs an input fails
                hook(module, ())
        return found | {key for key, value in held.items() if own.get(key) is not value}
    finally:
        module.training = training
        own.update(held)
