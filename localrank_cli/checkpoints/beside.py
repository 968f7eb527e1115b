"""Steps and epochs in files beside the weights: trainer_state.json and the like."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localrank_cli.checkpoints.content import (
    DAMAGED,
    GLOBAL_KEYS,
    cannot_read,
    epoch_in,
    per_epoch_in,
    step_in,
)
from localrank_cli.checkpoints.folders import entries_in, is_file
from localrank_cli.checkpoints.formats import load_torch
from localrank_cli.errors import UnreadableError, cause

_COUNTED = re.compile(r"^checkpoint_\d+$")
# trainer_state.json holds the log of the whole training; a longer file is cut off and refused.
_MAX_STATE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Facts:
    """Step and epoch from a file beside the weights."""

    step: int | None = None
    source: str = ""  # the file and key of the step
    epoch: int | None = None
    is_global: bool = False  # the name of that key says that it counts from the start of training
    per_epoch: int | None = None


def facts_in(folder: Path) -> Facts:
    """Return step and epoch from Hugging Face's trainer_state.json, else from Lightning's meta.pt.

    Raises:
        UnreadableError: If there is such a file and it cannot be read.
    """
    path = folder / "trainer_state.json"
    if is_file(path):
        return _facts(_json(path), path)
    path = folder / "meta.pt"
    if is_file(path):
        loaded = load_torch(path)
        return _facts(loaded if isinstance(loaded, Mapping) else {}, path)
    return Facts()


def is_count_of_saves(folder: Path) -> bool:
    """Return whether a folder's number is accelerate's count of saves, not a step.

    True for `checkpoint_3` with the random states of a process in it.
    """
    if not _COUNTED.match(folder.name):
        return False
    names = {entry.name for entry in entries_in(folder)}
    return "random_states_0.pkl" in names and "trainer_state.json" not in names


def _facts(mapping: Mapping[str, Any], path: Path) -> Facts:
    step, key = step_in(mapping)
    return Facts(
        step,
        f"{path.name} ({key!r})" if key else "",
        epoch_in(mapping),
        key in GLOBAL_KEYS,
        per_epoch_in(mapping, key),
    )


def _json(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            loaded = json.loads(file.read(_MAX_STATE_BYTES))
    except OSError as error:
        raise cannot_read(path, error) from error
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"{path}: is not JSON ({cause(error)}).", DAMAGED) from error
    return loaded if isinstance(loaded, dict) else {}
