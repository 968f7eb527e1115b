"""Wrappers around a network or its parts: torch.compile, DataParallel, TorchScript."""

from types import FunctionType
from typing import Any

from torch import nn
from torch.jit import ScriptModule
from torch.optim.swa_utils import AveragedModel

from localrank_cli import walk
from localrank_cli.errors import ModelError

COMPILED, PARALLEL = "_orig_mod", "module"
_NAMES = frozenset({COMPILED, PARALLEL})  # of the only child of a wrapper
_PARALLEL_TYPES = (nn.DataParallel, nn.parallel.DistributedDataParallel)


class _Pass:
    """The forward passes of wrappers such as DataParallel, which only pass their arguments on."""

    module: Any

    def all(self, *args: Any, **kwargs: Any) -> Any:
        """Pass on positional and keyword arguments."""
        return self.module(*args, **kwargs)

    def some(self, *args: Any) -> Any:
        """Pass on positional arguments."""
        return self.module(*args)

    def one(self, x: Any) -> Any:
        """Pass on a single argument."""
        return self.module(x)


_PASSES = {
    (one.__code__.co_code, one.__code__.co_names) for one in (_Pass.all, _Pass.some, _Pass.one)
}


def unwrap(model: nn.Module, name: str, *, is_callers: bool = False) -> nn.Module:
    """Return a network without the wrappers of torch.compile and DataParallel, inside too.

    Its parts then run uncompiled, on one device, under the names that they have without wrappers.
    `name` is for messages. A module of the caller's own is not changed: its parts stay wrapped.

    Raises:
        ModelError: If a part is a ScriptModule, whose layers cannot be seen when they run.
    """
    bare = _unwrapped(model)
    for key, module in list(bare.named_modules()):
        if isinstance(module, ScriptModule):
            where = f"{key!r} in it is" if key else "it is"
            raise ModelError(
                f"{name}: {where} a ScriptModule (torch.jit.script or torch.jit.trace), whose"
                " layers cannot be observed.",
                "Return the module without torch.jit: its weights have the same names.",
            )
        children = {} if is_callers else dict(module._modules)  # each name of a shared module
        for child, part in children.items():
            if part is not None and _unwrapped(part) is not part:
                module._modules[child] = _unwrapped(part)  # setattr may be overridden
    return bare


def _unwrapped(module: nn.Module) -> nn.Module:
    while True:
        children = dict(module.named_children())
        if children.keys() - _NAMES or len(children) != 1 or not _hands_on(module):
            return module
        (module,) = children.values()


def _hands_on(module: nn.Module) -> bool:
    """Return whether a module does nothing but call its only child."""
    if COMPILED in module._modules:
        return type(module).__module__.startswith("torch._dynamo")
    averages = isinstance(module, AveragedModel)  # its one buffer is a counter
    own = (module._parameters, () if averages else module._buffers, walk.hooks(module))
    if any(own) or "forward" in vars(module):
        return False
    if isinstance(module, _PARALLEL_TYPES):
        return True
    forward = getattr(type(module), "forward", None)
    if not isinstance(forward, FunctionType) or "__call__" in vars(type(module)):
        return False
    return (forward.__code__.co_code, forward.__code__.co_names) in _PASSES
