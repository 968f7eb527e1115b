"""The state in which a user's model runs: eval mode, no TF32, all flags restored afterwards."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from localrank_cli.layers.convolution import fast_convolutions
from localrank_cli.layers.precision import Float64Throughout, float64_throughout
from localrank_cli.layers.restore import Snapshot, restore_tensor
from localrank_cli.seeds import seeded

# Read at import, so that an analysis within another one does not wrap it twice.
_torch_batch_norm = functional.batch_norm


@contextmanager
def analysis_setting(
    model: nn.Module, dtype: torch.dtype, seed: int = 0
) -> Iterator[Float64Throughout | None]:
    """Put a model in eval mode with frozen parameters, and restore everything afterwards.

    Within it, constants that a forward pass makes have the analysis dtype, requests for float32 get
    float64 (see `float64_throughout`), TF32 is off, nothing is recomputed in a backward pass,
    attention and recurrent layers use the kernels that forward-mode differentiation supports, and
    no number depends on the caller's random number generators. Afterwards training and
    requires_grad flags, buffers, everything that a `Snapshot` finds (some forward passes write to
    it) and the RNG state are as before.

    Yields:
        The mode that answers requests for float32, if there is one.
    """
    training = [(module, module.training) for module in model.modules()]
    grads = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    snapshot = Snapshot(model)
    default = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(seeded(seed))
        stack.enter_context(_kernels(model, dtype))
        stack.enter_context(_quiet_torch())
        stack.enter_context(_uncompiled())
        stack.enter_context(_not_recomputed(model))
        try:
            model.eval()
            for parameter, _ in grads:
                parameter.requires_grad_(False)
            torch.set_default_dtype(dtype)
            with float64_throughout(model, dtype) as mode:
                yield mode
        finally:
            torch.set_default_dtype(default)
            for parameter, flag in grads:
                parameter.requires_grad_(flag)
            for module, flag in training:
                module.training = flag
            # Values that a pass cached would be stale at the next checkpoint.
            snapshot.restore()
            _restore_buffers(buffers)


def _restore_buffers(buffers: list[tuple[nn.Module, str, Tensor, Tensor]]) -> None:
    for module, name, buffer, saved in buffers:
        if getattr(module, name) is not buffer:
            setattr(module, name, buffer)
        restore_tensor(buffer, saved)


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Silence torch's warnings about itself, which would stop a route where they are errors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        warnings.filterwarnings("ignore", message=".*torch.jit.script")
        # Raised by the first product in each of autograd's threads on a GPU.
        warnings.filterwarnings("ignore", message="Attempting to run cuBLAS")
        yield


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Run compiled functions as they are written, and leave new ones uncompiled.

    Compiled functions support neither forward mode nor transforms.
    """
    with ExitStack() as stack:
        stack.enter_context(_attribute(torch, "compile", _not_compiled))
        # Imported only if something was compiled: the import takes seconds.
        if "_dynamo" in vars(torch):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def _not_compiled(model: Any = None, **_: object) -> Any:
    return model if model is not None else lambda function: function


@contextmanager
def _not_recomputed(model: nn.Module) -> Iterator[None]:
    """Run what a network gives to torch's `checkpoint` as it is written.

    Recomputed in the backward pass, a module would run again without the varied tensor, and the
    reentrant kind cuts what runs within it off from its input.
    """
    # With torch 2.6 the import below brings sympy, which takes as long as torch itself. What
    # consists of torch's own modules never asks for it.
    if all(
        type(module).__module__.startswith(("torch.nn.", "localrank_cli."))
        for module in model.modules()
    ):
        yield
        return
    from torch.utils import checkpoint  # noqa: PLC0415  # slow to import, and rarely needed

    with ExitStack() as stack:
        for name, value in (
            ("CheckpointFunction", _PlainFunction),
            ("_checkpoint_without_reentrant_generator", _plain_forward),
        ):
            if hasattr(checkpoint, name):
                stack.enter_context(_attribute(checkpoint, name, value))
        yield


class _PlainFunction:
    """A replacement for torch's CheckpointFunction that keeps activations."""

    @staticmethod
    def apply(function: Callable[..., Any], _: bool, *args: Any) -> Any:
        """Return what the function returns."""
        return function(*args)


def _plain_forward(
    _: object, __: bool, context: Callable[[], tuple[Any, Any]], *___: object, **____: object
) -> Iterator[None]:
    """Wait for a forward pass, within the context that the network gives it."""
    with context()[0]:
        yield


@contextmanager
def _kernels(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    has_recurrence = any(isinstance(module, nn.RNNBase) for module in model.modules())
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        # Forward AD knows no fused attention kernel, on any device.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if has_recurrence:
            # Neither oneDNN's nor cuDNN's fused recurrence has a forward-mode derivative, and
            # cuDNN's backward refuses eval mode.
            stack.enter_context(_attribute(torch.backends.cudnn, "enabled", False))
            if dtype == torch.float32:
                stack.enter_context(_attribute(torch.backends.mkldnn, "enabled", False))
        stack.enter_context(_no_tf32())
        stack.enter_context(_attribute(functional, "batch_norm", _batch_norm))
        if dtype == torch.float64:
            stack.enter_context(fast_convolutions())
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fastpath)


def _batch_norm(*args: Any, **kwargs: Any) -> Tensor:
    """Return torch's batch norm, so that its gradient arrives with contiguous memory.

    On a CPU its backward pass is wrong for a batch of one in eval mode, where the output is
    contiguous and its gradient is that of `flatten(2).transpose(1, 2)`, which makes tokens of
    pixels (seen in torch 2.13). A view's gradient is contiguous.
    """
    output = _torch_batch_norm(*args, **kwargs)
    return output.view(-1).view(output.shape) if output.is_contiguous() else output


@contextmanager
def _no_tf32() -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul, cast("Any", torch.backends.cudnn)
    with ExitStack() as stack:
        if hasattr(matmul, "fp32_precision"):
            # torch >= 2.9 raises when the old and the new switches are mixed.
            for place in (matmul, cudnn.conv, cudnn.rnn):
                stack.enter_context(_attribute(place, "fp32_precision", "ieee"))
        else:
            for place in (matmul, cudnn):
                stack.enter_context(_attribute(place, "allow_tf32", False))
        yield


@contextmanager
def _attribute(place: Any, name: str, value: object) -> Iterator[None]:
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)
