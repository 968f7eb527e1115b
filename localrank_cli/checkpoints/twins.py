"""Whether two checkpoints are one and the same."""

from pathlib import Path

import torch

from localrank_cli.checkpoints.choice import choose
from localrank_cli.checkpoints.content import State
from localrank_cli.checkpoints.faults import cannot_read
from localrank_cli.checkpoints.reading import read_checkpoint


class Twins:
    """Compares checkpoints by their tensors; the last second one is kept, not read again.

    Args:
        weights: Which of several sets in a file is meant (`--weights`).
        trust_pickle: Whether a pickle may run code.
    """

    def __init__(self, weights: str, trust_pickle: bool) -> None:
        self._weights = weights
        self._trust_pickle = trust_pickle
        self._last: tuple[Path, State] | None = None

    def same(self, first: Path, second: Path) -> bool:
        """Compares two checkpoints.

        Args:
            first: A weights file, an index, or `.metadata`.
            second: Another one; kept for the next call.

        Returns:
            True where both are one file (a link), or hold equal tensors under equal names.

        Raises:
            UnreadableError: If one cannot be read.
        """
        try:
            if first.samefile(second):
                return True
        except OSError as error:
            raise cannot_read(Path(error.filename or second), error) from error
        if self._last is None or self._last[0] != second:
            self._last = (second, self._state(second))
        return _equal(self._state(first), self._last[1])

    def _state(self, path: Path) -> State:
        content = read_checkpoint(path, trust_pickle=self._trust_pickle)
        keys = choose(list(content.states), content.averaged, self._weights, str(path))
        return content.states[keys[0]]


def _equal(left: State, right: State) -> bool:
    if left.keys() != right.keys():
        return False
    # The smallest tensors first: of mapped files the others are then not read where these differ.
    for key in sorted(left, key=lambda name: left[name].numel()):
        one, other = left[key], right[key]
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        equal = (one == other) | ((one != one) & (other != other))  # noqa: PLR0124  # NaN in any dtype
        if not bool(torch.all(equal)):
            return False
    return True
