"""Each checkpoint's place in the training: its step and epoch, and what they were read from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from localrank_cli.checkpoints.beside import Facts, facts_in, is_count_of_saves
from localrank_cli.checkpoints.content import Content
from localrank_cli.checkpoints.frameworks import is_global
from localrank_cli.checkpoints.names import (
    MAX_STEP,
    Groups,
    Named,
    StepRule,
    is_named_by_steps,
    is_named_global,
    read_epochs,
    read_names,
    why_no_step,
)
from localrank_cli.checkpoints.series import CheckpointFile
from localrank_cli.errors import UnreadableError


@dataclass(frozen=True)
class Told:
    """A checkpoint's place in the training."""

    step: int | None
    place: str  # what told the step, after "its"
    epoch: int | None
    differs: str = ""  # what else says another step, for a note
    is_count: bool = False  # its name holds a number that is no step
    may_be_epoch: bool = False  # its name has a number, no word for steps, and equals the epoch
    unsure: Groups = ()  # digit groups of its name that may be one number or several
    is_global: bool = False  # the step counts from the start of training by its name
    # Further steps that count from the start of training: what told them -> number.
    others: Mapping[str, int] = field(default_factory=dict, hash=False)
    per_epoch: int | None = None  # steps in an epoch, where the checkpoint says so
    by_name: int | None = None  # what --step-from name would take


class Names:
    """Steps and epochs in the names of a series, read together.

    Args:
        files: All checkpoints of the series, including those that are left out.
    """

    def __init__(self, files: Sequence[CheckpointFile]) -> None:
        stems = [file.stem for file in files]
        self._steps = read_names(stems)
        self._epochs = read_epochs(stems)

    def step(self, file: CheckpointFile) -> Named:
        """Return the step in a checkpoint's name, which may be too large for the table."""
        return self._steps[file.stem]

    def epoch(self, file: CheckpointFile) -> int | None:
        """Return the epoch in a checkpoint's name, or None."""
        return self._epochs[file.stem]


@dataclass(frozen=True)
class _Source:
    """One number that may be the step."""

    step: int | None
    place: str
    is_global: bool
    per_epoch: int | None = None


def tell(file: CheckpointFile, content: Content, rule: StepRule, names: Names) -> Told:
    """Find a checkpoint's step: in its contents, else beside it, else in its name.

    Args:
        file: The checkpoint.
        content: The checkpoint as read.
        rule: `--step-regex` and `--step-from`.
        names: The names of the whole series.

    Returns:
        The place, whose step and epoch may be None.

    Raises:
        UnreadableError: If the step is not a whole number from 0 to 2^63 - 1.
    """
    facts = facts_in(file.folder) if file.folder is not None else Facts()
    is_count = file.folder is not None and is_count_of_saves(file.folder)
    named = names.step(file)
    by_regex = rule.names.step(file.label or file.name.rsplit("/", 1)[-1])
    source, per_epoch = content.step_source, content.per_epoch
    inside = [
        _Source(content.step, f"entry {source!r}", is_global(source), per_epoch),
        _Source(facts.step, facts.place, facts.is_global, facts.per_epoch),
    ]
    by_name = [_Source(by_regex, "name (--step-regex)", is_global=False)]
    if not is_count or rule.source == "name":
        by_name.append(_Source(named.step, "name", is_named_global(file.stem)))
    chosen = {"contents": inside, "name": by_name, "epoch": []}.get(rule.source, inside + by_name)
    told = [one for one in chosen if one.step is not None]
    epochs = (content.epoch, facts.epoch, names.epoch(file))
    epoch = next((one for one in epochs if one is not None), None)
    first = told[0] if told else _Source(None, "", is_global=False)
    _check(file, first)
    # fairseq's checkpoint_2_500 and checkpoint2 name the epoch: that is no other step.
    of_epoch = named.step == epoch and not is_named_by_steps(file.stem)
    other = next(
        (
            f"{one.place} says step {one.step}"
            for one in told
            if one.step != first.step and not (one.place == "name" and of_epoch)
        ),
        "",
    )
    others = {
        one.place: one.step
        for one in told[1:]
        if one.step is not None and (one.is_global or one is by_name[0])
    }
    return Told(
        first.step,
        first.place,
        epoch,
        other,
        is_count,
        may_be_epoch=first.place == "name" and of_epoch,
        unsure=named.unsure if first.step is None else (),
        is_global=first.is_global,
        others=others,
        per_epoch=first.per_epoch,
        by_name=by_regex if by_regex is not None else named.step,
    )


def _check(file: CheckpointFile, source: _Source) -> None:
    why = why_no_step(source.step) if source.step is not None else ""
    if not why:
        return
    if source.place.startswith("name"):
        advice = "Rename it by its step (step_100), or leave it out with --pattern."
    else:
        advice = (
            "Name it by its step (step_100) and give --step-from name, or leave it out with"
            " --pattern."
        )
    raise UnreadableError(
        f"{file.path}: its {source.place} is {why}, expected a step from 0 to {MAX_STEP}.", advice
    )
