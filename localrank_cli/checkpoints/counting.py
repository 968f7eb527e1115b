"""What the steps of a series count: steps of the whole training run, or steps within an epoch."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from localrank_cli.checkpoints.names import MAX_STEP
from localrank_cli.checkpoints.places import Place
from localrank_cli.checkpoints.series import CheckpointFile

Same = Callable[[CheckpointFile, CheckpointFile], bool]

STEPS, EPOCHS, DERIVED = "steps", "epochs", "derived"
ALONE = "nothing: one checkpoint without a step"  # also the text in manifests and journals
_TEXT = re.compile(r"^(\d+) steps in each epoch from epoch (\d+) on$")


@dataclass(frozen=True)
class Counting:
    """How the column `step` follows from the place of each checkpoint."""

    # STEPS: as found. EPOCHS: the epoch. DERIVED: from the epoch and the step in it. ALONE: 0, for
    # a single checkpoint without a step. Else: the source of a second number, which counts from the
    # start of training (`Place.others`).
    kind: str = STEPS
    per_epoch: int = 0  # DERIVED: the steps in every epoch
    first_epoch: int = 0  # DERIVED: 0 or 1

    @property
    def text(self) -> str | None:
        """For the manifest and the journal; None for steps as found."""
        if self.kind == DERIVED:
            return f"{self.per_epoch} steps in each epoch from epoch {self.first_epoch} on"
        return None if self.kind == STEPS else self.kind

    @classmethod
    def of_text(cls, text: str | None) -> "Counting":
        """Return the counting whose `text` is given."""
        match = _TEXT.match(text or "")
        if match:
            return cls(DERIVED, int(match[1]), int(match[2]))
        return cls(text or STEPS)

    def step(self, place: Place) -> int | None:
        """Return the step of a checkpoint, or None where it has none."""
        if self.kind == STEPS:
            return place.step
        if self.kind == EPOCHS:
            return place.epoch
        if self.kind == ALONE:
            return 0
        if self.kind == DERIVED:
            if place.step is None or place.epoch is None:
                return None
            return (place.epoch - self.first_epoch) * self.per_epoch + place.step
        return place.others.get(self.kind)


@dataclass(frozen=True)
class Restart:
    """Two checkpoints that show that the step restarts in each epoch."""

    earlier: CheckpointFile
    later: CheckpointFile  # of a later epoch, and not at a later step


def find_restart(places: Mapping[CheckpointFile, Place], same: Same) -> Restart | None:
    """Return the first step that does not increase from one epoch to a later one, or None.

    Checkpoints without a step or an epoch are passed over, and so is everything where all steps
    count from the start of training by their name.
    """
    placed = sorted(
        (one.epoch, one.step, file.name, file)
        for file, one in places.items()
        if one.step is not None and one.epoch is not None
    )
    if all(places[file].is_global for *_, file in placed):
        return None
    highest: tuple[int, CheckpointFile] | None = None  # of all earlier epochs
    for index, (epoch, step, _, file) in enumerate(placed):
        before = placed[index - 1] if index else None
        ended = before is not None and before[0] < epoch
        if before is not None and ended and (highest is None or before[1] >= highest[0]):
            highest = (before[1], before[3])
        if highest is None or step > highest[0]:
            continue
        # The last weights are often saved again when the epoch has been counted.
        if step < highest[0] or not same(highest[1], file):
            return Restart(highest[1], file)
    return None


def decide(places: Mapping[CheckpointFile, Place], same: Same) -> Counting | None:
    """Return the counting that replaces steps that restart in each epoch.

    None where neither steps of the whole training nor the epochs can serve.
    """
    # A checkpoint that has neither may be a copy of another one.
    places = {
        file: one for file, one in places.items() if one.step is not None or one.epoch is not None
    }
    sources = dict.fromkeys(source for one in places.values() for source in one.others)
    for source in sources:
        steps = {file: one.others.get(source) for file, one in places.items()}
        if is_sound(steps, places, same):
            return Counting(source)
    derived = _derived(places)
    if derived is not None:
        return derived
    epochs = {file: one.epoch for file, one in places.items()}
    return Counting(EPOCHS) if are_distinct(epochs, same) else None


def is_sound(
    steps: Mapping[CheckpointFile, int | None], places: Mapping[CheckpointFile, Place], same: Same
) -> bool:
    """Return whether numbers can be the steps of a series.

    All checkpoints must have one, different checkpoints different ones, and they must increase with
    the epoch.
    """
    if not are_distinct(steps, same):
        return False
    moved = {
        file: Place(steps[file], "", one.epoch) for file, one in places.items() if file in steps
    }
    return find_restart(moved, same) is None


def are_distinct(steps: Mapping[CheckpointFile, int | None], same: Same) -> bool:
    """Return whether every checkpoint has a step, and different ones have different steps."""
    seen: dict[int, CheckpointFile] = {}
    for file, step in steps.items():
        if step is None or not 0 <= step <= MAX_STEP:
            return False
        first = seen.setdefault(step, file)
        if first is not file and not same(first, file):
            return False
    return bool(steps)


def _derived(places: Mapping[CheckpointFile, Place]) -> Counting | None:
    placed = []
    for one in places.values():
        if one.step is None or one.epoch is None or one.is_global:
            return None
        placed.append((one.epoch, one.step))
    placed = sorted(set(placed))
    lengths = {one.per_epoch for one in places.values()}
    length = lengths.pop() if len(lengths) == 1 else None
    if length is not None:
        return Counting(DERIVED, length, 0) if _begins_at_0(placed, length) else None
    return _from_even_saves(placed)


def _begins_at_0(placed: Sequence[tuple[int, int]], length: int) -> bool:
    """Return whether (epoch, step) pairs show that the first epoch is 0 until its end.

    Epoch 0 at step 0 may be the initial weights of a training whose epochs count from 1. Where
    epochs are saved at their end, epoch 0 must be too: (1, length) may else be the end of the
    first epoch, counted as completed.
    """
    first = {step for epoch, step in placed if epoch == 0 and step > 0}
    highest = max(step for _, step in placed)
    return bool(first) and (highest < length or (highest == length and length in first))


def _from_even_saves(placed: Sequence[tuple[int, int]]) -> Counting | None:
    # Saved every 30 steps, with 100 in an epoch, the steps within the epochs are 30, 60, 90, then
    # 20, 50, 80, then 10: each passage from one epoch to the next gives 100. Where the steps are
    # the same in each epoch (50, 100, then 50, 100) they may have been saved by the step within
    # the epoch, and nothing follows for its length.
    gaps = {b - a for (epoch, a), (other, b) in pairwise(placed) if epoch == other}
    if len(gaps) != 1:
        return None
    (gap,) = gaps
    passages = [(one, two) for one, two in pairwise(placed) if one[0] != two[0]]
    if any(two[0] != one[0] + 1 for one, two in passages) or len(passages) < 2:
        return None
    lengths = {one[1] + gap - two[1] for one, two in passages}
    if len(lengths) != 1 or len({step % gap for _, step in placed}) == 1:
        return None
    (length,) = lengths
    if any(step > length for _, step in placed):
        return None
    for first in (0, 1):
        steps = [(epoch - first) * length + step for epoch, step in placed]
        if all(step >= 0 and step % gap == 0 for step in steps):
            return Counting(DERIVED, length, first)
    return None
