"""float64 throughout: networks that request float32 in their code get float64 instead.

transformers casts norms, softmax and rotary tables to float32, whatever the weights are. In a
network of float64 that rounds the Jacobian at 6e-8 of sigma_1, and makes the modes of
differentiation disagree by as much. Tables that were rounded when the network was built (of
frequencies, say) keep their values.
"""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_WIDER = {torch.float32: torch.float64, torch.complex64: torch.complex128}
_TYPE_NAMES = {"torch.FloatTensor": torch.float64, "torch.cuda.FloatTensor": torch.float64}
# These take a dtype without converting values: they view the same bits in another type, or only ask
# about types.
_NO_REQUESTS = frozenset(
    {Tensor.view, torch.frombuffer, torch.can_cast, torch.promote_types, torch.view_copy}
)
# A generator gives other numbers in float64, so these keep the requested dtype.
_DRAWS = frozenset({torch.rand, torch.randn, torch.rand_like, torch.randn_like, torch.normal})
# torch.autograd.grad hands itself to the mode, which is off while it runs; this one does not.
_grad = FunctionType(
    torch.autograd.grad.__code__,
    torch.autograd.grad.__globals__ | {"has_torch_function": lambda _: False},
    argdefs=torch.autograd.grad.__defaults__,
)
_grad.__kwdefaults__ = torch.autograd.grad.__kwdefaults__
# Networks that are run as they are written. Weak: a network is not kept for this.
_plain: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


class Float64Throughout(TorchFunctionMode):
    """Mode in which a request for float32 (`to`, `float`, a `dtype=`) gives float64.

    Integers stay integers unless float32 is requested for them; lower precisions are left alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.n_requests = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        if func is torch.autograd.grad:
            # Code within it (a recomputed checkpoint, a custom backward) makes requests too.
            with self:
                return _grad(*args, **kwargs)
        if func is Tensor.float:
            self.n_requests += 1
            return Tensor.double(*args, **kwargs)
        if func in _DRAWS:
            drawn = func(*args, **kwargs)
            if isinstance(drawn, Tensor) and drawn.dtype == torch.float32:
                self.n_requests += 1
                return drawn.double()
            return drawn
        asked = any(_is_request(value) for value in (*args, *kwargs.values()))
        if asked and func not in _NO_REQUESTS:
            self.n_requests += 1
            args = tuple(_wider(value) for value in args)
            kwargs = {key: _wider(value) for key, value in kwargs.items()}
        return func(*args, **kwargs)


def _is_request(value: object) -> bool:
    return (
        value is torch.float32
        or value is torch.FloatTensor
        or value is torch.complex64
        or (isinstance(value, str) and value in _TYPE_NAMES)
    )


def _wider(value: Any) -> Any:
    if value is torch.FloatTensor:
        return torch.float64
    if isinstance(value, torch.dtype):
        return _WIDER.get(value, value)
    return _TYPE_NAMES.get(value, value) if isinstance(value, str) else value


@contextmanager
def float64_throughout(model: nn.Module, dtype: torch.dtype) -> Iterator[Float64Throughout | None]:
    """Answer a network's requests for float32 with float64, unless `run_as_written` named it.

    Yields:
        The mode, which counts the requests; None where there is none.
    """
    if dtype != torch.float64 or model in _plain:
        yield None
        return
    with Float64Throughout() as mode:
        yield mode


def run_as_written(model: nn.Module) -> None:
    """Grant a network's requests for float32 from now on."""
    _plain.add(model)


def forget(model: nn.Module) -> None:
    """Answer a network's requests again, whatever was chosen for its earlier weights."""
    _plain.discard(model)


def run_alike(model: nn.Module, other: nn.Module) -> None:
    """Run another build of a network in the precision of the first."""
    (_plain.add if model in _plain else _plain.discard)(other)


class Descent:
    """The tensors that descend from one tensor, as a dispatch mode sees the operations.

    A tensor that is only part of another one's memory passes it on when it is written to.
    """

    def __init__(self) -> None:
        self._tensors: dict[int, weakref.ref[Tensor]] = {}
        self._storages: dict[int, Any] = {}  # kept, so that no address is used twice

    def start(self, tensor: Tensor) -> None:
        """Count a tensor, and what comes from it, as descendants."""
        self._tensors[id(tensor)] = weakref.ref(tensor)

    def follow(
        self, func: Any, args: Any, kwargs: Mapping[str, Any], outputs: list[Tensor]
    ) -> bool:
        """Return whether an operation's outputs descend from the tensor."""
        inputs = list(_tensors((args, tuple(kwargs.values()))))
        if not any(self._holds(tensor) for tensor in inputs):
            return False
        for tensor in outputs:
            self.start(tensor)
            if any(tensor is one for one in inputs) or func._schema.is_mutable:
                storage = tensor.untyped_storage()
                self._storages[storage._cdata] = storage
        return True

    def _holds(self, tensor: Tensor) -> bool:
        found = self._tensors.get(id(tensor))
        if found is not None and found() is tensor:
            return True
        return bool(self._storages) and tensor.untyped_storage()._cdata in self._storages


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)
