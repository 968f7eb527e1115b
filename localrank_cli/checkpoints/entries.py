"""The entries of a checkpoint that record how its network was built: `model_args`, `config`, ...

They are read without the code of their classes: an object is known by its attributes.
"""

import sys
from collections.abc import Mapping
from enum import Enum
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from localrank_cli.checkpoints.content import printable_name
from localrank_cli.checkpoints.pickles import Inert, LostTensor, attributes_of, is_module, name_of
from localrank_cli.recorded import DICT, Entries, NotPlain, Record

# Entries that describe the network alone; the others may describe a whole training.
OF_MODEL = ("model_args", "model_kwargs", "model_config", "model_cfg", "model_params", "init_args")
OF_CLASS = ("hyper_parameters", "hyperparameters", "hparams")  # Lightning
OF_TRAINING = ("config", "cfg", "conf", "args", "opt")
# Parts of an entry that describe the network: `config.model`.
_PARTS = ("model", "network", "net", *OF_MODEL)
_NAMESPACES = ("argparse.Namespace", "types.SimpleNamespace")
# A pickle of a few bytes may share objects so that they have more parts than memory holds.
_MOST_VALUES, _DEEPEST = 20_000, 12


def level(place: str) -> int:
    """Return how closely an entry describes the network: 0 for the network alone."""
    if "." in place or place in OF_MODEL:
        return 0
    return 1 if place in OF_CLASS else 2


def find_entries(loaded: object) -> Entries:
    """Return the entries of a loaded file that record arguments, the closest to the network first.

    Those without values are left out.
    """
    if not isinstance(loaded, Mapping):
        return {}
    found: dict[str, Record] = {}
    for key in (*OF_MODEL, *OF_CLASS, *OF_TRAINING):
        record = _Reader().value(loaded[key]) if key in loaded else None
        if not isinstance(record, Record) or not record.values or "param_groups" in record.values:
            continue
        found[key] = record
        if level(key):
            parts = ((f"{key}.{part}", record.values.get(part)) for part in _PARTS)
            found |= {place: one for place, one in parts if isinstance(one, Record) and one.values}
    return {place: found[place] for place in sorted(found, key=level)}


class _Reader:
    """What turns one entry into plain values."""

    def __init__(self) -> None:
        self._left = _MOST_VALUES

    def value(self, value: Any, depth: int = 0) -> object:
        """Return a value as plain ones, with a `NotPlain` in place of each that is not."""
        self._left -= 1
        if isinstance(value, np.generic):
            value = value.item()
        found: object
        if self._left < 0 or depth > _DEEPEST:
            found = NotPlain("part of a very large object")
        elif _is_scalar(value):
            found = value
        elif type(value) in {list, tuple}:
            found = type(value)(self.value(part, depth + 1) for part in value)
        elif isinstance(value, Mapping):
            found = self._mapping(DICT, value, depth)
        elif isinstance(value, Inert):
            found = self._object(value, depth)
        else:
            found = self._real(value, depth)
        return found

    def _mapping(self, kind: str, value: Mapping[Any, Any], depth: int) -> object:
        if all(isinstance(key, str) for key in value):
            return Record(kind, {key: self.value(one, depth + 1) for key, one in value.items()})
        if all(map(_is_scalar, value)):
            return {key: self.value(one, depth + 1) for key, one in value.items()}
        return NotPlain("dict with objects as keys")

    def _object(self, value: Inert, depth: int) -> object:
        kind = printable_name(name_of(value))
        if kind.startswith("omegaconf."):
            return self._omegaconf(value, kind, depth)
        attributes = attributes_of(value)
        if kind.startswith("ml_collections.") and isinstance(attributes.get("_fields"), dict):
            return self._mapping(DICT, attributes["_fields"], depth)
        if value.items:  # a subclass of dict: Lightning's AttributeDict, EasyDict, CfgNode
            return self._mapping(DICT, value.items, depth)
        is_library = kind.partition(".")[0] in {*sys.stdlib_module_names, "torch", "numpy"}
        if (is_library and kind not in _NAMESPACES and kind != "__main__") or is_module(value):
            return NotPlain(kind)
        if not attributes or (value.args and kind not in _NAMESPACES):
            return NotPlain(kind)
        return self._mapping(kind, _public(attributes), depth)

    def _omegaconf(self, value: Inert, kind: str, depth: int) -> object:
        """Return the values of an object of OmegaConf, of which each is in a node of its own."""
        state = value.state if isinstance(value.state, dict) else {}
        if "_content" in state:
            content = state["_content"]
            if isinstance(content, dict):
                return self._mapping(DICT, content, depth)
            return self.value(content, depth) if isinstance(content, list) else NotPlain(kind)
        held = self.value(state["_val"], depth + 1) if "_val" in state else NotPlain(kind)
        is_reference = isinstance(held, str) and "${" in held
        return NotPlain(f"OmegaConf reference ({held})") if is_reference else held

    def _real(self, value: Any, depth: int) -> object:
        """Return the values of an object that trusted code rebuilt."""
        if isinstance(value, (type, torch.dtype)) or callable(value):
            name = getattr(value, "__qualname__", None) or str(value)
            return NotPlain(name_of(value) if isinstance(value, type) else name)
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        others = (Tensor, LostTensor, nn.Module, Enum, ModuleType)
        own = getattr(value, "__dict__", None)
        is_library = kind.partition(".")[0] in sys.stdlib_module_names and kind not in _NAMESPACES
        is_own = type(value).__module__ == "__main__"
        if isinstance(value, others) or not isinstance(own, dict) or (is_library and not is_own):
            return NotPlain(kind)
        return self._mapping(kind, _public(own), depth)


def _is_scalar(value: object) -> bool:
    return value is None or type(value) in {bool, int, float, str}


def _public(attributes: Mapping[Any, Any]) -> dict[Any, Any]:
    return {key: one for key, one in attributes.items() if not str(key).startswith("_")}
