"""Whether two checkpoints are one and the same."""

from pathlib import Path

import torch

from localrank_cli.checkpoints.choice import choose
from localrank_cli.checkpoints.content import State
from localrank_cli.checkpoints.reading import read_checkpoint


def same_weights(first: Path, second: Path, *, weights: str, trust_pickle: bool) -> bool:
    """Compares the weights of two checkpoints.

    Args:
        first: A weights file, an index, or `.metadata`.
        second: Another one.
        weights: Which of several sets in a file is meant.
        trust_pickle: Whether a pickle may run code.

    Returns:
        True where both are one file (a link), or hold equal tensors under equal names.

    Raises:
        UnreadableError: If one cannot be read.
    """
    if first.samefile(second):
        return True
    left = _state(first, weights, trust_pickle)
    right = _state(second, weights, trust_pickle)
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


def _state(path: Path, weights: str, trust_pickle: bool) -> State:
    content = read_checkpoint(path, trust_pickle=trust_pickle)
    return content.states[choose(list(content.states), content.averaged, weights, str(path))[0]]
