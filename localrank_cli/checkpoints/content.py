"""What a checkpoint file holds, whatever its format."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from localrank_cli.checkpoints.steps import number_of

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Content:
    """A checkpoint as read: one or more candidate state dicts, and what else it says."""

    states: dict[str, State]  # container key ("" for a bare state dict) -> tensors
    step: int | None = None
    step_source: str = ""  # the key that told the step
    epoch: int | None = None
    averaged: frozenset[str] = frozenset()  # keys of `states` that hold an average over training


STEP_KEYS = (
    "global_step",
    "step",
    "global_steps",
    "steps",
    "iteration",
    "iter_num",
    "iter",
    "num_updates",
)


def integer(value: Any) -> int | None:
    """Reads a step counter.

    Args:
        value: An int, an integral float, a tensor of one such, or a text of digits.

    Returns:
        The int, or None for anything else.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        value = number_of(value.strip())
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) else None


def step_in(mapping: Mapping[str, Any]) -> tuple[int | None, str]:
    """Finds the training step among a checkpoint's own entries.

    Args:
        mapping: The top level of a checkpoint, or safetensors metadata.

    Returns:
        The step and the key that told it; (None, "") when none does.
    """
    for key in STEP_KEYS:
        if key in mapping:
            found = integer(mapping[key])
            if found is not None and found >= 0:
                return found, key
    return None, ""


def epoch_in(mapping: Mapping[str, Any]) -> int | None:
    """Finds the epoch among a checkpoint's own entries.

    Args:
        mapping: The top level of a checkpoint, or safetensors metadata.

    Returns:
        The epoch, or None.
    """
    found = integer(mapping.get("epoch"))
    return found if found is not None and found >= 0 else None
