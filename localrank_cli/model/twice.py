"""Builds a network under two seeds, to find what is drawn when it is built and never loaded."""

import gc
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from localrank_cli.model.build import SEED, Made, make
from localrank_cli.model.fill import has_own_loading
from localrank_cli.model.unsaved import Print, fingerprints

_OTHER_SEED = 1


@dataclass(frozen=True)
class Built:
    """A network, and what of it no other build gives."""

    model: nn.Module
    drawn: frozenset[str] = frozenset()  # names of what differs between two builds
    restless: frozenset[str] = frozenset()  # of these, what differs even under one seed
    is_shared: bool = False  # made before, so that two builds cannot be compared


def build_twice(
    factory: Callable[..., object],
    arguments: Mapping[str, Any],
    name: str,
    there: Sequence[nn.Module],
    *,
    allowed: bool,
) -> Built:
    """Build a network under another seed, and again under the one that counts.

    Args:
        factory: An nn.Module class, or a function that returns a module.
        arguments: `--model-arg`.
        name: For messages.
        there: Modules that were there before the user's code was imported.
        allowed: Whether what differs is let through: it must be the same at every start then.

    Returns:
        The second network; of the first only fingerprints are kept.
    """
    build = partial(make, factory, arguments, name, there)
    first = build(_OTHER_SEED)
    other, _ = _prints(first)
    # The first network is gone before the second comes.
    gone = weakref.ref(first.model)
    del first
    if gone() is not None:
        gc.collect()
    made = build(SEED)
    prints, state_too = _prints(made)
    if made.is_shared:
        # Nothing to compare it with: all that numbers could come from.
        names = {key for key, one in prints.items() if one.is_array}
        return Built(made.model, frozenset(names - set(made.model.state_dict())), is_shared=True)
    # First weights always differ; whether a checkpoint fills them is known later.
    weights = _differing(other, prints) & set(made.model.state_dict())
    if _differing(other, prints) <= weights:
        return Built(made.model, frozenset(weights))
    drawn, restless = _confirmed(build, state_too, allowed=allowed)
    return Built(made.model, frozenset(drawn | weights), frozenset(restless))


def _prints(made: Made) -> tuple[dict[str, Print], bool]:
    # Loading of the model's own may leave entries of the state dict as they are.
    state_too = has_own_loading(made.model)
    return fingerprints(made.model, state_too=state_too), state_too


def _differing(first: Mapping[str, Print], second: Mapping[str, Print]) -> set[str]:
    return {key for key in {*first, *second} if first.get(key) != second.get(key)}


def _confirmed(
    build: Callable[[int], Made], state_too: bool, *, allowed: bool
) -> tuple[set[str], set[str]]:
    """Compare again without memory that nothing was written to, and without counters and dates."""

    def prints(seed: int) -> dict[str, Print]:
        with _memory_filled():
            return fingerprints(build(seed).model, state_too=state_too)

    other, same = prints(_OTHER_SEED), prints(SEED)
    drawn = _differing(other, same)
    labels = {key for key in drawn if key in same and same[key].is_label}
    restless: set[str] = set()
    if allowed or labels:
        restless = _differing(same, prints(SEED)) & drawn
        drawn -= restless & labels
        # A number may be a date as well: that is let through.
        restless = {key for key in restless if key not in same or same[key].is_array}
    return drawn, restless


@contextmanager
def _memory_filled() -> Iterator[None]:
    """Lets torch.empty give the same values every time."""
    mode = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(mode, warn_only=warn_only)
