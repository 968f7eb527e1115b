"""The modules that run before the varied tensor: run once, then replayed.

Each direction runs the network up to the layers, and most of it before `--wrt` gives the same
values each time. The outermost modules that end before it return what they returned.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from localrank_cli.layers.capture import Call, Capture, How

_PLAIN = (Tensor, int, float, bool, str, type(None))


@dataclass
class _Ran:
    """One call of a module in the recorded pass."""

    began: int
    ended: int = -1
    output: Any = None
    is_plain: bool = False  # its output holds tensors and plain values alone


class Replay:
    """Outputs of modules before the varied tensor, for one batch of points."""

    def __init__(self, model: nn.Module, outputs: dict[str, list[Any]]) -> None:
        self._model = model
        self._outputs = outputs  # of the first calls of each module

    @property
    def names(self) -> tuple[str, ...]:
        """The modules that are not run again."""
        return tuple(self._outputs)

    @property
    def outputs(self) -> list[Tensor]:
        """The tensors that are held, some of them by the replays of other sources, too."""
        leaves = _pytree.tree_leaves(self._outputs)
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let the modules return what they returned, until the end of the block."""
        modules = [(self._model.get_submodule(name), name) for name in self._outputs]
        for module, name in modules:
            module.forward = _player(module.forward, self._outputs[name])
        try:
            yield
        finally:
            for module, _ in modules:
                del module.forward


@dataclass
class Replays:
    """What comes before each of several sources, from one pass of each batch for all of them.

    What would take more than `most` bytes is recorded for each source by itself.
    """

    model: nn.Module
    wanted: Mapping[Call, Sequence[Call]]  # of each source, the calls that will be captured
    most: int
    _found: dict[int, dict[Call, Replay | None]] = field(default_factory=dict)  # by first point
    _is_full: bool = False

    def take(self, first: int, inputs: Tensor, wrt: Call) -> Replay | None:
        """Return what comes before a source, as `record` does, and forget it.

        `inputs` are those of the batch that begins at the point `first`. Each source takes each
        batch once.
        """
        calls = self.wanted[wrt]
        if len(self.wanted) < 2 or self._is_full:
            return record(self.model, inputs, wrt, calls)
        if wrt not in self._found.get(first, {}):
            self._found[first] = record_all(self.model, inputs, self.wanted)
            # Of several sources together: they hold many tensors in common.
            self._is_full = self._bytes() > self.most
        found = self._found[first].pop(wrt)
        if self._is_full:
            self._found.clear()
        return found

    def _bytes(self) -> int:
        replays = [one for found in self._found.values() for one in found.values()]
        held = {id(tensor): tensor for one in replays if one is not None for tensor in one.outputs}
        return sum(tensor.nbytes for tensor in held.values())


def _player(forward: Any, outputs: Sequence[Any]) -> Any:
    left = iter(outputs)

    def play(*args: Any, **kwargs: Any) -> Any:
        """Return the next recorded output, and run the module once none is left."""
        for output in left:
            # Copies: the network may change what a module returned in place.
            return _pytree.tree_map(_copy, output)
        return forward(*args, **kwargs)

    return play


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def record(
    model: nn.Module,
    inputs: Tensor,
    wrt: Call,
    calls: Sequence[Call],
    run: Callable[[Tensor], object] | None = None,
) -> Replay | None:
    """Return what comes before the output of `wrt` in a pass of a batch; None if nothing does.

    `calls` are those that will be captured, and `run` is how the model is called. Modules are
    replayed only where that changes the number of no captured call, and where they return tensors
    and plain values alone (a cache would not be filled).
    """
    return record_all(model, inputs, {wrt: calls}, run)[wrt]


def record_all(
    model: nn.Module,
    inputs: Tensor,
    wanted: Mapping[Call, Sequence[Call]],
    run: Callable[[Tensor], object] | None = None,
) -> dict[Call, Replay | None]:
    """Return what comes before each of several sources, from one pass of a batch; see `record`.

    `wanted` holds the calls that will be captured with respect to each source.
    """
    ran, ended_at = _recorded(model, inputs, list(wanted), run)
    found = {}
    for wrt, calls in wanted.items():
        # As a pass that ends with this source would have it.
        before = {
            name: [one for one in several if one.began < ended_at[wrt]]
            for name, several in ran.items()
        }
        before = {name: several for name, several in before.items() if several}
        captured = {wrt.name, *(call.name for call in calls)}
        found[wrt] = _outermost(model, before, ended_at[wrt], captured)
    return found


def _recorded(
    model: nn.Module,
    inputs: Tensor,
    sources: Sequence[Call],
    run: Callable[[Tensor], object] | None,
) -> tuple[dict[str, list[_Ran]], dict[Call, int]]:
    """Return the calls of all modules in a pass to the last source, and when each source ended."""
    clock = 0
    left, ended_at = set(sources), dict[Call, int]()
    ran: dict[str, list[_Ran]] = {}

    def recorder(name: str, forward: Any) -> Any:
        """Return a forward method that keeps what a module returns."""

        def run(*args: Any, **kwargs: Any) -> Any:
            """Run a module; note when it began and ended, and what it returned."""
            nonlocal clock
            clock += 1
            this = _Ran(clock)
            ran.setdefault(name, []).append(this)
            call = Call(name, len(ran[name]))
            output = forward(*args, **kwargs)
            clock += 1
            this.ended = clock
            if left:
                leaves = _pytree.tree_leaves(output)
                this.is_plain = all(isinstance(leaf, _PLAIN) for leaf in leaves)
                this.output = _pytree.tree_map(_copy, output) if this.is_plain else None
            if call in left:
                left.discard(call)
                ended_at[call] = clock
            return output

        return run

    modules = [
        (name, module)
        for name, module in model.named_modules()
        if name and "forward" not in vars(module) and not isinstance(module, torch.jit.ScriptModule)
    ]
    for name, module in modules:
        module.forward = recorder(name, module.forward)
    try:
        with torch.no_grad():
            Capture(model, sources, how=How(run=run))(inputs)
    finally:
        for _, module in modules:
            del module.forward
    # A source whose module cannot be watched never ends: nothing is known to come before it.
    return ran, {source: ended_at.get(source, -1) for source in sources}


def _outermost(
    model: nn.Module, ran: dict[str, list[_Ran]], ended_at: int, captured: set[str]
) -> Replay | None:
    every = [(one.began, one.ended, name, one) for name, calls in ran.items() for one in calls]
    chosen: list[tuple[int, int, str, _Ran]] = []
    for began, ended, name, one in sorted(every, key=lambda entry: entry[0]):
        inside = any(begin < began and ended < end for begin, end, _, _ in chosen)
        if inside or not one.is_plain or not 0 < ended < ended_at or name in captured:
            continue
        within = {other for b, e, other, _ in every if began < b and 0 < e < ended}
        if not within & captured:
            chosen.append((began, ended, name, one))
    outputs: dict[str, list[Any]] = {}
    for name in {name for _, _, name, _ in chosen}:
        # A module's calls are counted from its first: they are replayed up to the first that is
        # not, and none where one runs within another module that is replayed.
        calls = ran[name]
        marked = [any(one is entry[3] for entry in chosen) for one in calls]
        spans = [(b, e) for b, e, other, _ in chosen if other != name]
        nested = any(b < one.began and 0 < one.ended < e for one in calls for b, e in spans)
        first = marked.index(False) if False in marked else len(calls)
        if first and not nested and not any(marked[first:]):
            outputs[name] = [one.output for one in calls[:first]]
    return Replay(model, outputs) if outputs else None
