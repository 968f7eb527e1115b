"""The training step that a name tells."""

import re

_WORDS = (
    r"(?:global[_-]?)?steps?",
    r"iter(?:ation)?s?",
    r"checkpoint|ckpt|model|weights|net|snapshot",
)
_EPOCH = r"epochs?"
_NUMBER = r"[=_\-.]?(\d+)(?![0-9A-Za-z]|\.\d)"


def step_in_name(stem: str) -> int | None:
    """Reads a step from a file's or folder's name.

    Known are `step_100`, `epoch=1-step=10`, `iter_7`, `checkpoint-500`, `model_100`, `ckpt_9` and
    names that are a number; the first of these words that is there decides, so that the step wins
    over a version or a seed in the same name.

    Args:
        stem: The name without its suffix.

    Returns:
        The step as an integer, or None.
    """
    if stem.isdecimal():
        return int(stem)
    for words in _WORDS:
        found = _after(words, stem)
        if found is not None:
            return found
    return None


def epoch_in_name(stem: str) -> int | None:
    """Reads an epoch from a name such as `epoch_3` or `epoch=3`.

    Args:
        stem: The name without its suffix.

    Returns:
        The epoch, or None.
    """
    return _after(_EPOCH, stem)


def _after(words: str, stem: str) -> int | None:
    match = re.search(rf"(?<![A-Za-z])(?:{words}){_NUMBER}", stem, flags=re.IGNORECASE)
    return int(match.group(1)) if match else None
