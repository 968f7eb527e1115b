"""One step for every checkpoint of a series, and the copies among them."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from localrank_cli.checkpoints.counting import (
    ALONE,
    DERIVED,
    EPOCHS,
    STEPS,
    Counting,
    Restart,
    Same,
    decide,
    find_restart,
    is_sound,
)
from localrank_cli.checkpoints.folders import is_alias
from localrank_cli.checkpoints.names import StepRule, joint_number, number_of, step_fault
from localrank_cli.checkpoints.places import Names, Place
from localrank_cli.checkpoints.series import CheckpointFile, Series
from localrank_cli.errors import Note, SettingsError

# With what follows it, so that --pattern does not choose stage10 for stage1.
_STAGE = re.compile(r"(?<![A-Za-z])stage[=_\-.]?(\d{1,9})(?!\d)(?:[^\w*?\[\]]|_|$)", re.IGNORECASE)
_MAX_NOTES = 3  # on conflicts; further checkpoints are only counted


@dataclass(frozen=True)
class StepScheme:
    """How the steps of a series were found, for checkpoints that are saved later."""

    rule: StepRule
    counting: Counting
    places: Mapping[CheckpointFile, Place]
    restarts: bool = False  # whether the steps that were found restart in each epoch
    stages: str = ""  # a note on stages that are read as one training

    def check(self, new: "SeriesSteps", file: CheckpointFile) -> None:
        """Refuse a checkpoint with which earlier ones would have other steps.

        `new` are the steps of the earlier checkpoints and this one.

        Raises:
            SettingsError: If an earlier step would change.
        """
        counting = new.scheme.counting
        if counting != self.counting:
            now, before = (describe_counting(one) for one in (counting, self.counting))
            reason = f"the column step must hold {now}, but so far it holds {before}"
        else:
            steps = new.scheme.places
            changed = next(
                (old for old, place in self.places.items() if place.step != steps[old].step),
                None,
            )
            if changed is None:
                return
            reason = f"the digit groups in {changed.name} are read differently"
        raise SettingsError(
            f"{file.path}: now that it is there, {reason}.",
            "Rename the earlier one after its step (step_0), or leave it out with --pattern; then"
            " rerun the command with --overwrite."
            if self.counting.kind == ALONE
            else "Rerun the command with --overwrite, which starts over with all of them.",
        )

    def epoch_facts(self, file: CheckpointFile) -> dict[str, int]:
        """Return the epoch, for the journal, which shows a later run that steps restart per epoch.

        Empty where the step cannot restart.
        """
        place = self.places.get(file)
        if place is None or place.epoch is None or place.is_global or self.counting.kind != STEPS:
            return {}
        return {"epoch": place.epoch}

    def check_finished(self, finished: Mapping[str, tuple[int, int]], journal: object) -> None:
        """Refuse to add to checkpoints that show that steps restart in each epoch.

        They may be gone by now: `finished` maps their names to step and epoch, as in the journal.

        Raises:
            SettingsError: If a step is not above those of earlier epochs.
        """
        if self.counting.kind != STEPS or self.rule.source:
            return
        present = {file.name for file in self.places}
        earlier = {
            CheckpointFile(Path(name), name): Place(step, "", epoch)
            for name, (step, epoch) in finished.items()
            if name not in present
        }
        restart = find_restart({**earlier, **self.places}, lambda *_: True) if earlier else None
        if restart is not None:
            shown = describe_restart(restart, {**earlier, **self.places})
            raise SettingsError(
                f"{journal}: the steps restart in each epoch ({shown}), so they cannot be in one"
                " table.",
                "Give another name with -o, or start over with --overwrite.",
            )

    def step_of_unread(self, file: CheckpointFile) -> int | None:
        """Return the step of a checkpoint that cannot be read, by its name; None if uncertain."""
        names = Names([*self.places, file])
        step = names.step(file).step
        if self.counting.kind == EPOCHS:
            epoch = names.epoch(file)
            step = epoch if epoch is not None or self.restarts else step
        elif self.counting.kind != STEPS:
            step = None
        return None if step is None or step_fault(step) else step


def describe_restart(restart: Restart, places: Mapping[CheckpointFile, Place]) -> str:
    """Return the two checkpoints that show that the step restarts, for messages."""
    return " after ".join(
        f"{file.name}: epoch {places[file].epoch}, step {places[file].step}"
        for file in (restart.later, restart.earlier)
    )


def describe_counting(counting: Counting) -> str:
    """Return what the column `step` holds, for messages, without an article."""
    if counting.kind == DERIVED:
        return f"steps counted from the start, with {counting.text}"
    known = {
        STEPS: "steps as they were found",
        EPOCHS: "epochs",
        ALONE: "0, since there is no step",
    }
    return known.get(counting.kind, f"what the {counting.kind} says")


class SeriesSteps:
    """The steps of a series.

    Args:
        same: Whether two checkpoints hold the same weights.
        rule: `--step-regex` and `--step-from`.
        counting: What the steps count, if that is known already; otherwise it is decided here.
    """

    def __init__(
        self,
        series: Series,
        places: Mapping[CheckpointFile, Place],
        same: Same,
        rule: StepRule,
        counting: Counting | None = None,
    ) -> None:
        self._series = series
        self._places = places
        self._same = same
        self._rule = rule
        self._restart: Restart | None = None
        self._stages = ""  # a note on stages that count on
        self._is_settled = counting is not None
        self.counting = counting or self._decide()

    @property
    def scheme(self) -> StepScheme:
        """How the steps were found, for checkpoints that are saved later."""
        restarts = self._restart is not None
        return StepScheme(self._rule, self.counting, self._places, restarts, self._stages)

    def steps(self, note: Note) -> list[tuple[CheckpointFile, int]]:
        """Return the checkpoints and their steps, by step; each step has one checkpoint.

        Aliases (`last.ckpt`, links, copies) are left out, with a note for each.

        Raises:
            SettingsError: If a checkpoint has no step, or different ones have the same.
        """
        if self.counting.kind == STEPS:
            self._note_differences(note)
        groups: dict[int, list[CheckpointFile]] = {}
        unknown = []
        for file in self._places:
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
        self._note_counting(note)
        return [(found[step], step) for step in sorted(found)]

    def _is_alone(self) -> bool:
        """Return whether the series is one checkpoint without a step: it needs no order.

        It does if the user says how steps are found, or if a number in the name may be a step.
        """
        if len(self._series.files) != 1 or self._rule.source or self._rule.names.regex is not None:
            return False
        return all(
            place.step is None and place.epoch is None and not place.unsure and not place.is_count
            for place in self._places.values()
        )

    def _check_stages(self) -> None:
        """Refuse stages of a training (OLMo's stage2-step500-tokens3B) that count from 0 again.

        Raises:
            SettingsError: If a step of a later stage is not above those of an earlier one.
        """
        stages: dict[int, list[tuple[int, CheckpointFile, str]]] = {}
        for file, place in self._places.items():
            match = _STAGE.search(file.stem)
            if match and place.step is not None:
                stages.setdefault(int(match[1]), []).append((place.step, file, match[0]))
        for (_, one), (_, other) in pairwise(sorted(stages.items())):
            last, first = (pick(items, key=lambda item: item[0]) for pick, items in (
                (max, one), (min, other),
            ))  # fmt: skip
            if first[0] <= last[0]:
                raise SettingsError(
                    f"{self._series.folder}: the steps restart in each stage ({first[1].stem} after"
                    f" {last[1].stem}), so one table cannot hold both.",
                    "Analyze each stage into a table of its own:"
                    f" --pattern '*{last[2]}*' -o stage1.csv, and"
                    f" --pattern '*{first[2]}*' -o stage2.csv.",
                )
            self._stages = self._stages or (
                f"{first[1].stem} comes after {last[1].stem}: the stages are read as one training"
                " run; if each counts its own steps, analyze them one by one (--pattern"
                f" '*{last[2]}*', --pattern '*{first[2]}*')"
            )

    def _decide(self) -> Counting:
        places = self._places
        if places and self._is_alone():
            return Counting(ALONE)
        if not self._rule.source and self._rule.names.regex is None:
            self._check_stages()
        # timm's checkpoint-3 with the entry epoch = 3 is of epochs if all others are too.
        if places and all(one.step is None or one.may_be_epoch for one in places.values()):
            return Counting(EPOCHS)
        self._restart = find_restart(places, self._same)
        # A source that the user names is used as it is.
        if self._restart is None or self._rule.source:
            return Counting()
        counting = decide(places, self._same)
        if counting is None:
            raise self._no_order(self._restart)
        return counting

    def _step(self, file: CheckpointFile) -> int | None:
        step = self.counting.step(self._places[file])
        why = step_fault(step) if step is not None else ""
        if why:
            raise SettingsError(
                f"{file.path}: its {self._source(file)} is {why}, which is not a step.",
                "Leave it out with --pattern, or rename it after its step (step_100) and give"
                " --step-from name.",
            )
        return step

    def _source(self, file: CheckpointFile) -> str:
        kind = self.counting.kind
        if kind == STEPS:
            return self._places[file].source
        return {EPOCHS: "epoch", DERIVED: "step, counted over all epochs,"}.get(kind, kind)

    def _note_counting(self, note: Note) -> None:
        kind = self.counting.kind
        if self._is_settled:
            return
        if kind == ALONE:
            (file,) = self._places
            note(f"{file.label or file.name}: no step was found, so it is step 0")
            return
        if self._stages and kind == STEPS:
            note(self._stages)
        if self._restart is None:
            if kind == EPOCHS:
                note("there are epochs but no steps: the column step holds epochs")
            return
        shown = describe_restart(self._restart, self._places)
        reason = f"the steps restart in each epoch ({shown})"
        if kind == STEPS:
            note(f"{reason}, and are used as they are (--step-from {self._rule.source})")
        else:
            note(f"{reason}: the column step holds {describe_counting(self.counting)}")

    def _no_order(self, restart: Restart) -> SettingsError:
        epochs: dict[int | None, list[str]] = {}
        for file, place in self._places.items():
            epochs.setdefault(place.epoch, []).append(file.name)
        without = epochs.pop(None, [])
        epoch, names = max(epochs.items(), key=lambda one: len(one[1]))
        if len(names) > 1:
            reason = f"epoch {epoch} has several checkpoints ({', '.join(names[:3])})"
        else:
            reason = f"{without[0]} has no epoch" if without else "an epoch is too large"
        named = {file: place.by_name for file, place in self._places.items()}
        return SettingsError(
            f"{self._series.folder}: the steps restart in each epoch"
            f" ({describe_restart(restart, self._places)}), and {reason}, so neither step nor epoch"
            " orders the run.",
            "The names do: give --step-from name."
            if is_sound(named, self._places, self._same)
            else "Name the files after their steps from the start of training (step_1000) and give"
            " --step-from name, or choose one per epoch with --pattern GLOB.",
        )

    def _note_differences(self, note: Note) -> None:
        differing = [file for file, place in self._places.items() if place.conflict]
        for file in differing[:_MAX_NOTES]:
            place = self._places[file]
            note(
                f"{file.name}: its {place.conflict}, its {place.source} says {place.step}, which is"
                " used"
            )
        if len(differing) > _MAX_NOTES:
            note(f"the same holds for {len(differing) - _MAX_NOTES} more checkpoints")

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

    def _unsure(self, file: CheckpointFile) -> SettingsError:
        groups = self._places[file].unsure
        first, whole = groups[0], joint_number(groups[:2])
        mark = "_" if "_".join(groups) in file.name else r"\D"
        fields = rf"'(\d+){mark}\d+' for step {number_of(first)}"
        if len(groups) == 2:
            fields += rf", or '\d+{mark}(\d+)' for step {number_of(groups[1])}"
        return SettingsError(
            f"{self._series.folder}: the digits {'_'.join(groups)} in {file.name} may be one number"
            " or several, and the other names do not show which.",
            rf"Give --step-regex '(\d+{mark}\d+)' for step {whole}, {fields}; or rename the file.",
        )

    def _same_step(self, step: int, first: CheckpointFile, second: CheckpointFile) -> SettingsError:
        first, second = sorted((first, second), key=lambda file: file.name)
        in_epochs = self.counting.kind == EPOCHS
        places = {
            file: "the epoch" if in_epochs else f"its {self._source(file)}"
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
        if all(self._places[file].is_count for file in unknown):
            return SettingsError(
                f"{self._series.folder}: the number in {names}{more} is accelerate's count of"
                " saves, not a step.",
                "Give --step-from name to count in saves, or rename the folders after their steps"
                " (step_1000).",
            )
        unsure = next((file for file in unknown if self._places[file].unsure), None)
        if unsure is not None:
            return self._unsure(unsure)
        pattern = _pattern([file.label or file.name.rsplit("/", 1)[-1] for file in unknown])
        if pattern and not self._rule.source and self._rule.names.regex is None:
            return SettingsError(
                f"{self._series.folder}: no step was found for {names}{more}.",
                f"Give --step-pattern {shlex.quote(pattern)}, if the number that differs is the"
                " step; or choose the checkpoints with --pattern GLOB.",
            )
        return SettingsError(
            f"{self._series.folder}: no step was found for {names}{more}.",
            "Names such as step_100, checkpoint-100, epoch=1-step=100 or model_100 hold one; give"
            " --step-regex for other names, choose the checkpoints with --pattern GLOB, or rename"
            " the file.",
        )


def _pattern(names: Sequence[str]) -> str:
    """Return the text for --step-pattern of names that differ in one whole number alone, or ""."""
    split = [re.split(r"(\d+)", name) for name in names]
    first = split[0]
    differing = {
        index
        for one in split
        for index, (text, other) in enumerate(zip(first, one, strict=False))
        if text != other
    }
    if len(differing) != 1 or any(len(one) != len(first) for one in split):
        return ""
    (index,) = differing
    before, after = "".join(first[:index]), "".join(first[index + 1 :])
    # 5k is a number of thousands, and 0.1 is no whole number.
    is_whole = not re.match(r"[kmb](?![a-z])|\.\d", after, re.IGNORECASE) and not re.search(
        r"\d\.$", before
    )
    is_literal = "{" not in before + after
    return f"{before}{{step}}{after}" if index % 2 and is_whole and is_literal else ""


def _rank(file: CheckpointFile, step: int) -> tuple[bool, bool, bool, str]:
    """Return a key that sorts a checkpoint before its aliases."""
    name = file.label or file.name
    linked = (file.folder or file.path).is_symlink()
    return file.name_step != step, is_alias(name), linked, name
