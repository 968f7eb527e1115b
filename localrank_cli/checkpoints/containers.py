"""Finds the state dicts in what torch.load returns."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from localrank_cli.checkpoints.content import Content, State, per_epoch_in
from localrank_cli.checkpoints.faults import shown
from localrank_cli.checkpoints.frameworks import (
    EMA_KEYS,
    callback_averages,
    progress,
    swapped_average,
    without_counter,
)
from localrank_cli.errors import UnreadableError

CONTAINER_KEYS = ("state_dict", "model_state_dict", "model", "net", "params", "module")
# Only ever a step on the way: Composer's `state.model`, torch's `app.model`.
_PASSAGES = ("state", "app", "current_model_state")
# A tensor that repeats its values is small in its file; beyond this it is no weight.
_MOST_REPEATED = 2**30  # bytes
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
    states, averaged = find_states(loaded)
    if not states:
        keys = ", ".join(repr(str(key)) for key in list(loaded)[:8])
        raise UnreadableError(
            f"{path}: no state dict found; its keys are {keys or 'none'}.",
            f"Known places are the top level and {', '.join((*CONTAINER_KEYS, *EMA_KEYS))}; if it"
            f" is no checkpoint, {_LEAVE_OUT}",
        )
    for state in states.values():
        _check_plain(state, path)
    step, source, epoch = progress(loaded)
    return Content(states, step, source, epoch, averaged, per_epoch_in(loaded, source))


def find_states(loaded: Mapping[Any, Any]) -> tuple[dict[str, State], frozenset[str]]:
    """Finds all state dicts at the places where they usually are.

    Args:
        loaded: A whole checkpoint.

    Returns:
        Where they are -> state dicts, the training weights first; and the places of averages.
    """
    raw: dict[str, State] = {}
    averages: dict[str, State] = {}
    for key, state in _candidates(loaded, "").items():
        weights, counted = without_counter(state)
        (averages if counted else raw)[key] = weights
    for key in EMA_KEYS:
        inner = _state_of(loaded.get(key))
        if isinstance(inner, Mapping):
            averages |= _candidates(inner, key, depth=1)
    for key, inner in callback_averages(loaded).items():
        averages |= _candidates(inner, key, depth=1)
    averages = {key: without_counter(state)[0] for key, state in averages.items()}
    swapped = swapped_average(loaded)
    if swapped is not None:
        average, training = swapped
        moved = raw.pop(training, None) or averages.pop(training, None)
        if average in raw:
            averages = {average: raw.pop(average)} | averages
        if moved is not None:
            raw = {training: moved} | raw
    return raw | averages, frozenset(averages)


def _candidates(mapping: Mapping[Any, Any], prefix: str, depth: int = 0) -> dict[str, State]:
    if _is_state(mapping):
        return {prefix: dict(mapping)}
    found: dict[str, State] = {}
    if depth < 3:
        for key in (*CONTAINER_KEYS, *_PASSAGES):
            inner = _state_of(mapping.get(key))
            if isinstance(inner, Mapping):
                found |= _candidates(inner, f"{prefix}.{key}" if prefix else key, depth + 1)
    return found


def _state_of(value: Any) -> Any:
    return value.state_dict() if isinstance(value, nn.Module) else value


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
        claimed, held = tensor.nbytes, tensor.untyped_storage().nbytes()
        if claimed > max(held, _MOST_REPEATED):
            raise UnreadableError(
                f"{path}: {shown(key)} claims {claimed} bytes, and the file keeps {held} for it.",
                f"Save it again, or {_LEAVE_OUT}",
            )
