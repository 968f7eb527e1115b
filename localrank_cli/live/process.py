"""The state of the process that a training depends on, kept from what is measured."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.modules import module as torch_module

from localrank_cli.seeds import SEED, seeded

_GLOBAL_HOOKS = (
    "_global_forward_pre_hooks", "_global_forward_hooks", "_global_backward_pre_hooks",
    "_global_backward_hooks",
)  # fmt: skip


@contextmanager
def process_unchanged() -> Iterator[None]:
    """Measure as in a new process, and restore its state at the end, whatever happens.

    Within it gradients can be computed, autocast is off, tensors are made on the CPU in float32,
    and no hook of all modules runs. Random number generators of torch (on each GPU in use), numpy
    and Python, the default dtype and the flags of deterministic algorithms are as before
    afterwards.
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
