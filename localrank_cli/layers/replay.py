"""What comes before the varied tensor, run once and then replayed.

Each direction runs the network up to the layers, and most of it before `--wrt` gives the same
values each time. The outermost modules that end before it return what they returned.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
    clock, ended_at = 0, -1
    ran: dict[str, list[_Ran]] = {}
    stack: list[_Ran] = []

    def recorder(name: str, forward: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            """Run a module; note when it began and ended, and what it returned before `wrt` did."""
            nonlocal clock, ended_at
            clock += 1
            this = _Ran(clock)
            ran.setdefault(name, []).append(this)
            stack.append(this)
            try:
                output = forward(*args, **kwargs)
            finally:
                stack.pop()
            clock += 1
            this.ended = clock
            if ended_at < 0:
                leaves = _pytree.tree_leaves(output)
                this.is_plain = all(isinstance(leaf, _PLAIN) for leaf in leaves)
                this.output = _pytree.tree_map(_copy, output) if this.is_plain else None
            if name == wrt.name and len(ran[name]) == wrt.number:
                ended_at = clock
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
            Capture(model, [wrt], how=How(run=run))(inputs)
    finally:
        for _, module in modules:
            del module.forward
    return _outermost(model, ran, ended_at, {wrt.name, *(call.name for call in calls)})


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
