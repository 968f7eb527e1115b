"""Checkpoints that cannot be read or do not fit: the run stops, or goes on without them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from localrank_cli.checkpoints.series import CheckpointFile
from localrank_cli.errors import LocalrankError, MismatchError, SettingsError, UnreadableError
from localrank_cli.pipeline.headers import PlannedCheckpoint, Skip
from localrank_cli.pipeline.part import Part
from localrank_cli.spectrum.spectra import Examination
from localrank_cli.table.record import CheckpointRecord


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
    ) -> Examination:
        """Examines the model at the first checkpoint, or at a later one where errors are skipped.

        Args:
            planned: At least one.
            examine: Reads a checkpoint and runs a point.

        Returns:
            What was seen.

        Raises:
            UnreadableError: If the checkpoint cannot be read.
            MismatchError: If it does not fit.
        """
        for later, checkpoint in enumerate(planned, start=1):
            try:
                return examine(checkpoint)
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
