"""`--weights`: which of several state dicts in a file is read, and which prefixes its keys lose."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from localrank_cli.errors import SettingsError

RAW, EMA = "raw", "ema"
_Value = TypeVar("_Value")
WRAPPERS = ("module.", "_orig_mod.")
PREFIXES = (*WRAPPERS, "model.", "net.")


def choose(
    keys: Sequence[str], averaged: Collection[str], weights: str, place: str
) -> tuple[str, ...]:
    """Return the keys of the state dicts that `--weights` allows, in the order to try them.

    Args:
        keys: Where state dicts are in a file.
        averaged: The keys that hold an average over training.
        weights: `raw` for the weights that training continues with, `ema` for an average, or a key.
            Where a file holds nothing but an average, `raw` is that.
        place: The file, for messages.

    Raises:
        SettingsError: If there are no such weights.
    """
    if weights == RAW:
        return tuple(key for key in keys if key not in averaged) or tuple(keys)
    if weights == EMA:
        chosen = tuple(key for key in keys if key in averaged)
        missing = "no average of weights was found in it"
    else:
        chosen = tuple(key for key in keys if key == weights)
        missing = "it has no such weights"
    if not chosen:
        there = ", ".join(describe_weights(key, averaged) for key in keys)
        raise SettingsError(
            f"{place}: --weights {weights}: {missing}; it holds {there}.",
            "Give --weights raw, ema, or one of these keys.",
        )
    return chosen


def describe_weights(key: str, averaged: Collection[str]) -> str:
    """Return a set of weights for messages: its key, and whether it is an average."""
    return (repr(key) if key else "one bare state dict") + (" (ema)" if key in averaged else "")


@dataclass(frozen=True)
class Stripping:
    """The prefixes that were removed from keys."""

    prefix: str = ""  # from the front of every key
    inner: bool = False  # `_orig_mod.` and `module.` inside the keys too

    @property
    def description(self) -> str:
        """For notes; empty when nothing was removed."""
        parts = [f"prefix {self.prefix!r}"] if self.prefix else []
        if self.inner:
            parts.append("inner '_orig_mod.' and 'module.'")
        return " and ".join(parts)


def candidates(
    state: Mapping[str, _Value], prefixes: tuple[str, ...] = PREFIXES
) -> list[tuple[Stripping, dict[str, _Value]]]:
    """Return all ways to remove wrappers' prefixes from the keys of a state, the least first."""
    found: list[tuple[Stripping, dict[str, _Value]]] = []
    current, removed = dict(state), ""
    while True:
        found.append((Stripping(removed), current))
        inner = _without_inner(current)
        if inner is not None:
            found.append((Stripping(removed, inner=True), inner))
        prefix = next(
            (p for p in prefixes if current and all(k.startswith(p) for k in current)), ""
        )
        if not prefix:
            return found
        current = {key[len(prefix) :]: value for key, value in current.items()}
        removed += prefix


def strip_to_fit(
    state: Mapping[str, _Value], fits: Callable[[Mapping[str, _Value]], bool]
) -> tuple[Stripping, dict[str, _Value]] | None:
    """Return the state with as few prefixes removed as make it fit, or None when nothing fits."""
    return next((pair for pair in candidates(state) if fits(pair[1])), None)


def _without_inner(state: Mapping[str, _Value]) -> dict[str, _Value] | None:
    marks = {prefix.rstrip(".") for prefix in WRAPPERS}
    renamed = {}
    for key, value in state.items():
        first, *rest = key.split(".")  # a first part is removed from every key or from none
        renamed[".".join([first, *(part for part in rest if part not in marks)])] = value
    changed = set(renamed) != set(state)
    return renamed if changed and len(renamed) == len(state) else None
