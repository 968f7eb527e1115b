"""Prefixes that wrappers put before every key, taken off only where the result fits exactly."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

_Value = TypeVar("_Value")

WRAPPERS = ("module.", "_orig_mod.")
PREFIXES = (*WRAPPERS, "model.", "net.")


@dataclass(frozen=True)
class Stripping:
    """What was taken off the keys."""

    prefix: str = ""  # from the front of every key
    inner: bool = False  # `_orig_mod.` and `module.` inside the keys too

    @property
    def description(self) -> str:
        """For notes; empty when nothing was done."""
        parts = [f"prefix {self.prefix!r}"] if self.prefix else []
        if self.inner:
            parts.append("inner '_orig_mod.' and 'module.'")
        return " and ".join(parts)


def candidates(
    state: Mapping[str, _Value], prefixes: tuple[str, ...] = PREFIXES
) -> list[tuple[Stripping, dict[str, _Value]]]:
    """All ways to take wrappers' prefixes off, the least first.

    Args:
        state: Keys and anything.
        prefixes: Which prefixes may go, in any order and number.

    Returns:
        The stripping and the renamed mapping for each.
    """
    found: list[tuple[Stripping, dict[str, _Value]]] = []
    current, taken = dict(state), ""
    while True:
        found.append((Stripping(taken), current))
        inner = _without_inner(current)
        if inner is not None:
            found.append((Stripping(taken, inner=True), inner))
        prefix = next(
            (p for p in prefixes if current and all(k.startswith(p) for k in current)), ""
        )
        if not prefix:
            return found
        current = {key[len(prefix) :]: value for key, value in current.items()}
        taken += prefix


def strip_to_fit(
    state: Mapping[str, _Value], fits: Callable[[Mapping[str, _Value]], bool]
) -> tuple[Stripping, dict[str, _Value]] | None:
    """Takes off as little as makes the state fit.

    Args:
        state: Keys and anything.
        fits: Whether a renamed state matches exactly.

    Returns:
        The stripping and the renamed state, or None when none fits.
    """
    return next((pair for pair in candidates(state) if fits(pair[1])), None)


def _without_inner(state: Mapping[str, _Value]) -> dict[str, _Value] | None:
    marks = {prefix.rstrip(".") for prefix in WRAPPERS}
    renamed = {}
    for key, value in state.items():
        first, *rest = key.split(".")  # what stands in front goes from every key, or stays
        renamed[".".join([first, *(part for part in rest if part not in marks)])] = value
    changed = set(renamed) != set(state)
    return renamed if changed and len(renamed) == len(state) else None
