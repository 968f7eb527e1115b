"""One forward pass over one point: which modules run, in what order, their outputs and costs."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from localrank_cli.errors import LayerError, LocalrankError, ModelError, one_line
from localrank_cli.layers.capture import Call
from localrank_cli.layers.convolution import is_convolution_node
from localrank_cli.layers.kinds import is_affine_layer
from localrank_cli.layers.outputs import first_tensor, from_real_parts, real_parts, replace_first
from localrank_cli.layers.precision import Descent
from localrank_cli.layers.transforms import current_level, is_vmapped, unwrapped

# Dtypes below float64 -> bytes of a real number in them.
_LOW_PRECISION = {
    torch.float32: 4, torch.float16: 2, torch.bfloat16: 2, torch.complex64: 4, torch.complex32: 2,
}  # fmt: skip


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
    began: int = 0  # how many calls had ended when it began
    feeder: Call | None = None  # the call whose output is its first input, that very tensor

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
    source_cost: float = 0.0  # operations of the forward pass up to the varied tensor

    @property
    def n_in(self) -> int:
        """Entries of the varied tensor: n_in of the flattened Jacobian."""
        return math.prod(self.varied_shape)

    def find(self, call: Call) -> CallRecord | None:
        """Return the record of a call, or None when it did not happen."""
        return next((record for record in self.records if record.call == call), None)


class _Operations(TorchDispatchMode):
    """Counter of operations and intermediate entries, which also sees results of low precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
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
        # Another mode would change the requests of a compiled graph in this pass only.
        with torch._C.DisableTorchFunction():
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
    # Sources beside one another, which cut nothing off.
    is_marked: Callable[[Call], bool] = lambda _: False
    marks: dict[Call | None, "_Mark"] = field(default_factory=dict)
    varied: Tensor | None = None
    source_cost: float = 0.0
    varied_is_complex: bool = False
    depending: list[Tensor] = field(default_factory=list)  # outputs, on the varied tensor
    records: list[CallRecord] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    vmapped: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    began: list[tuple[int, Call | None]] = field(default_factory=list)
    outputs: dict[int, tuple[Call, Tensor]] = field(default_factory=dict)  # by id, kept alive
    counts: dict[str, int] = field(default_factory=dict)

    def enter(self, name: str) -> Any:
        """Return the hook before a module."""

        def on_input(module: nn.Module, args: object, kwargs: object) -> None:
            """Note that a module has begun, and which call made its input."""
            self.running.append(f"{name!r} ({type(module).__name__})")
            taken = first_tensor((args, kwargs))
            feeder = self.outputs.get(id(taken))
            self.began.append((len(self.records), feeder[0] if feeder is not None else None))

        return on_input

    def leave(self, name: str) -> Any:
        """Return the hook after a module, which records its output."""

        def on_output(module: nn.Module, _: object, output: object) -> object:
            """Record a call; return its output if it is to be the varied or a marked tensor."""
            began, feeder = 0, None
            if self.running:
                self.running.pop()
                began, feeder = self.began.pop()
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
                self.source_cost = self.operations.cost
                tensor = from_real_parts(self.varied.clone(), tensor)
                replaced = replace_first(output, tensor)
            elif self.is_marked(call):
                tensor = self._mark(call, tensor)
                replaced = replace_first(output, tensor)
            # The latest call that handed it on: of nested modules, the outermost.
            self.outputs[id(tensor)] = call, tensor
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
                    began=began,
                    feeder=feeder,
                )
            )
            return replaced

        return on_output

    def _mark(self, call: Call, tensor: Tensor) -> Tensor:
        """Return a source's output, unchanged in value, whose node in the graph represents it."""
        if current_level():
            raise _within_transform(call)
        varied = real_parts(tensor)
        if not varied.requires_grad:
            varied = varied.detach().clone().requires_grad_(True)
        handed = from_real_parts(varied.clone(), tensor)
        self.operations.descent.start(handed)
        node = handed.grad_fn
        self.marks[call] = _Mark(varied, node, tensor.is_complex(), self.operations.cost)
        return handed


@dataclass(frozen=True)
class _Mark:
    """A source in the graph of a pass that has several."""

    varied: Tensor  # as `real_parts`
    node: Any  # in the graph, which stands for the source: the network may change the tensor
    is_complex: bool
    cost: float


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
    _pass(model, inputs, watch, is_varied=wrt is None)
    varied = inputs if wrt is None else watch.varied
    if varied is None and wrt is not None and wrt.label in watch.vmapped:
        raise _within_transform(wrt)
    if varied is None:
        raise _no_source(wrt, watch)
    low = watch.operations.low_precision or _rounds_backward(watch, [varied])
    mark = _Mark(varied, None, watch.varied_is_complex, watch.source_cost)
    return _survey(watch, mark, watch.records, low=low)


def survey_sources(
    model: nn.Module, point: Tensor, is_source: Callable[[Call], bool], *, with_input: bool
) -> dict[Call | None, Survey]:
    """Return a survey for each of several sources, from one pass of a batch of one point.

    The sources are the calls of which `is_source` holds that return a floating-point tensor, in
    order of execution, after None for the network's input if `with_input`. Each survey says which
    calls depend on its source; whether the path holds low precision is said of all sources
    together. To be called within `analysis_setting`.

    Raises:
        ModelError: If the forward pass fails.
        LayerError: If a source runs within a transform, or the input is of integers and a source.
    """
    floating = point.is_floating_point()
    if with_input and not floating:
        raise _integer_input(model)
    inputs = point.clone().requires_grad_(True) if with_input else point
    operations = _Operations(point.dtype if floating else torch.get_default_dtype())
    watch = _Watch(operations, None, is_marked=is_source)
    node = _pass(model, inputs, watch, is_varied=with_input)
    whole = _Mark(inputs, node, is_complex=False, cost=0.0)
    marks: dict[Call | None, _Mark] = {None: whole} if with_input else {}
    marks |= watch.marks
    if not marks:
        return {}
    low = operations.low_precision or _rounds_backward(
        watch, [one.varied for one in marks.values()]
    )
    reached = _reached(watch.depending, [one.node for one in marks.values()])
    depending = iter(reached)
    masks = [next(depending) if record.depends else 0 for record in watch.records]
    found: dict[Call | None, Survey] = {}
    for index, (source, mark) in enumerate(marks.items()):
        records = [
            replace(record, depends=bool(mask >> index & 1) and record.call != source)
            for record, mask in zip(watch.records, masks, strict=True)
        ]
        found[source] = _survey(watch, mark, records, low=low)
    return found


