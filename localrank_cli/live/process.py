"""The state of the process that training depends on, kept safe from measurements."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch._C import _autograd, _len_torch_function_stack
from torch._C._autograd import (
    _pop_saved_tensors_default_hooks,
    _push_saved_tensors_default_hooks,
)
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.nn.modules import module as torch_module
from torch.overrides import _pop_mode_temporarily
from torch.utils._python_dispatch import _disable_current_modes

from localrank_cli.errors import ModelError
from localrank_cli.seeds import SEED, seeded

_GLOBAL_HOOKS = (
    "_global_forward_pre_hooks", "_global_forward_hooks", "_global_backward_pre_hooks",
    "_global_backward_hooks",
)  # fmt: skip


@contextmanager
def process_unchanged() -> Iterator[None]:
    """Measure as in a new process, and restore its state at the end, whatever happens.

    Within it gradients can be computed, autocast is off, tensors are made on the CPU in float32,
    and neither a hook of all modules runs nor a mode that changes what torch computes or saves.
    Random number generators of torch (on each GPU in use), numpy and Python, the default dtype and
    the flags of deterministic algorithms are as before afterwards.
    """
    default = torch.get_default_dtype()
    threads = torch.get_num_threads()
    deterministic = _deterministic()
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        stack.callback(_set_deterministic, *deterministic)
        stack.callback(torch.set_default_dtype, default)
        stack.enter_context(seeded(SEED))
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(_no_global_hooks())
        stack.enter_context(_no_modes())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        torch.set_default_dtype(torch.float32)
        yield


def _deterministic() -> tuple[bool, bool]:
    """Return whether algorithms must be deterministic, and whether others only give a warning."""
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    return torch.are_deterministic_algorithms_enabled(), warn_only


def _set_deterministic(mode: bool, warn_only: bool) -> None:
    if _deterministic() != (mode, warn_only):  # setting it imports torch's compiler, which is slow
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)


@contextmanager
def _no_modes() -> Iterator[None]:
    """Leave the user's modes (of functions, of operators) and hooks of saved tensors.

    They may count, compress or replace what is computed for the training: a Jacobian through
    activations that are saved in 8 bits would be another one.
    """
    with ExitStack() as stack:
        while _len_torch_function_stack():
            stack.enter_context(_pop_mode_temporarily())
        stack.enter_context(_disable_current_modes())
        top = getattr(_autograd, "_top_saved_tensors_default_hooks", None)
        if top is None:
            _refuse_saved_tensor_hooks()
        else:
            while (hooks := top(True)) is not None:
                _pop_saved_tensors_default_hooks()
                stack.callback(_push_saved_tensors_default_hooks, *hooks)
        yield


def _refuse_saved_tensor_hooks() -> None:
    """Refuse hooks of saved tensors: older versions of torch do not say which there are.

    Raises:
        ModelError: If there are any.
    """
    try:
        with disable_saved_tensors_hooks("saved-tensor hooks are active"):
            pass
    except RuntimeError as error:
        raise ModelError(
            "saved-tensor hooks are active, and this version of torch cannot suspend them.",
            "Measure outside torch.autograd.graph.saved_tensors_hooks, or with a newer torch.",
        ) from error


@contextmanager
def _no_global_hooks() -> Iterator[None]:
    """Take away the hooks that run at every module of the process."""
    kept: list[tuple[dict[int, Any], dict[int, Any]]] = []
    for name in _GLOBAL_HOOKS:
        hooks = getattr(torch_module, name, {})
        kept.append((hooks, dict(hooks)))
        hooks.clear()
    try:
        yield
    finally:
        for hooks, before in kept:
            hooks.clear()
            hooks.update(before)
