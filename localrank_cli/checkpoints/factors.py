"""Files that hold layers as two factors of low rank, as `localrank compress` writes them."""

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

# The entry of a file's metadata that lists the layers.
FACTORED = "localrank.factored"


def factored_in(metadata: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the layers of which a file holds factors, by its metadata."""
    try:
        names = json.loads(metadata.get(FACTORED, "[]"))
    except (TypeError, ValueError, RecursionError):
        return frozenset()
    return frozenset(map(str, names)) if isinstance(names, list) else frozenset()


def metadata_of(step: int, names: Iterable[str] = ()) -> dict[str, str]:
    """Return the metadata of a file with some layers as factors, and the step of the original."""
    return {"step": str(step), FACTORED: json.dumps(list(names))}


def without_factors(state: Mapping[str, Tensor], names: Collection[str]) -> Mapping[str, Tensor]:
    """Return weights as they were before layers were factored, those layers' on `meta`.

    In the same order, with `NAME.weight` and `NAME.bias` in place of `NAME.0.weight` and so on.
    """
    if not names:
        return state
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removesuffix(".0.weight")
        left = state.get(f"{name}.1.weight")
        if name != key and name in names and left is not None:
            shape = (left.shape[0], *value.shape[1:])
            found[f"{name}.weight"] = torch.empty(shape, dtype=value.dtype, device="meta")
        elif key.endswith(".1.bias") and key.removesuffix(".1.bias") in names:
            found[f"{key.removesuffix('.1.bias')}.bias"] = value
        elif not (key.endswith(".1.weight") and key.removesuffix(".1.weight") in names):
            found[key] = value
    return found
