"""Tells every checkpoint's step, and which checkpoints are a second copy of another."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from localrank_cli.checkpoints.beside import Facts, facts_in, is_count_of_saves
from localrank_cli.checkpoints.content import Content
from localrank_cli.checkpoints.folders import is_alias
from localrank_cli.checkpoints.series import CheckpointFile, Series
from localrank_cli.checkpoints.steps import StepRule, is_named_by_steps
from localrank_cli.errors import SettingsError

Note = Callable[[str], None]
Same = Callable[[CheckpointFile, CheckpointFile], bool]

_MOST_NOTES = 3


@dataclass(frozen=True)
class Told:
    """What is known of one checkpoint's place in the training."""

    step: int | None
    place: str  # what told the step, after "its"
    epoch: int | None
    differs: str = ""  # what else says another step, for a note
    is_count: bool = False  # its name holds a number that is no step
    may_be_epoch: bool = False  # its name has a number, no word for steps, and equals the epoch


def tell(file: CheckpointFile, content: Content, rule: StepRule) -> Told:
    """Tells a checkpoint's step: from its contents, else from beside it, else from its name.

    Args:
        file: The checkpoint.
        content: What is in it.
        rule: What the user said.

    Returns:
        The step, if there is one, and the epoch.
    """
    facts = facts_in(file.folder) if file.folder is not None else Facts()
    named = rule.names.step(file.label or file.name.rsplit("/", 1)[-1])
    is_count = file.folder is not None and is_count_of_saves(file.folder)
    by_name: list[tuple[int | None, str]] = [(named, "name (--step-regex)")]
    if not is_count or rule.source == "name":
        by_name.append((file.name_step, "name"))
    inside: list[tuple[int | None, str]] = [
        (content.step, f"entry {content.step_source!r}"),
        (facts.step, facts.place),
    ]
    sources = {"contents": inside, "name": by_name, "epoch": []}.get(rule.source)
    told = [
        pair for pair in (inside + by_name if sources is None else sources) if pair[0] is not None
    ]
    epoch = next((e for e in (content.epoch, facts.epoch, file.name_epoch) if e is not None), None)
    step, place = told[0] if told else (None, "")
    # fairseq's checkpoint_2_500 and checkpoint2 name the epoch: that is no other step.
    of_epoch = file.name_step == epoch and not is_named_by_steps(file.stem)
    other = next(
        (
            f"{where} says step {value}"
            for value, where in told
            if value != step and not (where == "name" and of_epoch)
        ),
        "",
    )
    return Told(step, place, epoch, other, is_count, may_be_epoch=place == "name" and of_epoch)


class Telling:
    """The steps of a series.

    Args:
        series: The checkpoints.
        told: What is known of each.
        same: Whether two checkpoints hold the same weights.
    """

    def __init__(self, series: Series, told: Mapping[CheckpointFile, Told], same: Same) -> None:
        self._series = series
        self._told = told
        self._same = same
        # timm's checkpoint-3 with the entry epoch = 3 is of epochs if all others are too.
        self.in_epochs = bool(told) and all(
            one.step is None or one.may_be_epoch for one in told.values()
        )

    def steps(self, note: Note) -> list[tuple[CheckpointFile, int]]:
        """Gives each checkpoint one step, and each step one checkpoint.

        Args:
            note: Takes each note for the user.

        Returns:
            Files and steps, by step. Aliases (`last.ckpt`, links, copies) are left out.

        Raises:
            SettingsError: If a step cannot be told, or different checkpoints have the same.
        """
        self._note_differences(note)
        groups: dict[int, list[CheckpointFile]] = {}
        unknown = []
        for file in self._told:
            step = self._step(file)
            if step is None:
                unknown.append(file)
            else:
                groups.setdefault(step, []).append(file)
        found = {step: self._one(step, files, note) for step, files in groups.items()}
        kept = [found[step] for step in sorted(found, reverse=True)]
        unknown = [file for file in unknown if not self._is_alias(file, kept, note)]
        if unknown:
            raise self._no_step(unknown)
        if self.in_epochs:
            note("there are epochs and no steps: the column step holds epochs")
        return [(found[step], step) for step in sorted(found)]

    def _step(self, file: CheckpointFile) -> int | None:
        # An epoch among steps is no step.
        return self._told[file].epoch if self.in_epochs else self._told[file].step

    def _note_differences(self, note: Note) -> None:
        differing = [file for file, told in self._told.items() if told.differs]
        for file in differing[:_MOST_NOTES]:
            told = self._told[file]
            note(
                f"{file.name}: its {told.differs}, its {told.place} says {told.step}, which is"
                " taken"
            )
        if len(differing) > _MOST_NOTES:
            note(f"so do {len(differing) - _MOST_NOTES} more checkpoints")

    def _one(self, step: int, files: Sequence[CheckpointFile], note: Note) -> CheckpointFile:
        kept, *others = sorted(files, key=lambda file: _rank(file, step))
        for other in others:
            if not self._same(kept, other):
                raise self._same_step(step, kept, other)
            note(f"{other.name}: left out, the same as {kept.name} (step {step})")
        return kept

    def _is_alias(self, file: CheckpointFile, kept: Sequence[CheckpointFile], note: Note) -> bool:
        twin = next((other for other in kept if self._same(other, file)), None)
        if twin is None:
            return False
        note(f"{file.name}: left out, the same as {twin.name} (step {self._step(twin)})")
        return True

    def _same_step(self, step: int, first: CheckpointFile, second: CheckpointFile) -> SettingsError:
        first, second = sorted((first, second), key=lambda file: file.name)
        places = {
            file: "the epoch" if self.in_epochs else f"its {self._told[file].place}"
            for file in (first, second)
        }
        return SettingsError(
            f"{self._series.folder}: {first.name} (by {places[first]}) and {second.name}"
            f" (by {places[second]}) are both step {step}, and their weights differ.",
            "Leave one out with --pattern GLOB.",
        )

    def _no_step(self, unknown: Sequence[CheckpointFile]) -> SettingsError:
        names = ", ".join(file.name for file in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        if all(self._told[file].is_count for file in unknown):
            return SettingsError(
                f"{self._series.folder}: the number in {names}{more} is accelerate's count of"
                " saves, not a step.",
                "Give --step-from name to count in saves, or rename the folders by their steps"
                " (step_1000).",
            )
        return SettingsError(
            f"{self._series.folder}: no step can be told for {names}{more}.",
            "Names such as step_100, checkpoint-100, epoch=1-step=100 or model_100 tell one; give"
            " --step-regex for other names, choose the checkpoints with --pattern GLOB, or rename"
            " the file.",
        )


def _rank(file: CheckpointFile, step: int) -> tuple[bool, bool, bool, str]:
    """What sorts a checkpoint before its aliases."""
    name = file.label or file.name
    linked = (file.folder or file.path).is_symlink()
    return file.name_step != step, is_alias(name), linked, name
