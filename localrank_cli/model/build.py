"""Build the user's network on the CPU, and move it to the dtype and device of the analysis."""

import contextlib
import copy
import gc
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.overrides import TorchFunctionMode

from localrank_cli import walk
from localrank_cli.errors import ModelError, cause
from localrank_cli.model.arguments import Arguments, example
from localrank_cli.model.sharing import Aliases, held_arrays
from localrank_cli.model.wrappers import unwrap
from localrank_cli.seeds import SEED, seeded
from localrank_cli.userimport import ANY_FAULT

# A parametrized layer (weight_norm, spectral_norm) keeps its parametrizations as a child.
_NO_LAYERS = {"parametrizations"}


class WholeLayer(nn.Module):
    """Wrapper that makes a network without modules of its own the layer `model`.

    Weights keep the names that they have in the network: a checkpoint of an nn.Linear holds
    `weight` and `bias`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the network's output."""
        return self.model(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the network's own state dict: names without `model.`."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Fill the network, as torch does."""
        return self.model.load_state_dict(*args, **kwargs)


def name_root(model: nn.Module) -> nn.Module:
    """Return a `WholeLayer` of a network that is the only module there is, else the network."""
    is_one_layer = {name for name, _ in model.named_children()} <= _NO_LAYERS
    return WholeLayer(model) if is_one_layer else model


@dataclass(frozen=True)
class Build:
    """The module that a user's function returned."""

    model: nn.Module
    is_shared: bool = False  # a copy: an import or an earlier call made the module


def build_model(
    factory: Callable[..., object],
    arguments: Mapping[str, Any],
    name: str,
    existing: Sequence[nn.Module] = (),
    seed: int = SEED,
) -> Build:
    """Return the module that the user's class or function builds; `name` is for messages.

    On the CPU, never on `meta`: non-persistent buffers and plain tensor attributes would stay
    there, and `.item()` in `__init__` would raise.

    `existing` are the modules from before the user's code was imported. The random number
    generators of torch, numpy and Python are seeded for the call and restored after it. In the
    module that is returned no parameter requires a gradient; a single layer is named `model`.

    Raises:
        ModelError: If it cannot be called so, or returns no module.
    """
    if isinstance(factory, nn.Module):
        raise ModelError(
            f"{name} is a module, not a class or function that makes one.",
            "Name the class, or a function that returns the module.",
        )
    if not callable(factory):
        raise ModelError(
            f"{name} is a {type(factory).__name__}, not an nn.Module class or a function.",
            "Name the class, or a function that returns the module.",
        )
    _check_arguments(factory, arguments, name)
    before = [] if _returns_new(factory) else existing_modules()
    try:
        # chdir undoes any chdir of the user's code at the end.
        with seeded(seed), contextlib.chdir("."):
            model = factory(**arguments)
        if isinstance(arguments, Arguments):
            arguments.give()
    except ModelError:  # of --model hf
        raise
    except ANY_FAULT as error:
        raise ModelError(
            f"{name} failed: {cause(error)}",
            "Check the --model-arg values; --debug shows the traceback.",
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{name} returned a {type(model).__name__}, not an nn.Module.",
            "The function must return the module itself.",
        )
    is_callers = any(model is other for other in existing)
    is_old = any(model is other for other in before)
    model = unwrap(model, name, is_callers=is_callers)
    check_complete(model, name)
    if is_old:
        model = _own_copy(model, name)
    return Build(name_root(model).requires_grad_(False), is_old and not is_callers)


def move_model(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move everything a module holds, plain tensor attributes too, in place.

    The dtype is for floating-point tensors; complex ones get the complex type of that precision.

    Raises:
        ModelError: If an attribute is a view of a parameter or of a buffer that checkpoints fill.
    """
    aliases = Aliases(model)
    with _ComplexStaysComplex():
        model.to(device=device, dtype=dtype)
        for module in model.modules():
            for key, value in list(vars(module).items()):
                if isinstance(value, Tensor):
                    inexact = value.is_floating_point() or value.is_complex()
                    setattr(module, key, value.to(device=device, dtype=dtype if inexact else None))
    aliases.restore()


class _ComplexStaysComplex(TorchFunctionMode):
    """Mode in which `to` takes a complex tensor to the complex type of the given precision.

    nn.Module.to would discard imaginary parts. A mode, so that a model's own `to` (which may move
    tensors in lists, say) is covered too.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        if func is Tensor.to and args[0].is_complex():
            args = tuple(_complex_type(value) for value in args)
            kwargs = {key: _complex_type(value) for key, value in kwargs.items()}
        return func(*args, **kwargs)


def _complex_type(value: object) -> object:
    if isinstance(value, torch.dtype) and value.is_floating_point:
        return value.to_complex()
    return value


def existing_modules() -> list[nn.Module]:
    """Return all modules in this process."""
    kinds = {nn.Module}
    todo = [nn.Module]
    while todo:
        found = set(type.__subclasses__(todo.pop())) - kinds
        kinds |= found
        todo += found
    ids = set(map(id, kinds))  # the class of a class may forbid its hash
    things = gc.get_objects()
    # By type(): isinstance reads __class__, which makes a lazily imported object import its module.
    # The loop is C's, as there may be millions of objects.
    return list(compress(things, map(ids.__contains__, map(id, map(type, things)))))


def _returns_new(factory: Callable[..., object]) -> bool:
    """Return whether no call returns an earlier object: a class that leaves creation to Python."""
    return (
        isinstance(factory, type)
        and type(factory).__call__ is type.__call__
        and getattr(factory, "__new__") is object.__new__  # noqa: B009  # mypy knows its own __new__
    )


def _own_copy(model: nn.Module, name: str) -> nn.Module:
    """Return a copy of a module that existed before the user's function returned it."""
    for module in model.modules():
        for thing in (*walk.hooks(module), *vars(module).values()):
            # A copy of a function still refers to the tensors of the original.
            if isinstance(thing, FunctionType) and thing.__closure__:
                raise ModelError(
                    f"{name} returned a module that existed before the call and cannot be copied"
                    f" safely (it holds the function {thing.__qualname__}).",
                    "Build the module inside the function.",
                )
    try:
        return copy.deepcopy(model)
    except Exception as error:  # the user's module may raise anything when it is copied
        raise ModelError(
            f"{name} returned a module that existed before the call and cannot be copied"
            f" ({cause(error)}).",
            "Build the module inside the function.",
        ) from error


def check_complete(model: nn.Module, name: str) -> None:
    """Check that a network has values throughout, which can be copied; `name` is for messages.

    Raises:
        ModelError: If a part is lazy, on the meta device, or a nested tensor.
    """
    for held in held_arrays(model):
        if isinstance(held.value, Tensor) and held.value.is_nested:
            raise ModelError(
                f"{name}: {held.name} is a nested tensor, which localrank cannot compare.",
                "Keep its parts in a list, or padded in one tensor, and nest them in the forward"
                " pass.",
            )
    for key, tensor in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
            raise ModelError(
                f"{name}: {key} belongs to a lazy module and has no shape yet.",
                "Run the model once on a point before the function returns it.",
            )
        if tensor.is_meta:
            raise ModelError(
                f"{name}: {key} is on the meta device and has no values.",
                "Build the model on the CPU.",
            )


def _check_arguments(
    factory: Callable[..., object], arguments: Mapping[str, Any], name: str
) -> None:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        wanted = ", ".join(str(parameter) for parameter in signature.parameters.values())
        raise ModelError(
            f"{name} cannot be called with {_described(arguments)}: {error}.",
            f"It takes ({wanted}); give each as --model-arg NAME=VALUE, or {example(factory)}.",
        ) from error


def _described(arguments: Mapping[str, Any]) -> str:
    if not arguments:
        return "no arguments"
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items())
