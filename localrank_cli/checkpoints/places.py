"""Each checkpoint's place in the training: its step and epoch, from its contents, files or name.

The files are trainer_state.json and the like, beside the weights.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localrank_cli.checkpoints.content import (
    DAMAGED,
    GLOBAL_KEYS,
    Content,
    cannot_read,
    epoch_in,
    per_epoch_in,
    step_in,
)
from localrank_cli.checkpoints.folders import entries_in, is_file
from localrank_cli.checkpoints.frameworks import is_global
from localrank_cli.checkpoints.names import (
    MAX_STEP,
    Groups,
    NameStep,
    StepRule,
    names_global_step,
    names_step,
    read_epochs,
    read_names,
    step_fault,
)
from localrank_cli.checkpoints.series import CheckpointFile
from localrank_cli.checkpoints.torch_file import load_torch
from localrank_cli.errors import UnreadableError, cause
from localrank_cli.files import open_regular

_COUNTED = re.compile(r"^checkpoint_\d+$")
# trainer_state.json holds the log of the whole training; a longer file is cut off and refused.
_MAX_STATE_BYTES = 256 * 2**20
_UNCOUNTED = -1  # the value of a counter that has counted nothing


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
        with open_regular(path) as file:
            loaded = json.loads(file.read(_MAX_STATE_BYTES))
    except OSError as error:
        raise cannot_read(path, error) from error
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"{path}: is not JSON ({cause(error)}).", DAMAGED) from error
    return loaded if isinstance(loaded, dict) else {}


@dataclass(frozen=True)
class Place:
    """A checkpoint's place in the training."""

    step: int | None
    source: str  # where the step was found; follows "its" in messages
    epoch: int | None
    conflict: str = ""  # another source with another step, for a note
    is_count: bool = False  # its name counts saves, not steps
    may_be_epoch: bool = False  # the number in its name equals the epoch and is not called a step
    unsure: Groups = ()  # digit groups of its name that may be one number or several
    is_global: bool = False  # the step counts from the start of training by its name
    # Further steps that count from the start of training, by their source.
    others: Mapping[str, int] = field(default_factory=dict, hash=False)
    per_epoch: int | None = None  # steps in an epoch, where the checkpoint records it
    by_name: int | None = None  # the step by --step-from name


class Names:
    """Steps and epochs in the names of a series, read together.

    Args:
        files: All checkpoints of the series, including those that are left out.
    """

    def __init__(self, files: Sequence[CheckpointFile]) -> None:
        stems = [file.stem for file in files]
        self._steps = read_names(stems)
        self._epochs = read_epochs(stems)

    def step(self, file: CheckpointFile) -> NameStep:
        """Return the step in a checkpoint's name, which may be too large for the table."""
        return self._steps[file.stem]

    def epoch(self, file: CheckpointFile) -> int | None:
        """Return the epoch in a checkpoint's name, or None."""
        return self._epochs[file.stem]


@dataclass(frozen=True)
class _Candidate:
    """One number that may be the step."""

    step: int | None
    source: str
    is_global: bool
    per_epoch: int | None = None


def find_place(file: CheckpointFile, content: Content, rule: StepRule, names: Names) -> Place:
    """Return a checkpoint's place: its step from its contents, else beside it, else its name.

    `names` are those of the whole series.

    Raises:
        UnreadableError: If the step is not a whole number from 0 to 2^63 - 1.
    """
    facts = facts_in(file.folder) if file.folder is not None else Facts()
    is_count = file.folder is not None and is_count_of_saves(file.folder)
    named = names.step(file)
    by_regex = rule.names.step(file.label or file.name.rsplit("/", 1)[-1])
    source, per_epoch = content.step_source, content.per_epoch
    inside = [
        _Candidate(content.step, f"entry {source!r}", is_global(source), per_epoch),
        _Candidate(facts.step, facts.source, facts.is_global, facts.per_epoch),
    ]
    inside = [one for one in inside if one.step != _UNCOUNTED]
    by_name = [_Candidate(by_regex, f"name ({rule.names.option})", is_global=False)]
    if not is_count or rule.source == "name":
        by_name.append(_Candidate(named.step, "name", names_global_step(file.stem)))
    chosen = {"contents": inside, "name": by_name, "epoch": []}.get(rule.source, inside + by_name)
    found = [one for one in chosen if one.step is not None]
    epochs = (content.epoch, facts.epoch, names.epoch(file))
    epoch = next((one for one in epochs if one is not None), None)
    first = found[0] if found else _Candidate(None, "", is_global=False)
    _check(file, first)
    # fairseq's checkpoint_2_500 and checkpoint2 name the epoch, which is not another step.
    of_epoch = named.step == epoch and not names_step(file.stem)
    conflict = next(
        (
            f"{one.source} says step {one.step}"
            for one in found
            if one.step != first.step and not (one.source == "name" and of_epoch)
        ),
        "",
    )
    others = {
        one.source: one.step
        for one in found[1:]
        if one.step is not None and (one.is_global or one is by_name[0])
    }
    return Place(
        step=first.step,
        source=first.source,
        epoch=epoch,
        conflict=conflict,
        is_count=is_count,
        may_be_epoch=first.source == "name" and of_epoch,
        unsure=named.unsure if first.step is None else (),
        is_global=first.is_global,
        others=others,
        per_epoch=first.per_epoch,
        by_name=by_regex if by_regex is not None else named.step,
    )


def _check(file: CheckpointFile, candidate: _Candidate) -> None:
    why = step_fault(candidate.step) if candidate.step is not None else ""
    if not why:
        return
    if candidate.source.startswith("name"):
        advice = "Rename it after its step (step_100), or leave it out with --pattern."
    else:
        advice = (
            "Name it after its step (step_100) and give --step-from name, or leave it out with"
            " --pattern."
        )
    raise UnreadableError(
        f"{file.path}: its {candidate.source} is {why}, expected a step from 0 to {MAX_STEP}.",
        advice,
    )
