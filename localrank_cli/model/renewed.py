"""Attributes that a hook recomputes before each forward pass, as weight_norm does."""

from contextlib import suppress

import torch
from torch import Tensor, nn

from localrank_cli import walk


def renewed(module: nn.Module) -> set[str]:
    """Return the attributes that a module's hooks compute before each forward pass.

    Those of torch.nn.utils are known by name. Others are found by running the user's hooks without
    input: a hook that needs an input computes no weight.
    """
    hooks = walk.pre_hooks(module)
    found = {
        getattr(hook, "name", getattr(hook, "_tensor_name", ""))
        for hook in hooks
        if type(hook).__module__.startswith("torch.nn.utils.")
    } - {""}
    others = [hook for hook in hooks if not type(hook).__module__.startswith("torch.")]
    own = vars(module)
    held = {
        key: value
        for key, value in own.items()
        if isinstance(value, Tensor) and key not in walk.OWN and key not in found
    }
    if not others or not held:
        return found
    training = module.training
    module.training = False
    try:
        for hook in others:
            with suppress(Exception), torch.no_grad():  # a hook that needs an input fails
                hook(module, ())
        return found | {key for key, value in held.items() if own.get(key) is not value}
    finally:
        module.training = training
        own.update(held)
