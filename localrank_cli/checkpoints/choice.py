"""Which of several sets of weights in one file are meant: `--weights`."""

from collections.abc import Collection, Sequence

from localrank_cli.errors import SettingsError

RAW, EMA = "raw", "ema"


def choose(
    keys: Sequence[str], averaged: Collection[str], weights: str, place: str
) -> tuple[str, ...]:
    """Names the sets of weights that may be taken, the first that fits the model first.

    Args:
        keys: Where state dicts are in a file.
        averaged: Those of them that hold an average over training.
        weights: `raw` for the weights that training goes on with, `ema` for an average, or a key.
        place: The file, for messages.

    Returns:
        Some of the keys. Where a file holds nothing but an average, `raw` is that.

    Raises:
        SettingsError: If there are none such.
    """
    if weights == RAW:
        return tuple(key for key in keys if key not in averaged) or tuple(keys)
    if weights == EMA:
        chosen = tuple(key for key in keys if key in averaged)
        missing = "no average of weights is found in it"
    else:
        chosen = tuple(key for key in keys if key == weights)
        missing = "it has no such weights"
    if not chosen:
        there = ", ".join(described(key, averaged) for key in keys)
        raise SettingsError(
            f"{place}: --weights {weights}: {missing}; it holds {there}.",
            "Give --weights raw, ema, or one of these keys.",
        )
    return chosen


def described(key: str, averaged: Collection[str]) -> str:
    """A set of weights, for messages.

    Args:
        key: Where it is in the file.
        averaged: The keys of averages.

    Returns:
        The key as text, and whether it is an average.
    """
    return (repr(key) if key else "one bare state dict") + (" (ema)" if key in averaged else "")
