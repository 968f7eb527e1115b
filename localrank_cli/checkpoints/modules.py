"""The classes of the modules in a whole pickled network, by name: none of their code runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from localrank_cli.checkpoints.pickles import Inert, name_of

# A pickle of a few bytes can share modules so that they have more names than memory holds.
_MOST_MODULES, _DEEPEST_MODULE = 10_000, 100
_OWN = "torch.nn.modules."
_PASSING = ("training", "inplace")  # they decide no number in eval mode
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@dataclass(frozen=True)
class HeldModule:
    """A module in a file."""

    path: str  # dotted; empty for the root
    kind: str  # its class: torch.nn.modules.activation.Tanh
    settings: Mapping[str, object] = field(hash=False)  # public numbers and texts of torch's own
    is_leaf: bool
    has_hooks: bool


def held_modules(value: object) -> tuple[HeldModule, ...]:
    """Return all modules of a network in order of definition, the root first.

    Empty for an object that is no module, and where there are too many.
    """
    found: list[HeldModule] = []
    for module in _walk(value, ()):
        if len(found) == _MOST_MODULES:
            return ()
        found.append(module)
    return tuple(found)


def kinds_of(modules: Sequence[HeldModule]) -> list[tuple[str, Mapping[str, object], bool]]:
    """Return what decides the function of a network of such modules, but for its weights."""
    return [(one.kind, one.settings, one.has_hooks) for one in modules if one.is_leaf]


def object_at(loaded: object, key: str) -> object:
    """Return what a file holds at the place of a state dict (`state.model`); None if nothing."""
    if not key:
        return loaded
    if not isinstance(loaded, Mapping):
        return None
    if key in loaded:
        return loaded[key]
    head, _, rest = key.partition(".")
    return object_at(loaded.get(head), rest) if rest else None


def _walk(value: object, path: tuple[str, ...]) -> Iterator[HeldModule]:
    parts = _parts(value)
    if parts is None or len(path) > _DEEPEST_MODULE:
        return
    inner = {str(key): one for key, one in parts["_modules"].items() if one is not None}
    kind = name_of(value) if isinstance(value, Inert) else _class_name(value)
    yield HeldModule(
        ".".join(path),
        kind,
        dict(_settings(parts)) if kind.startswith(_OWN) else {},
        not inner,
        any(parts.get(key) for key in _HOOKS),
    )
    for key, one in inner.items():
        yield from _walk(one, (*path, key))


def _settings(parts: Mapping[Any, Any]) -> Iterator[tuple[str, object]]:
    for key, value in parts.items():
        is_public = isinstance(key, str) and not key.startswith("_") and key not in _PASSING
        if is_public and isinstance(value, (int, float, str)):
            yield key, value


def _parts(value: object) -> Mapping[Any, Any] | None:
    """Return the attributes of a module, inert or, from trusted code, a real one."""
    if isinstance(value, nn.Module):
        return vars(value)
    if not isinstance(value, Inert):
        return None
    if name_of(value) == "torch._dynamo.eval_frame.OptimizedModule" and value.args:
        return {"_modules": {"_orig_mod": value.args[0]}}
    state = value.state if isinstance(value.state, tuple) else (value.state,)
    for one in (*state, *value.args):
        if isinstance(one, dict) and isinstance(one.get("_modules"), dict):
            return one
    return None


def _class_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
