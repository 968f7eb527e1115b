"""The outputs of chosen module calls as a function of the varied tensor.

Captures are clones (an in-place ReLU after a layer would otherwise overwrite its pre-activation)
and are returned, never stored outside, so that the function works under torch.func transforms.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from localrank_cli.errors import LayerError
from localrank_cli.layers.outputs import first_tensor, from_real_parts, real_parts, replace_first
from localrank_cli.layers.transforms import current_level, is_vmapped, unwrapped


@dataclass(frozen=True, order=True)
class Call:
    """One call of one module in a forward pass.

    A module that runs twice in one forward pass has two calls, with two pre-activations.
    """

    name: str  # qualified module name
    number: int = 1  # 1 for the first call

    @property
    def label(self) -> str:
        """The name that tables show: `name`, or `name#2` for the second call.

        Halves of surrogate pairs, which no file can hold, are shown as escapes.
        """
        name = self.name.encode("utf-8", "backslashreplace").decode()
        return name if self.number == 1 else f"{name}#{self.number}"

    @classmethod
    def parse(cls, label: str) -> "Call":
        """Return the call of a label such as `name` or `name#2`."""
        name, mark, number = label.rpartition("#")
        if mark and number.isdigit() and int(number) >= 1:
            return cls(name, int(number))
        return cls(label)


class _AllCaptured(BaseException):
    """All outputs are captured; no Exception, as the model's handlers must not catch it."""


# Returns what is kept of the output of a call.
Reader = Callable[[Call, Tensor], Tensor]


@dataclass(frozen=True)
class How:
    """How a `Capture` runs its model, and what it keeps."""

    read: Reader | None = None  # what is kept of the output of each call; None: all of it
    inputs_of: Collection[Call] = ()  # calls whose input is wanted in place of the output
    run: Callable[[Tensor], object] | None = None  # calls the model; None: with its input alone


class Capture:
    """A model as a function that returns the first tensor output of chosen calls.

    Args:
        model: The network, called with one tensor.
        calls: The calls whose outputs are wanted, in any order.
        watched: Calls whose outputs are also kept if they happen before the last of `calls`.
        wrt: The call whose output is the varied tensor; None for the input.
        how: How the model is run, and what is kept; by default it runs with its input alone, and
            whole outputs are kept.
    """

    def __init__(
        self,
        model: nn.Module,
        calls: Sequence[Call],
        wrt: Call | None = None,
        watched: Sequence[Call] = (),
        how: How | None = None,
    ) -> None:
        self._model = model
        self._calls = tuple(calls)
        self._watched = frozenset(watched) - frozenset(calls)
        self.seen: dict[Call, Tensor] = {}  # of the watched calls, in the last run
        self._wrt = wrt
        self._how = how or How()
        self._call = model if self._how.run is None else self._how.run
        self._modules = {name: model.get_submodule(name) for name in self._names()}
        self._run: _Run | None = None
        self._installed = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Keep the hooks for several calls; a single call does not need this."""

        def hook(name: str) -> Any:
            """Return the hook of a module."""

            def on_output(module: nn.Module, args: object, output: object) -> object:
                """Hand an output to the run that is watched, if there is one."""
                if self._run is None:
                    return None
                del module
                return self._run.see(name, args, output)

            return on_output

        handles = [
            module.register_forward_hook(hook(name)) for name, module in self._modules.items()
        ]
        self._installed = True
        try:
            yield
        finally:
            self._installed = False
            for handle in handles:
                handle.remove()

    def __call__(self, inputs: Tensor, varied: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the outputs of `calls`, in order, from a run of the model up to the last of them.

        Each is one real tensor shaped as the module's output, a complex one as its `real_parts`.
        With `wrt`, `varied` replaces that call's first tensor, as `real_parts`; None leaves it.

        Raises:
            LayerError: If a wanted call did not happen, or gave no tensor.
        """
        self._run = state = _Run(self._calls, self._watched, self._wrt, varied)
        state.read, state.inputs_of = self._how.read, frozenset(self._how.inputs_of)
        try:
            with nullcontext() if self._installed else self.installed():
                # A clone: a model may change its input in place, which must neither reach the
                # next call nor be refused because the input is a leaf.
                self._call(inputs.clone())
        except _AllCaptured:
            pass
        finally:
            self._run = None
        self.seen = state.seen
        missing = [call for call in self._calls if call not in state.found]
        if missing:
            raise LayerError(
                f"layer {missing[0].label!r} did not run in this forward pass, though it ran in"
                " an earlier one.",
                "Which layers run must not depend on the point or on the batch.",
            )
        return tuple(state.found[call] for call in self._calls)

    def _names(self) -> list[str]:
        names = [call.name for call in (*self._calls, *self._watched)]
        if self._wrt is not None:
            names.append(self._wrt.name)
        return list(dict.fromkeys(names))


class _Run:
    def __init__(
        self,
        calls: Iterable[Call],
        watched: frozenset[Call],
        wrt: Call | None,
        varied: Tensor | None,
    ) -> None:
        self.found: dict[Call, Tensor] = {}
        self.seen: dict[Call, Tensor] = {}
        self._watched = watched
        self._missing = set(calls)
        self._wrt = wrt
        self._varied = varied
        self._counts: dict[str, int] = {}
        self._level = current_level()
        self.read: Reader | None = None
        self.inputs_of: frozenset[Call] = frozenset()

    def see(self, name: str, args: object, output: object) -> object:
        """Record a module's output; return its replacement, or None to leave it."""
        self._counts[name] = self._counts.get(name, 0) + 1
        call = Call(name, self._counts[name])
        replaced = None
        if call == self._wrt and self._varied is not None:
            # Contiguous, as outputs of modules are: later operations may `.view` it.
            varied = self._varied.clone(memory_format=torch.contiguous_format)
            like = first_tensor(output)
            varied = varied if like is None else from_real_parts(varied, like)
            replaced = output = replace_first(output, varied)
        if call in self._watched:
            tensor = first_tensor(output)
            if tensor is not None and not is_vmapped(tensor, self._level):
                self.seen[call] = self._outside(real_parts(tensor).clone())
        if call in self._missing:
            tensor = first_tensor(output)
            if tensor is None:
                raise LayerError(f"layer {call.label!r} returned no tensor in this forward pass.")
            taken = first_tensor(args) if call in self.inputs_of else None
            self.found[call] = self._kept(call, tensor if taken is None else taken)
            self._missing.discard(call)
            if not self._missing:
                raise _AllCaptured
        return replaced

    def _kept(self, call: Call, tensor: Tensor) -> Tensor:
        """Return a copy of what is wanted of a tensor."""
        parts = self._outside(real_parts(tensor))
        part = parts if self.read is None else self.read(call, parts)
        return part.clone(memory_format=torch.contiguous_format)

    def _outside(self, tensor: Tensor) -> Tensor:
        return unwrapped(tensor, self._level)
