"""Steps and shapes of every checkpoint, from the headers alone, before any work."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from localrank_cli.checkpoints.adapters import (
    adapter_key,
    is_adapter_alone,
    is_of_peft,
    refusal,
)
from localrank_cli.checkpoints.content import Content, State
from localrank_cli.checkpoints.counting import Counting
from localrank_cli.checkpoints.names import StepRule
from localrank_cli.checkpoints.order import SeriesSteps, StepScheme
from localrank_cli.checkpoints.places import Names, Place, find_place
from localrank_cli.checkpoints.reading import Twins, read_checkpoint
from localrank_cli.checkpoints.series import CheckpointFile, Series
from localrank_cli.checkpoints.weights import (
    RAW,
    Stripping,
    candidates,
    choose,
    describe_weights,
    strip_to_fit,
)
from localrank_cli.errors import LocalrankError, MismatchError, Note, SettingsError, UnreadableError
from localrank_cli.model.fill import Expected, fill_custom, has_custom_loading, mismatch
from localrank_cli.options.parse import Part
from localrank_cli.results.record import CheckpointRecord
from localrank_cli.spectrum.layer import Examination

Skip = Callable[[CheckpointFile, LocalrankError], None]


@dataclass(frozen=True)
class _Header:
    """What must be known of a checkpoint before its tensors are read."""

    shapes: dict[str, dict[str, tuple[int, ...]]]  # container -> key -> shape
    averaged: frozenset[str]  # containers that hold an average over training
    dtypes: dict[str, dict[str, torch.dtype]]  # container -> key -> dtype


@dataclass(frozen=True)
class PlannedCheckpoint:
    """One checkpoint, its step known, its header checked."""

    file: CheckpointFile
    step: int
    container: str  # key of the state dict in the file; "" for a bare one
    stripping: Stripping
    aside: tuple[str, ...] = ()  # other state dicts in the file, not taken
    epoch: int | None = None
    averaged: bool = False  # whether the weights are an average over training
    points: tuple[int, int] | None = None  # only these (first, one past the last), for a shard
    mapped: bool = True  # whether its tensors may be mapped; not while a training may write it

    @property
    def place(self) -> str:
        """File and step, for messages."""
        return f"{self.file.path} (step {self.step})"


@dataclass(frozen=True)
class Setting:
    """What is known of a series beside the files to be read."""

    files: tuple[CheckpointFile, ...] = ()  # all of the series: their names are read together
    counting: Counting | None = None  # what a plan file says that the steps count
    earlier: StepScheme | None = None  # of checkpoints that were there before these
    is_inferred: bool = False  # whether the network is read off the weights
    is_hf: bool = False  # whether transformers builds it


class Headers:
    """Reads each checkpoint's header once.

    Args:
        series: The checkpoints.
        trust_pickle: Whether a pickle may run code.
        rule: Where steps are looked for.
        weights: Which of several sets of weights in one file are meant (`--weights`).
        setting: What is known beside the files.
    """

    def __init__(
        self,
        series: Series,
        trust_pickle: bool,
        rule: StepRule = StepRule(),  # noqa: B008  # frozen
        weights: str = RAW,
        setting: Setting = Setting(),  # frozen
    ) -> None:
        self._series = series
        self._trust_pickle = trust_pickle
        self._rule = rule
        self._weights = weights
        self._twins = Twins(weights, trust_pickle)
        self._headers: dict[CheckpointFile, _Header] = {}
        self._last = _Header({}, frozenset(), {})
        self._epochs: dict[CheckpointFile, int | None] = {}
        self._setting = setting
        self.scheme = StepScheme(rule, Counting(), {})  # how the steps were found
        self.unfilled: set[str] = set()  # parts of the model that a checkpoint left as they were
        self.first: State | None = None  # the weights in the first file, by name

    def steps(self, note: Note, skip: Skip | None = None) -> list[tuple[CheckpointFile, int]]:
        """Tells each checkpoint's step, and leaves out second copies.

        Args:
            note: Takes each note for the user.
            skip: Takes each file that cannot be read; None: the first is an error.

        Returns:
            Files and steps, by step.

        Raises:
            SettingsError: If a step cannot be told, or different checkpoints have the same.
        """
        places: dict[CheckpointFile, Place] = {}
        earlier = self._setting.earlier
        before = earlier.places if earlier is not None else ()
        names = Names([*before, *self._setting.files, *self._series.files])
        for file in self._series.files:
            content = self._read(file, skip)
            if content is None:
                continue
            chosen = self._choose(list(content.states), content.averaged, file)
            try:
                bare = self._check_adapter({key: content.states[key] for key in chosen}, file)
                places[file] = find_place(file, content, self._rule, names)
            except UnreadableError as error:
                _skip(skip, file, error)
                continue
            if self.first is None:
                self.first = content.states[bare]
            self._headers[file] = self._shared(content)
        ordered = self._in_order(places, names)
        steps = ordered.steps(note)
        self._epochs = {file: places[file].epoch for file, _ in steps}
        return steps

    def _in_order(self, places: dict[CheckpointFile, Place], names: Names) -> SeriesSteps:
        earlier = self._setting.earlier
        if earlier is None:
            counting = self._setting.counting
            ordered = SeriesSteps(self._series, places, self._same, self._rule, counting)
            self.scheme = ordered.scheme
            return ordered
        # The names of earlier checkpoints may have to be read in another way now.
        again = {
            file: replace(one, step=names.step(file).step) if one.source == "name" else one
            for file, one in earlier.places.items()
        }
        together = SeriesSteps(self._series, again | places, self._same, self._rule)
        for file in places:
            earlier.check(together, file)
        self.scheme = together.scheme
        return SeriesSteps(self._series, places, self._same, self._rule, earlier.counting)

    def _read(self, file: CheckpointFile, skip: Skip | None) -> Content | None:
        try:
            return read_checkpoint(file.path, trust_pickle=self._trust_pickle, header_only=True)
        except UnreadableError as error:
            _skip(skip, file, error)
            return None

    def _check_adapter(self, states: Mapping[str, State], file: CheckpointFile) -> str:
        """Refuse an adapter alone, and give the set of weights from which a network is inferred."""
        # Where code gives the network, it decides: a network may consist of such layers.
        if self._setting.is_inferred:
            bare = [key for key, state in states.items() if not adapter_key(state)]
        else:
            is_hf = self._setting.is_hf
            bare = [key for key, state in states.items() if not (is_hf and is_adapter_alone(state))]
        if not bare or is_of_peft(file.path):
            raise UnreadableError(*refusal(file.path, next(iter(states.values()))))
        return bare[0]

    def _same(self, one: CheckpointFile, other: CheckpointFile) -> bool:
        if one in self._headers and other in self._headers:
            return self._headers[one] == self._headers[other] and self._twins.same(
                one.path, other.path
            )
        try:
            return self._twins.same(one.path, other.path)
        except UnreadableError:  # an earlier one is not there any more
            return False

    def _choose(
        self, keys: Sequence[str], averaged: frozenset[str], file: CheckpointFile
    ) -> tuple[str, ...]:
        return choose(keys, averaged, self._weights, str(file.path))

    def _shared(self, content: Content) -> _Header:
        shapes = {
            key: {name: tuple(tensor.shape) for name, tensor in state.items()}
            for key, state in content.states.items()
        }
        dtypes = {
            key: {name: tensor.dtype for name, tensor in state.items()}
            for key, state in content.states.items()
        }
        header = _Header(shapes, content.averaged, dtypes)
        # Checkpoints of one run have equal headers: one copy keeps memory flat for any number.
        if header != self._last:
            self._last = header
        return self._last

    def plan(
        self, file: CheckpointFile, step: int, model: nn.Module, expected: Expected
    ) -> PlannedCheckpoint:
        """Checks a checkpoint's keys and shapes against the model.

        Args:
            file: From `steps`.
            step: From `steps`.
            model: The network.
            expected: What it must hold.

        Returns:
            How its weights are to be loaded.

        Raises:
            MismatchError: If they do not fit.
        """
        header = self._headers[file]
        chosen = self._choose(list(header.shapes), header.averaged, file)
        epoch = self._epochs.get(file)
        for container in chosen:
            found = strip_to_fit(header.shapes[container], expected.fits)
            if found is not None:
                _check_types(header, container, found[0], expected, f"{file.path} (step {step})")
                aside = tuple(
                    describe_weights(key, header.averaged)
                    for key in header.shapes
                    if key != container
                )
                averaged = container in header.averaged
                return PlannedCheckpoint(file, step, container, found[0], aside, epoch, averaged)
        place = PlannedCheckpoint(file, step, "", Stripping()).place
        if has_custom_loading(model):
            # A user's load hooks may accept what keys and shapes alone do not show.
            content = read_checkpoint(file.path, trust_pickle=self._trust_pickle)
            for container in chosen:
                with suppress(MismatchError):
                    state = content.states[container]
                    self.unfilled |= fill_custom(model, expected, state, place)
                    return PlannedCheckpoint(file, step, container, Stripping(), epoch=epoch)
        if all(is_adapter_alone(header.shapes[key]) for key in chosen):
            raise MismatchError(*refusal(file.path, header.shapes[chosen[0]]))
        closest = min(
            (renamed for key in chosen for _, renamed in candidates(header.shapes[key])),
            key=lambda shapes: sum(map(len, expected.differences(shapes))),
        )
        raise mismatch(expected, closest, place)


def _skip(skip: Skip | None, file: CheckpointFile, error: UnreadableError) -> None:
    if skip is None:
        raise error
    skip(file, error)


def _check_types(
    header: _Header, container: str, stripping: Stripping, expected: Expected, place: str
) -> None:
    dtypes = header.dtypes[container]
    if not expected.has_complex and all(dtype.is_floating_point for dtype in dtypes.values()):
        return  # nothing to find, and a series may have thousands of checkpoints
    for other, renamed in candidates(dtypes):
        if other == stripping:
            expected.check_types(renamed, place)
            return


def load_state(checkpoint: PlannedCheckpoint, trust_pickle: bool) -> dict[str, Tensor]:
    """Reads a planned checkpoint's tensors under the model's names.

    Args:
        checkpoint: From the plan.
        trust_pickle: Whether a pickle may run code.

    Returns:
        Name -> tensor.
    """
    content = read_checkpoint(
        checkpoint.file.path, trust_pickle=trust_pickle, mapped=checkpoint.mapped
    )
    state: Mapping[str, Tensor] | None = content.states.get(checkpoint.container)
    if state is not None:
        for stripping, renamed in candidates(state):
            if stripping == checkpoint.stripping:
                return renamed
    raise SettingsError(
        f"{checkpoint.place}: the file changed since the run began.",
        "Run again when nothing writes to it.",
    )


class Failures:
    """Collects what failed, where that is no reason to stop.

    Args:
        run: Name of the series.
        skips: Whether to go on; else the first error is raised.
    """

    def __init__(self, run: str, *, skips: bool) -> None:
        self._run = run
        self._skips = skips
        self._errors: list[LocalrankError] = []
        self.records: list[CheckpointRecord] = []
        self._unread: dict[int, CheckpointFile] = {}  # index of the record -> file

    @property
    def taker(self) -> Skip | None:
        """Takes each checkpoint that cannot be read; None: the first is an error."""
        return self._take_unread if self._skips else None

    def _take_unread(self, file: CheckpointFile, error: LocalrankError) -> None:
        self._unread[len(self.records)] = file
        self._take(file.name, None, error)

    def place_unread(self, step_of: Callable[[CheckpointFile], int | None]) -> None:
        """Give what could not be read its step, now that those of the others are known.

        Args:
            step_of: Returns the step by the name of a checkpoint.
        """
        for index, file in self._unread.items():
            self.records[index] = replace(self.records[index], step=step_of(file))

    def _take(self, name: str, step: int | None, error: LocalrankError) -> None:
        self._errors.append(error)
        self.records.append(failed_record(self._run, name, step, error))

    def fitting(
        self,
        steps: Sequence[tuple[CheckpointFile, int]],
        plan: Callable[[CheckpointFile, int], PlannedCheckpoint],
        folder: Path,
    ) -> list[PlannedCheckpoint]:
        """Plans each checkpoint whose keys and shapes fit.

        Args:
            steps: Files and steps.
            plan: Checks one of them against the model.
            folder: The series.

        Returns:
            At least one.

        Raises:
            MismatchError: If one does not fit and errors are not skipped.
            LocalrankError: If none is left.
        """
        planned = []
        for file, step in steps:
            try:
                planned.append(plan(file, step))
            except MismatchError as error:
                if not self._skips:
                    raise
                self._take(file.name, step, error)
        if not planned:
            self.refuse_all(folder)
        return planned

    def first_that_runs(
        self,
        planned: Sequence[PlannedCheckpoint],
        examine: Callable[[PlannedCheckpoint], Examination],
    ) -> tuple[Examination, tuple[str, ...]]:
        """Examines the model at the first checkpoint, or at a later one where errors are skipped.

        Args:
            planned: At least one.
            examine: Reads a checkpoint and runs a point.

        Returns:
            What was seen, and the names of the checkpoints that were tried.

        Raises:
            UnreadableError: If the checkpoint cannot be read.
            MismatchError: If it does not fit.
        """
        for later, checkpoint in enumerate(planned, start=1):
            try:
                return examine(checkpoint), tuple(one.file.name for one in planned[:later])
            except (UnreadableError, MismatchError):  # told when it is that checkpoint's turn
                if not self._skips or later == len(planned):
                    raise
        raise AssertionError  # there is at least one

    def refuse_all(self, folder: Path) -> None:
        """Says that there is nothing left to analyse.

        Args:
            folder: The series.

        Raises:
            LocalrankError: Always.
        """
        first = self._errors[0]
        raise type(first)(
            f"{folder}: none of its {len(self._errors)} checkpoints can be analysed; the first:"
            f" {first.what}",
            first.advice,
        )


def failed_record(
    run: str, checkpoint: str, step: int | None, error: LocalrankError
) -> CheckpointRecord:
    """What stands for a checkpoint that could not be read or run.

    Args:
        run: Name of the series.
        checkpoint: Name of the checkpoint.
        step: None where it could not be told.
        error: What was wrong.

    Returns:
        A record without numbers.
    """
    return CheckpointRecord(run, checkpoint, step, status=error.status, message=str(error))


def choose_part(
    part: Part,
    planned: Sequence[PlannedCheckpoint],
    failed: Sequence[CheckpointRecord],
    folder: Path,
) -> tuple[tuple[PlannedCheckpoint, ...], tuple[CheckpointRecord, ...]]:
    """Picks the part of a series that was asked for.

    Args:
        part: Which.
        planned: By step.
        failed: What failed; it counts as a checkpoint of its step.
        folder: The series.

    Returns:
        Checkpoints and failures of that part.

    Raises:
        SettingsError: If nothing is left.
    """
    if part.is_all:
        return tuple(planned), tuple(failed)
    every: list[PlannedCheckpoint | CheckpointRecord] = [*planned, *failed]
    every.sort(key=lambda one: float("inf") if one.step is None else one.step)
    picked = part.of(every)
    if not picked:
        steps = [one.step for one in every]
        raise SettingsError(
            f"{folder}: --steps leaves none of its {len(every)} checkpoints, which are at steps"
            f" {steps[0]} to {steps[-1]}.",
            "Give a range that holds some.",
        )
    return (
        tuple(one for one in picked if isinstance(one, PlannedCheckpoint)),
        tuple(one for one in picked if isinstance(one, CheckpointRecord)),
    )
