"""Copy a network that is in use, so that measuring touches nothing of the user's."""

import copy
from collections.abc import Mapping
from types import GeneratorType, ModuleType
from typing import Any

from torch import Tensor, nn

from localrank_cli import walk
from localrank_cli.errors import ModelError, cause
from localrank_cli.live.rebound import Rebinding
from localrank_cli.model.build import check_complete, name_root
from localrank_cli.model.sharing import held_objects
from localrank_cli.model.wrappers import unwrap

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_ORIGINAL = "_original_forward"  # where accelerate keeps what it wraps in autocast


def bare_network(model: nn.Module, name: str) -> nn.Module:
    """Return the user's network without the wrappers of torch.compile and DataParallel around it.

    Raises:
        ModelError: If a part is a ScriptModule, is lazy or has no values.
    """
    bare = unwrap(model, name, is_callers=True)
    check_complete(bare, name)
    return bare


def copy_of(bare: nn.Module, name: str) -> nn.Module:
    """Return a copy of a network, on its device, in which no parameter requires a gradient.

    Hooks that the network's own code registers come along, others do not: they would record what
    is measured as if the training had computed it. `name` is for messages.

    Raises:
        ModelError: If it cannot be copied.
    """
    memo: dict[int, Any] = {}
    for place in held_objects(bare):
        value = place.value
        if isinstance(value, Tensor):
            # Results of a forward pass that a module keeps, which deepcopy refuses.
            if not value.is_leaf:
                memo[id(value)] = value.detach().clone()
        elif _is_shared(value):
            memo[id(value)] = value
    foreign = _foreign_hooks(bare)
    memo.update((key, hook) for key, hook in foreign.items() if key not in memo)
    try:
        copied = copy.deepcopy(bare, memo)
    except Exception as error:  # the user's module may raise anything when it is copied
        raise ModelError(
            f"{name}: cannot be copied ({cause(error)}), and only a copy can be measured without"
            " touching it.",
            "Pass its state dict instead, and the code that builds it as the option model:"
            " local_rank(network.state_dict(), data, model=lambda: Net(...)).",
        ) from error
    rebinding = Rebinding(memo)
    for module in copied.modules():
        _clean(vars(module), foreign, rebinding)
    return name_root(unwrap(copied, name)).requires_grad_(False)


def _is_shared(value: object) -> bool:
    """Return whether an object is no part of what a network computes, and cannot be copied."""
    kind = type(value)
    return (
        walk.is_machinery(value)  # locks, files, queues, loggers
        or isinstance(value, GeneratorType | ModuleType)
        or kind.__module__.startswith("torch._C._distributed")
    )


def _clean(own: dict[str, Any], foreign: Mapping[int, object], rebinding: Rebinding) -> None:
    """Remove what is foreign from the attributes of a copy, and what reaches the original."""
    for name in _HOOKS:
        hooks = own.get(name, {})
        for key in [key for key, hook in hooks.items() if id(hook) in foreign]:
            del hooks[key]
        rebinding.rebind(hooks)
    if _ORIGINAL in own:
        own.pop("forward", None)
        del own[_ORIGINAL]
    rebinding.rebind(own)


def _foreign_hooks(model: nn.Module) -> Mapping[int, object]:
    """Return the hooks that neither torch nor the code of the network registered, by id."""
    modules = list(model.modules())
    tree = {id(module) for module in modules}
    classes = {
        base.__qualname__ + "."
        for module in modules
        for base in type(module).__mro__
        if base not in nn.Module.__mro__
    }
    own = tuple(sorted(classes))
    hooks = (
        hook for one in modules for name in _HOOKS for hook in vars(one).get(name, {}).values()
    )
    return {id(hook): hook for hook in hooks if not _is_own(hook, tree, own)}


def _is_own(hook: Any, tree: set[int], classes: tuple[str, ...]) -> bool:
    if id(getattr(hook, "__self__", None)) in tree:
        return True
    inner = getattr(hook, "func", hook)  # of functools.partial
    module = getattr(inner, "__module__", None) or type(inner).__module__
    if module.startswith(("torch.nn.", "torch.ao.")):
        return True  # weight_norm, spectral_norm, pruning
    return getattr(inner, "__qualname__", "").startswith(classes)
