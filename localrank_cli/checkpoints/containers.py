"""Finds the state dict in what torch.load returns."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from localrank_cli.checkpoints.content import Content, State, epoch_in, step_in
from localrank_cli.errors import UnreadableError

CONTAINER_KEYS = ("state_dict", "model_state_dict", "model", "net", "params")
_LEAVE_OUT = "leave it out with --pattern GLOB."


def unwrap(loaded: object, path: Path) -> Content:
    """Finds the state dicts in a loaded object.

    Args:
        loaded: A bare state dict, or a dict that holds one under a usual key.
        path: For messages.

    Returns:
        All candidates; which one fits is decided against the model.

    Raises:
        UnreadableError: If there is none, or a tensor has no plain values.
    """
    if isinstance(loaded, nn.Module):  # only a trusted pickle gives one
        loaded = loaded.state_dict()
    if not isinstance(loaded, Mapping):
        raise UnreadableError(
            f"{path}: holds a {type(loaded).__name__}, not a state dict.",
            f"Save model.state_dict() (a whole pickled module is not read), or {_LEAVE_OUT}",
        )
    states = _candidates(loaded, "")
    if not states:
        keys = ", ".join(repr(str(key)) for key in list(loaded)[:8])
        raise UnreadableError(
            f"{path}: no state dict found; its keys are {keys or 'none'}.",
            f"Known places are the top level and {', '.join(CONTAINER_KEYS)}; if it is no"
            f" checkpoint, {_LEAVE_OUT}",
        )
    for state in states.values():
        _check_plain(state, path)
    step, source = step_in(loaded)
    return Content(states=states, step=step, step_source=source, epoch=epoch_in(loaded))


def _candidates(mapping: Mapping[Any, Any], prefix: str, depth: int = 0) -> dict[str, State]:
    if _is_state(mapping):
        return {prefix: dict(mapping)}
    found: dict[str, State] = {}
    if depth < 3:
        for key in CONTAINER_KEYS:
            inner = mapping.get(key)
            if isinstance(inner, nn.Module):
                inner = inner.state_dict()
            if isinstance(inner, Mapping):
                found |= _candidates(inner, f"{prefix}.{key}" if prefix else key, depth + 1)
    return found


def _is_state(mapping: Mapping[Any, Any]) -> bool:
    return bool(mapping) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in mapping.items()
    )


def _check_plain(state: State, path: Path) -> None:
    for key, tensor in state.items():
        plain = tensor.layout == torch.strided and not tensor.is_quantized
        if not plain or tensor.is_meta:
            kind = "has no values (meta)" if tensor.is_meta else "is sparse or quantized"
            raise UnreadableError(f"{path}: {key} {kind}.", "Save it as a dense tensor of floats.")
