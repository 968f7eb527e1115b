"""The content of a checkpoint in any format: state dicts, step and epoch."""

import errno
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from localrank_cli.checkpoints.bundle import Bundle
from localrank_cli.checkpoints.factors import factored_in
from localrank_cli.checkpoints.modules import HeldModule
from localrank_cli.checkpoints.names import NO_NUMBER, TOO_LARGE, number_in_text
from localrank_cli.checkpoints.pickles import LostTensor
from localrank_cli.errors import UnreadableError, cause, is_out_of_files, is_out_of_memory, one_line
from localrank_cli.recorded import Entries

State = Mapping[str, Tensor]

DAMAGED = "Is the file complete? Copy or save it again, or leave it out with --pattern."

# Counters whose name says that they start with the training; others may restart in each epoch.
GLOBAL_KEYS = ("global_step", "global_steps", "num_updates")
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
# Keys of the number of steps in an epoch, by the key of the step.
_PER_EPOCH = {
    "step": ("steps_per_epoch", "num_steps_per_epoch"),
    "steps": ("steps_per_epoch", "num_steps_per_epoch"),
    "iteration": ("iterations_per_epoch", "iters_per_epoch", "epoch_length"),
    "iter": ("iters_per_epoch", "iterations_per_epoch"),
    "iter_num": ("iters_per_epoch", "iterations_per_epoch"),
}


@dataclass(frozen=True)
class Content:
    """A checkpoint as read: one or more candidate state dicts, with the step and epoch it holds."""

    states: dict[str, State]  # container key ("" for a bare state dict) -> tensors
    step: int | None = None  # as found: may be below 0 or too large for a table
    step_source: str = ""  # the key that holds the step
    epoch: int | None = None
    averaged: frozenset[str] = frozenset()  # keys of `states` that hold an average over training
    per_epoch: int | None = None  # steps in an epoch, where the file records it
    others: frozenset[str] = frozenset()  # keys of `states` at other places: generator
    bundle: Bundle | None = None  # further checkpoints in the file
    entries: Entries = field(default_factory=dict)  # what records how the network was built
    # Of each key of `states` that holds a whole module: what it consists of.
    modules: Mapping[str, tuple[HeldModule, ...]] = field(default_factory=dict)
    factored: frozenset[str] = frozenset()  # layers that are held as two factors

    @classmethod
    def of_state(cls, state: State, metadata: Mapping[str, Any]) -> "Content":
        """Return a bare state dict with the step and epoch that its metadata hold."""
        step, source = step_in(metadata)
        return cls(
            {"": state},
            step=step,
            step_source=source,
            epoch=epoch_in(metadata),
            per_epoch=per_epoch_in(metadata, source),
            factored=factored_in(metadata),
        )


def integer(value: Any) -> int | None:
    """Return a counter as an int: from an int, an integral float, a tensor of one, or digits.

    TOO_LARGE for infinity, NO_NUMBER for NaN, minus infinity and a tensor whose value cannot be
    read; None for anything else.
    """
    if isinstance(value, LostTensor):  # on meta, say: refused, not passed over for another place
        return NO_NUMBER
    if isinstance(value, Tensor) and value.numel() == 1:
        value = _value_of(value)
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        value = number_in_text(value)
    if isinstance(value, float):
        value = _of_float(value)
    return value if isinstance(value, int) else None


def _value_of(tensor: Tensor) -> Any:
    try:
        return tensor.item()
    except Exception:  # on meta, or of a dtype or layout without values: such a step is refused
        return NO_NUMBER


def _of_float(value: float) -> int | None:
    if math.isnan(value):
        return NO_NUMBER
    if math.isinf(value):
        return TOO_LARGE if value > 0 else NO_NUMBER
    return int(value) if value.is_integer() else None


def step_in(mapping: Mapping[str, Any], keys: Sequence[str] = STEP_KEYS) -> tuple[int | None, str]:
    """Return the training step among a checkpoint's own entries, and its key; (None, "") if absent.

    The clearest of `keys` comes first. A number that cannot be a step is returned as it is, a
    negative one only where no other key has a step.
    """
    found = [(number, key) for key in keys if (number := integer(mapping.get(key))) is not None]
    # A counter of -1 often means that nothing was counted.
    counted = [pair for pair in found if pair[0] >= 0 or pair[0] == NO_NUMBER]
    first = (counted or found)[:1]
    return first[0] if first else (None, "")


def epoch_in(mapping: Mapping[str, Any]) -> int | None:
    """Return the epoch among a checkpoint's own entries, or None."""
    found = integer(mapping.get("epoch"))
    return found if found is not None and found >= 0 else None


def per_epoch_in(mapping: Mapping[str, Any], key: str) -> int | None:
    """Return how many steps an epoch has, in the unit of the step's key; None if not recorded."""
    for name in _PER_EPOCH.get(key, ()):
        found = integer(mapping.get(name))
        if found is not None and found > 0:
            return found
    return None


def cannot_read(path: Path, error: OSError) -> UnreadableError:
    """Return the error for a file that the system refused to read.

    Raises:
        OSError: If too many files are open, which is no fault of this one.
    """
    if is_out_of_files(error):
        raise error
    reason = error.strerror or one_line(error)
    return UnreadableError(
        f"{path}: cannot be read ({reason}).",
        "Check that it exists and that you have permission to read it.",
    )


def check_file(path: Path) -> None:
    """Check that a file can be opened and has content.

    Raises:
        UnreadableError: If not, or if its name is one that torch and safetensors do not take.
    """
    try:
        if path.stat().st_size == 0:
            raise UnreadableError(f"{path}: the file is empty.", DAMAGED)
        with path.open("rb"):  # safetensors calls every reason a missing file
            str(path).encode()
    except OSError as error:
        raise cannot_read(path, error) from error
    except UnicodeError as error:  # torch and safetensors take no other names
        raise UnreadableError(
            f"{path}: the path is not UTF-8.", "Rename it, or use a UTF-8 locale."
        ) from error


def check_limits(path: Path, error: Exception) -> None:
    """Keep an error from being taken for damage of a file, where the machine is at its limits.

    Raises:
        MemoryError: If no memory was left.
        OSError: If too many files are open.
    """
    if is_out_of_memory(error):
        raise MemoryError(f"{path}: {cause(error)}") from error
    if is_out_of_files(error):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path)) from error


def printable_name(name: str) -> str:
    """Return the beginning of a name that a file holds, without terminal control sequences."""
    return "".join(letter if letter.isprintable() else "?" for letter in name[:160])
