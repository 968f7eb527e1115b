"""Build a network under two seeds, to find values that are drawn then and never loaded."""

import gc
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from localrank_cli.errors import LocalrankError
from localrank_cli.model.arguments import Recorded
from localrank_cli.model.build import Build, build_model
from localrank_cli.model.fill import Expected, has_custom_loading
from localrank_cli.model.unsaved import Fingerprint, fingerprints
from localrank_cli.seeds import SEED, seeded
from localrank_cli.userimport import CodeSpec, SecondImport

_OTHER_SEED = 1  # any but SEED


@dataclass(frozen=True)
class Rebuild:
    """Another build of a network, and the second import that it comes from, if there is one."""

    build: Build
    second: SecondImport | None = None

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.build.model

    def active(self) -> AbstractContextManager[None]:
        """Let imports in the network's code find the modules of the second import."""
        return nullcontext() if self.second is None else self.second.active()


@dataclass(frozen=True)
class Network:
    """A network, and its parts that differ from build to build."""

    model: nn.Module
    drawn: frozenset[str] = frozenset()  # names of the parts that differ between two builds
    unstable: frozenset[str] = frozenset()  # those that differ even under one seed
    is_shared: bool = False  # existed before, so that two builds cannot be compared
    # Builds it again, under the seed of `model` or under another one; None if no build differs.
    rebuild: Callable[[bool], Rebuild] | None = None
    note: str = ""  # on what could not be compared
    expected_of: Callable[[nn.Module], Expected] = Expected
    recorded: Recorded | None = None  # the arguments that checkpoints gave to its class

    @property
    def expected(self) -> Expected:
        """What the network, freshly built, takes from a checkpoint."""
        return self.expected_of(self.model)


class Given:
    """A network that is there already, in place of a class or function that builds one.

    Args:
        model: localrank's own copy, which is changed.
        name: The name of the user's class.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self._model = model
        self.__qualname__ = name  # as a function has one

    def __call__(self) -> nn.Module:
        """Return the network."""
        return self._model


@dataclass(frozen=True)
class Builder:
    """A user's class or function, and how to call it; see `build_model`."""

    factory: Callable[..., object]
    arguments: Mapping[str, Any]
    name: str
    existing: Sequence[nn.Module]
    code: CodeSpec | None = None  # where a second import of the factory finds it
    recorded: Recorded | None = None  # arguments that checkpoints give, beside `arguments`

    def build(self, seed: int) -> Build:
        """Return the network that the factory builds."""
        if self.recorded is None:
            return build_model(self.factory, self.arguments, self.name, self.existing, seed)
        with seeded(seed):
            arguments = self.recorded.arguments(self.factory, self.name)
        arguments.update(self.arguments)
        return build_model(self.factory, arguments, self.name, self.existing, seed)

    def build_anew(self, seed: int) -> Rebuild:
        """Return the network of a second import, or of the factory where there is none."""
        if self.code is None:
            return Rebuild(self.build(seed))
        second = SecondImport(self.code)
        with seeded(seed):
            factory: Any = second.load("--model")
        with second.active():
            return Rebuild(replace(self, factory=factory).build(seed), second)


def build_twice(builder: Builder) -> Network:
    """Return the network that a factory builds under SEED, compared with one under another seed.

    Of the first only fingerprints are kept.
    """
    note = ""
    try:
        first = builder.build_anew(_OTHER_SEED)
    except LocalrankError as error:  # code that registers a name, say, and cannot run twice
        builder = replace(builder, code=None)
        first = builder.build_anew(_OTHER_SEED)
        note = (
            "the code of --model cannot run a second time in one process, so values that it draws"
            f" in global variables and class attributes are not detected ({error.what})"
        )
    other, _ = _prints(first.build)
    # The first network is freed before the second is built.
    gone = weakref.ref(first.model)
    del first
    if gone() is not None:
        gc.collect()
    made = builder.build(SEED)
    prints, state_too = _prints(made)
    if made.is_shared:
        # Without a second build to compare with, any array may have been drawn.
        names = {key for key, one in prints.items() if one.is_array}
        return Network(made.model, frozenset(names - set(made.model.state_dict())), is_shared=True)

    def rebuild(other: bool) -> Rebuild:
        """Build the network again, under another seed if asked for."""
        return builder.build_anew(_OTHER_SEED if other else SEED)

    # Initial weights always differ; whether a checkpoint fills them is known later.
    weights = _differing(other, prints) & set(made.model.state_dict())
    drawn, unstable = weights, set[str]()
    if not _differing(other, prints) <= weights:
        found, unstable = _confirmed(builder, state_too)
        drawn = weights | found
    return Network(made.model, frozenset(drawn), frozenset(unstable), False, rebuild, note)


def _prints(made: Build) -> tuple[dict[str, Fingerprint], bool]:
    # A model with its own loading may leave entries of the state dict as they are.
    state_too = has_custom_loading(made.model)
    return fingerprints(made.model, state_too=state_too), state_too


def _differing(first: Mapping[str, Fingerprint], second: Mapping[str, Fingerprint]) -> set[str]:
    return {key for key in {*first, *second} if first.get(key) != second.get(key)}


def _confirmed(builder: Builder, state_too: bool) -> tuple[set[str], set[str]]:
    """Compare again without uninitialized memory.

    Numbers and texts that differ even under one seed are readings of a clock, counters or ids. They
    do not count here: where they decide an output, forward passes of two builds differ.
    """

    def prints(seed: int) -> dict[str, Fingerprint]:
        """Return the fingerprints of a network that is built under a seed."""
        with _memory_filled():
            return fingerprints(builder.build_anew(seed).model, state_too=state_too)

    other, same = prints(_OTHER_SEED), prints(SEED)
    drawn = _differing(other, same)
    unstable = _differing(same, prints(SEED)) & drawn if drawn else set[str]()
    arrays = {
        key for key in unstable if any(key in one and one[key].is_array for one in (other, same))
    }
    return drawn - (unstable - arrays), arrays


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
