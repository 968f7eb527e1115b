"""Which part of a series is analysed: --steps, --every, --last."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeVar

from localrank_cli.errors import SettingsError, UsageError

_RANGE = re.compile(r"^\s*(\d*)\s*(?:(:)\s*(\d*)\s*(?::\s*(\d+)\s*)?)?$")


class HasStep(Protocol):
    """Anything of a known step, or of none."""

    @property
    def step(self) -> int | None:
        """The training step."""


_Item = TypeVar("_Item", bound=HasStep)


@dataclass(frozen=True)
class StepRange:
    """Steps from first to last, ends included, and of these every `stride` from the first on."""

    first: int = 0
    last: int | None = None  # None: to the end
    stride: int = 1

    def __contains__(self, step: int) -> bool:
        if step < self.first or (self.last is not None and step > self.last):
            return False
        return (step - self.first) % self.stride == 0


def parse_steps(text: str) -> StepRange:
    """Reads a range of steps.

    Args:
        text: `A:B`, `A:B:C`, `A:`, `:B` or a single step `A`.

    Returns:
        The range.

    Raises:
        UsageError: If it is none, or holds nothing.
    """
    match = _RANGE.match(text)
    if match is None or not text.strip():
        raise UsageError(
            f"--steps {text}: not a range of steps.",
            "Ranges are A:B (ends included), A:B:C (every C steps from A on), A: and :B.",
        )
    first, colon, last, stride = match.groups()
    begin = int(first or 0)
    end = int(last) if last else None if colon else begin
    if (end is not None and end < begin) or (stride is not None and int(stride) == 0):
        raise UsageError(f"--steps {text}: holds no step.", "Give A:B with A at most B.")
    return StepRange(begin, end, int(stride or 1))


@dataclass(frozen=True)
class Part:
    """The part that was asked for; by default all."""

    steps: StepRange | None = None
    every: int = 1
    last: int | None = None

    @property
    def is_all(self) -> bool:
        """Whether nothing is left out."""
        return self == Part()

    def of(self, items: Sequence[_Item]) -> list[_Item]:
        """Picks: first by step, then every K-th, then the last ones.

        Args:
            items: By step; what has none comes last and belongs to no range.

        Returns:
            The part.
        """
        steps = self.steps
        picked = [
            item
            for item in items
            if steps is None or (item.step is not None and item.step in steps)
        ][:: self.every]
        return picked if self.last is None else picked[-self.last :]


def check_part(part: Part) -> None:
    """Checks the numbers.

    Args:
        part: As given.

    Raises:
        UsageError: If one is under 1.
    """
    if part.every < 1:
        raise UsageError(f"--every {part.every}: at least 1.")
    if part.last is not None and part.last < 1:
        raise UsageError(f"--last {part.last}: at least 1.")


AUTO = "auto"
_FORM = re.compile(r"^(\d+)/(\d+)$")


@dataclass(frozen=True)
class Shard:
    """One part of the work."""

    index: int  # from 0
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def file_name(self) -> str:
        """The name of its table, without a suffix."""
        return f"shard-{self.index:05d}-of-{self.count:05d}"


def parse_shard(text: str, environment: Mapping[str, str]) -> Shard:
    """Reads `--shard`.

    Args:
        text: `I/N` with I from 0 to N-1, or `auto`.
        environment: Where `auto` looks.

    Returns:
        The shard.

    Raises:
        UsageError: If it is none.
        SettingsError: If `auto` finds nothing to go by.
    """
    if text.strip().lower() == AUTO:
        return _from_environment(environment)
    match = _FORM.match(text.strip())
    if match is None:
        raise UsageError(f"--shard {text}: not of the form I/N.", "Give 0/8 to 7/8, or auto.")
    index, count = int(match.group(1)), int(match.group(2))
    if index >= count:
        raise UsageError(
            f"--shard {text}: counting starts at 0.",
            f"Of {count} shards the first is 0/{count} and the last {count - 1}/{count}."
            if count
            else "Give at least one shard: 0/1.",
        )
    return Shard(index, count)


def array_size(environment: Mapping[str, str]) -> int | None:
    """How many tasks the Slurm array has that this process belongs to.

    Args:
        environment: Of the process.

    Returns:
        The number; None outside of an array.
    """
    count = _number(environment, "SLURM_ARRAY_TASK_COUNT")
    return count if "SLURM_ARRAY_TASK_ID" in environment else None


def _from_environment(environment: Mapping[str, str]) -> Shard:
    task = _number(environment, "SLURM_ARRAY_TASK_ID")
    if task is not None:
        low, high, count = (
            _number(environment, f"SLURM_ARRAY_TASK_{name}") for name in ("MIN", "MAX", "COUNT")
        )
        if low is None or high is None or count is None or high - low + 1 != count:
            raise SettingsError(
                f"--shard auto: the array's tasks {low} to {high} are {count}, so that they are not"
                " numbered one after another.",
                "Submit it with --array=0-7 (no step, no list), or give --shard I/N.",
            )
        return Shard(task - low, count)
    # SLURM_PROCID stands in a batch script too, where there is one process and many tasks.
    if environment.get("SLURM_STEP_ID", "").isdecimal():
        rank, size = _number(environment, "SLURM_PROCID"), _number(environment, "SLURM_NTASKS")
        if rank is not None and size is not None:
            return Shard(rank, size)
    rank, size = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    if rank is not None and size is not None and rank < size:
        return Shard(rank, size)
    raise SettingsError(
        "--shard auto: neither a Slurm array, nor srun, nor RANK and WORLD_SIZE tell which part is"
        " this process's.",
        "Give --shard I/N.",
    )


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    return int(text) if text.isdecimal() else None


class Preset(StrEnum):
    """Rules of published work."""

    patel2024 = "patel2024"
    feng2022 = "feng2022"
    numpy = "numpy"


def parse_preset(text: str) -> Preset:
    """Reads a preset's name.

    Args:
        text: The name.

    Returns:
        The preset.

    Raises:
        UsageError: If there is none of that name.
    """
    try:
        return Preset(text)
    except ValueError:
        raise UsageError(
            f"--preset {text}: not known.", f"Known are {', '.join(Preset)}."
        ) from None
