"""Which part of a series is analysed: --steps, --every, --last."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from localrank_cli.errors import UsageError

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