def _pass(model: nn.Module, inputs: Tensor, watch: _Watch, *, is_varied: bool) -> Any:
    """Run the model under the watch; return the node of its input in the graph."""
    with torch.enable_grad(), _watching(model, watch):
        copied = inputs.clone()  # a model may change its input in place
        node = copied.grad_fn
        if is_varied:
            watch.operations.descent.start(copied)
        with watch.operations:
            _forward(model, copied, watch)
    watch.outputs.clear()
    return node


def _survey(watch: _Watch, mark: _Mark, records: Sequence[CallRecord], *, low: bool) -> Survey:
    return Survey(
        records=tuple(records),
        varied_shape=tuple(mark.varied.shape),
        activations=watch.operations.entries,
        has_low_precision=low,
        has_low_values=watch.operations.low_values,
        silent=tuple(watch.silent),
        vmapped=tuple(watch.vmapped),
        varied_is_complex=mark.is_complex,
        source_cost=mark.cost,
    )


def _reached(tensors: Sequence[Tensor], nodes: Sequence[Any]) -> list[int]:
    """Return, for each tensor, which nodes of the graph it comes from, as bits of a number."""
    bits = {node: 1 << index for index, node in enumerate(nodes)}
    found: dict[Any, int] = {}
    for tensor in tensors:
        stack = [tensor.grad_fn]
        while stack:
            node = stack[-1]
            if node is None or node in found:
                stack.pop()
                continue
            parents = [parent for parent, _ in node.next_functions if parent is not None]
            left = [parent for parent in parents if parent not in found]
            if left:
                stack += left
                continue
            mask = bits.get(node, 0)
            for parent in parents:
                mask |= found[parent]
            found[node] = mask
            stack.pop()
    return [found.get(tensor.grad_fn, 0) for tensor in tensors]


def _no_source(wrt: Call | None, watch: _Watch) -> LayerError:
    names = ", ".join(record.call.label for record in watch.records)
    return LayerError(
        f"--wrt {wrt.label if wrt else ''}: that module did not run or returned no"
        " floating-point tensor.",
        f"Modules that run: {names}.",
    )


def _within_transform(call: Call) -> LayerError:
    return LayerError(
        f"--wrt {call.label}: that module runs within torch.func (vmap, grad, jvp) in the forward"
        " pass.",
        "Choose a module that runs before it.",
    )


def _rounds_backward(watch: _Watch, varied: Sequence[Tensor]) -> bool:
    """Return whether a custom autograd.Function has a derivative of lower precision."""
    if not _has_custom_function(watch.depending):
        return False
    operations = _Operations(varied[0].dtype)
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
        is_custom = isinstance(node, torch.autograd.function.BackwardCFunction)
        if is_custom and not is_convolution_node(node):
            return True
        seen.add(node)
        left += [parent for parent, _ in node.next_functions]
    return False


def _forward(model: nn.Module, inputs: Tensor, watch: _Watch) -> None:
    try:
        model(inputs)
    except LocalrankError:
        raise
    except Exception as error:  # the user's forward pass may raise anything
        place = f" in {watch.running[-1]}" if watch.running else ""
        raise ModelError(
            f"the model's forward pass failed{place} on one point of shape"
            f" {tuple(inputs.shape)}, {str(inputs.dtype).removeprefix('torch.')}:"
            f" {type(error).__name__}: {one_line(error)}",
            _advice(error),
        ) from error


def _advice(error: Exception) -> str:
    text = str(error)
    if isinstance(error, NotImplementedError):
        return "Define forward: it returns what the network computes from a batch of points."
    if torch.get_default_dtype() == torch.float64 and re.search(
        r"\bfloat\b.*\bdouble\b|\bdouble\b.*\bfloat\b", text, re.IGNORECASE | re.DOTALL
    ):
        return "A part of the network computes only in float32: give --dtype float32."
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
                handles.append(
                    module.register_forward_pre_hook(watch.enter(name), with_kwargs=True)
                )
                handles.append(module.register_forward_hook(watch.leave(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


class TokensError(LayerError):
    """The data are tokens, and no module was named to differentiate with respect to.

    `embedding` is the first embedding of the network.
    """

    def __init__(self, embedding: str, what: str, advice: str) -> None:
        super().__init__(what, advice)
        self.embedding = embedding


def _integer_input(model: nn.Module) -> LayerError:
    embeddings = [
        name for name, module in model.named_modules() if isinstance(module, nn.Embedding)
    ]
    if embeddings:
        names = ", ".join(embeddings[:3])
        return TokensError(
            embeddings[0],
            "the data are integers (tokens), which have no derivative.",
            f"Differentiate with respect to an embedding instead: --wrt {embeddings[0]}"
            f" (embeddings in this model: {names}).",
        )
    return LayerError(
        "the data are integers, and the model's input must be floating point.",
        "For pixels give a factor, for example --data-scale 1/255;"
        " for tokens differentiate with respect to a module: --wrt NAME.",
    )
