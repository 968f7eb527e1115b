"""Building a network under two seeds, to find what is drawn when it is built and never loaded."""

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

from localrank_cli.model.build import Build, build_model
from localrank_cli.model.fill import has_custom_loading
from localrank_cli.model.unsaved import Fingerprint, fingerprints
from localrank_cli.seeds import SEED

_OTHER_SEED = 1  # any but SEED


@dataclass(frozen=True)
class Network:
    """A network, and its parts that differ from build to build."""

    model: nn.Module
    drawn: frozenset[str] = frozenset()  # names of the parts that differ between two builds
    restless: frozenset[str] = frozenset()  # those that differ even under one seed
    is_shared: bool = False  # existed before, so that two builds cannot be compared


def build_twice(
    factory: Callable[..., object],
    arguments: Mapping[str, Any],
    name: str,
    existing: Sequence[nn.Module],
    *,
    allowed: bool,
) -> Network:
    """Return the network that a factory builds under SEED, compared with one under another seed.

    Of the first only fingerprints are kept. The first four arguments are those of `build_model`.
    With `allowed`, differences are accepted, and must then be the same at every start.
    """
    build = partial(build_model, factory, arguments, name, existing)
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
        # There is no second build to compare with: every array may have been drawn.
        names = {key for key, one in prints.items() if one.is_array}
        return Network(made.model, frozenset(names - set(made.model.state_dict())), is_shared=True)
    # First weights always differ; whether a checkpoint fills them is known later.
    weights = _differing(other, prints) & set(made.model.state_dict())
    if _differing(other, prints) <= weights:
        return Network(made.model, frozenset(weights))
    drawn, restless = _confirmed(build, state_too, allowed=allowed)
    return Network(made.model, frozenset(drawn | weights), frozenset(restless))


def _prints(made: Build) -> tuple[dict[str, Fingerprint], bool]:
    # Loading of the model's own may leave entries of the state dict as they are.
    state_too = has_custom_loading(made.model)
    return fingerprints(made.model, state_too=state_too), state_too


def _differing(first: Mapping[str, Fingerprint], second: Mapping[str, Fingerprint]) -> set[str]:
    return {key for key in {*first, *second} if first.get(key) != second.get(key)}


def _confirmed(
    build: Callable[[int], Build], state_too: bool, *, allowed: bool
) -> tuple[set[str], set[str]]:
    """Compare again without memory that nothing was written to, and without counters and dates."""

    def prints(seed: int) -> dict[str, Fingerprint]:
        with _memory_filled():
            return fingerprints(build(seed).model, state_too=state_too)

    other, same = prints(_OTHER_SEED), prints(SEED)
    drawn = _differing(other, same)
    labels = {key for key in drawn if key in same and same[key].is_label}
    restless: set[str] = set()
    if allowed or labels:
        restless = _differing(same, prints(SEED)) & drawn
        drawn -= restless & labels
        # A number may be a date as well, which is accepted.
        restless = {key for key in restless if key not in same or same[key].is_array}
    return drawn, restless


@contextmanager
def _memory_filled() -> Iterator[None]:
    """Make torch.empty give the same values every time."""
    mode = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(mode, warn_only=warn_only)
