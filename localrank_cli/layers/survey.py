"""One forward pass over one point: which modules run, in what order, their outputs and costs."""

import math
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from localrank_cli.errors import LayerError, LocalrankError, ModelError, one_line
from localrank_cli.layers.capture import Call
from localrank_cli.layers.outputs import first_tensor, from_real_parts, real_parts, replace_first
from localrank_cli.layers.precision import Descent
from localrank_cli.layers.transforms import current_level, is_vmapped, unwrapped

# Dtypes below float64 -> bytes of a real number in them.
_LOW_PRECISION = {
    torch.float32: 4, torch.float16: 2, torch.bfloat16: 2, torch.complex64: 4, torch.complex32: 2,
}  # fmt: skip

# Classes of layers with a pre-activation.
_AFFINE: tuple[type[nn.Module], ...] = (
    nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


def is_affine_layer(module: nn.Module) -> bool:
    """Return whether a module is analysed by default.

    That is Linear, Bilinear, Conv*, ConvTranspose* and their subclasses, and the Conv1D of
    transformers (a Linear with a transposed weight).
    """
    if isinstance(module, _AFFINE):
        return True
    # Looked up, not imported: a Conv1D instance exists only where transformers was imported.
    transformers = sys.modules.get("transformers.pytorch_utils")
    conv1d = getattr(transformers, "Conv1D", None)
    return isinstance(conv1d, type) and isinstance(module, conv1d)


@dataclass(frozen=True)
class CallRecord:
    """The output and cost of one call of one module for a batch of one point."""

    call: Call
    module: str  # class name
    affine: bool  # see `is_affine_layer`
    shape: tuple[int, ...]  # of the first tensor output, as `real_parts`
    depends: bool  # on the varied tensor
    cost: float  # operations of the forward pass up to this output
    is_complex: bool = False  # the last axis of the shape is that of the two parts

    @property
    def numel(self) -> int:
        """Entries of the output: n_out of the flattened Jacobian."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Survey:
    """One forward pass of a model over one point."""

    records: tuple[CallRecord, ...]  # calls that returned a floating-point tensor, as they ended
    varied_shape: tuple[int, ...]  # of the varied tensor for a batch of one point, as `real_parts`
    activations: int  # entries of all intermediate results for one point
    # Less precision than the analysis dtype: in some operation on what comes from the varied
    # tensor, which rounds the Jacobian; and in any operation at all.
    has_low_precision: bool
    has_low_values: bool
    silent: tuple[str, ...]  # calls that returned no floating-point tensor
    vmapped: tuple[str, ...] = ()  # calls within a vmap of the network's own
    varied_is_complex: bool = False

    @property
    def n_in(self) -> int:
        """Entries of the varied tensor: n_in of the flattened Jacobian."""
        return math.prod(self.varied_shape)

    def find(self, call: Call) -> CallRecord | None:
        """Return the record of a call, or None when it did not happen."""
        return next((record for record in self.records if record.call == call), None)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Counter of operations and intermediate entries, which also sees results of low precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.cost = 0.0
        self.entries = 0
        self.low_precision = False  # of what descends from the varied tensor
        self.low_values = False
        self.descent = Descent()
        self._low = tuple(low for low, size in _LOW_PRECISION.items() if size < dtype.itemsize)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Torch's own hook. Its default wraps what follows in torch._dynamo, whose import takes as
        # long as that of torch; nothing is compiled here.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        # Another mode would answer what a compiled graph asks for in this pass alone.
        with torch._C.DisableTorchFunction():  # noqa: SLF001  # torch has no public name for it
            out = func(*args, **kwargs)
        every = out if isinstance(out, (tuple, list)) else (out,)
        tensors = [tensor for tensor in every if isinstance(tensor, Tensor)]
        descends = self.descent.follow(func, args, kwargs, tensors)
        if getattr(func, "is_view", False):
            return out  # a transposed weight costs nothing and is no intermediate result
        for tensor in tensors:
            self.cost += tensor.numel()
            self.entries += tensor.numel() * (2 if tensor.is_complex() else 1)
            self.low_values |= tensor.dtype in self._low
            self.low_precision |= descends and tensor.dtype in self._low
        if func.overloadpacket is torch.ops.aten.convolution:
            self.entries += _unfolded(args[0], args[1], out)
        counter = flop_registry.get(getattr(func, "overloadpacket", func))
        if counter is not None:
            self.cost += counter(*args, **kwargs, out_val=out)
        return out


def _unfolded(inputs: Tensor, weight: Tensor, out: Tensor) -> int:
    """Return the size of the unfolded input, a float64 convolution's workspace on the CPU."""
    return inputs.shape[0] * weight[0].numel() * (out[0, 0].numel() if out.numel() else 0)


@dataclass
class _Watch:
    operations: _Operations
    wrt: Call | None
    varied: Tensor | None = None
    varied_is_complex: bool = False
    depending: list[Tensor] = field(default_factory=list)  # outputs, on the varied tensor
    records: list[CallRecord] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    vmapped: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def enter(self, name: str) -> Any:
        """Return the hook before a module."""

        def on_input(module: nn.Module, _: object) -> None:
            self.running.append(f"{name!r} ({type(module).__name__})")

        return on_input

    def leave(self, name: str) -> Any:
        """Return the hook after a module, which records its output."""

        def on_output(module: nn.Module, _: object, output: object) -> object:
            if self.running:
                self.running.pop()
            self.counts[name] = self.counts.get(name, 0) + 1
            call = Call(name, self.counts[name])
            tensor = first_tensor(output)
            if tensor is None or not (tensor.is_floating_point() or tensor.is_complex()):
                self.silent.append(call.label)
                return None
            if is_vmapped(tensor, 0):
                self.vmapped.append(call.label)
                return None
            replaced = None
            if call == self.wrt:
                if current_level():
                    raise _within_transform(call)
                # Cut off from what came before: only paths through this output are followed.
                self.varied = real_parts(tensor).detach().clone().requires_grad_(True)
                self.operations.descent.start(self.varied)
                self.varied_is_complex = tensor.is_complex()
                tensor = from_real_parts(self.varied.clone(), tensor)
                replaced = replace_first(output, tensor)
            tensor = unwrapped(tensor)
            if tensor.requires_grad:
                self.depending.append(tensor)
            self.records.append(
                CallRecord(
                    call=call,
                    module=type(module).__name__,
                    affine=is_affine_layer(module),
                    shape=(*tensor.shape, 2) if tensor.is_complex() else tuple(tensor.shape),
                    depends=tensor.requires_grad,
                    cost=self.operations.cost,
                    is_complex=tensor.is_complex(),
                )
            )
            return replaced

        return on_output


def survey(model: nn.Module, point: Tensor, wrt: Call | None = None) -> Survey:
    """Return the records of all module calls in one pass of a batch of one point.

    To be called within `analysis_setting`. `wrt` is the call whose output is the varied tensor;
    None for the network's input.

    Raises:
        ModelError: If the forward pass fails.
        LayerError: If `wrt` did not run, or the input is of integers and there is no `wrt`.
    """
    floating = point.is_floating_point()
    if wrt is None and not floating:
        raise _integer_input(model)
    inputs = point.clone().requires_grad_(True) if wrt is None else point
    watch = _Watch(_Operations(point.dtype if floating else torch.get_default_dtype()), wrt)
    with torch.enable_grad(), _watching(model, watch):
        copied = inputs.clone()  # a model may change its input in place
        if wrt is None:
            watch.operations.descent.start(copied)
        with watch.operations:
            _forward(model, copied, watch)
    varied = inputs if wrt is None else watch.varied
    if varied is None and wrt is not None and wrt.label in watch.vmapped:
        raise _within_transform(wrt)
    if varied is None:
        names = ", ".join(record.call.label for record in watch.records)
        raise LayerError(
            f"--wrt {wrt.label if wrt else ''}: that module did not run or returned no"
            " floating-point tensor.",
            f"Modules that run: {names}.",
        )
    return Survey(
        records=tuple(watch.records),
        varied_shape=tuple(varied.shape),
        activations=watch.operations.entries,
        has_low_precision=watch.operations.low_precision or _rounds_backward(watch, varied),
        has_low_values=watch.operations.low_values,
        silent=tuple(watch.silent),
        vmapped=tuple(watch.vmapped),
        varied_is_complex=watch.varied_is_complex,
    )


def _within_transform(call: Call) -> LayerError:
    return LayerError(
        f"--wrt {call.label}: that module runs within torch.func (vmap, grad, jvp) in the forward"
        " pass.",
        "Choose a module that runs before it.",
    )


def _rounds_backward(watch: _Watch, varied: Tensor) -> bool:
    """Return whether a custom autograd.Function has a derivative of lower precision."""
    if not _has_custom_function(watch.depending):
        return False
    operations = _Operations(varied.dtype)
    cotangents = [torch.ones_like(output) for output in watch.depending]
    for cotangent in cotangents:
        operations.descent.start(cotangent)
    with suppress(Exception), operations:  # a failing backward is reported where it is needed
        torch.autograd.grad(watch.depending, varied, cotangents, allow_unused=True)
    return operations.low_precision


def _has_custom_function(tensors: Sequence[Tensor]) -> bool:
    seen, left = set[Any](), [tensor.grad_fn for tensor in tensors]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return True
        seen.add(node)
        left += [parent for parent, _ in node.next_functions]
    return False


def _forward(model: nn.Module, inputs: Tensor, watch: _Watch) -> None:
    try:
        model(inputs)
    except LocalrankError:
        raise
    except Exception as error:  # whatever a user's forward may raise
        place = f" in {watch.running[-1]}" if watch.running else ""
        raise ModelError(
            f"the model's forward pass failed{place} on one point of shape"
            f" {tuple(inputs.shape)}, {str(inputs.dtype).removeprefix('torch.')}:"
            f" {type(error).__name__}: {one_line(error)}",
            _advice(str(error)),
        ) from error


def _advice(text: str) -> str:
    if torch.get_default_dtype() == torch.float64 and re.search(
        r"\bfloat\b.*\bdouble\b|\bdouble\b.*\bfloat\b", text, re.IGNORECASE | re.DOTALL
    ):
        return "A part of the network computes in float32 alone: give --dtype float32."
    return (
        "Check the shape and type of the data against what the model expects"
        " (a point is given as a batch of one)."
    )


@contextmanager
def _watching(model: nn.Module, watch: _Watch) -> Iterator[None]:
    handles: list[Any] = []
    try:
        for name, module in model.named_modules():
            if name:
                handles.append(module.register_forward_pre_hook(watch.enter(name)))
                handles.append(module.register_forward_hook(watch.leave(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _integer_input(model: nn.Module) -> LayerError:
    embeddings = [
        name for name, module in model.named_modules() if isinstance(module, nn.Embedding)
    ]
    if embeddings:
        names = ", ".join(embeddings[:3])
        return LayerError(
            "the data are integers (tokens), which have no derivative.",
            f"Differentiate with respect to an embedding instead: --wrt {embeddings[0]}"
            f" (embeddings in this model: {names}).",
        )
    return LayerError(
        "the data are integers, and the model's input must be floating point.",
        "For pixels give a factor, for example --data-scale 1/255;"
        " for tokens differentiate with respect to a module: --wrt NAME.",
    )
