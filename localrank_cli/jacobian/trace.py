"""Find the chain of a network in the graph that autograd recorded of it.

Where every tapped layer is an exact nn.Linear that sees one vector per point, and autograd's graph
between two of them is a single path of elementwise operations, the Jacobian is a product of the
weights and of diagonal matrices D of the activations' derivatives. D comes from autograd of the
activation itself, whatever it is.

The graph that autograd recorded in the very pass that is analyzed is the structure of the Jacobian:
a skip connection shows as a node with two parents, mixing of entries as an operation that is not
elementwise. A symbolic trace of the code would show less, and fails on control flow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from localrank_cli.errors import cause
from localrank_cli.jacobian.batch import Batch
from localrank_cli.jacobian.chain import Chain, Link
from localrank_cli.jacobian.routes import contraction
from localrank_cli.layers.capture import Call

# Elementwise operations by the name of their backward node: a quick filter, and no proof. An
# operation of two tensors has two parents, which the walk refuses unless one is a constant.
_ELEMENTWISE = frozenset(
    """
    Abs Add Alias Asinh Atan Celu Clamp ClampMax ClampMin Clone Cos Cosh Div Elu Erf Erfc Exp Expm1
    Gelu Hardshrink Hardsigmoid Hardswish Hardtanh LeakyRelu Log1P LogSigmoid Maximum Minimum Mish
    Mul NativeBatchNorm Neg Pow PreluKernel Reciprocal Relu Rsub Sigmoid Sign Silu Sin Sinh Softplus
    Softshrink Sqrt Square Sub Tan Tanh Threshold Where
    View UnsafeView ReshapeAlias Unsqueeze Squeeze
    """.split()  # noqa: SIM905  # one word a line would hide the list
)


@dataclass(frozen=True)
class Refusal:
    """The reason why a network is not a chain."""

    reason: str


def find_chain(batch: Batch, calls: Sequence[Call], tolerance: float) -> Chain | Refusal:
    """Return the chain in autograd's graph of one pass over the batch, or why there is none.

    `tolerance` is the relative difference below which two computations of a value agree.
    """
    if batch.wrt is not None:
        return Refusal("the varied tensor is not the input")
    inputs = batch.inputs.detach().clone().requires_grad_(True)
    try:
        with torch.enable_grad():
            # A clone: a model may change its input in place.
            return _trace(batch, inputs, calls, tolerance)
    except Exception as error:  # the user's model may raise anything; the general routes report it
        return Refusal(f"{cause(error)}")


def _trace(
    batch: Batch, inputs: Tensor, calls: Sequence[Call], tolerance: float
) -> Chain | Refusal:
    seen = _run(batch.model, inputs.clone())
    missing = [call for call in calls if call not in {layer.call for layer in seen}]
    if missing:
        return Refusal(f"{missing[0].label} is not a plain nn.Linear")
    last = max(index for index, layer in enumerate(seen) if layer.call in set(calls))
    return _Walk(seen[: last + 1], inputs, tolerance, batch).chain(calls)


@dataclass(frozen=True)
class _LayerCall:
    call: Call
    module: nn.Linear
    inputs: Tensor
    output: Tensor


def _run(model: nn.Module, inputs: Tensor) -> list[_LayerCall]:
    seen: list[_LayerCall] = []
    counts: dict[str, int] = {}

    def hook(name: str) -> Any:
        """Return the hook of a Linear layer."""

        def on_output(module: nn.Linear, args: tuple[Any, ...], output: Tensor) -> Tensor:
            """Keep a call of the layer, and pass a copy of its output on."""
            counts[name] = counts.get(name, 0) + 1
            seen.append(_LayerCall(Call(name, counts[name]), module, args[0], output))
            return output.clone()  # later operations may work in place

        return on_output

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if _is_plain_linear(module)
    ]
    try:
        model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _is_plain_linear(module: nn.Module) -> bool:
    """Return whether a module is exactly W x + b: nn.Linear itself, without hooks."""
    return type(module) is nn.Linear and not module._forward_hooks and not module._forward_pre_hooks


class _Walk:
    """The walk through the graph from each layer's input back to the layer that feeds it."""

    def __init__(
        self, seen: Sequence[_LayerCall], inputs: Tensor, tolerance: float, batch: Batch
    ) -> None:
        self._seen = seen
        self._inputs = inputs
        self._tolerance = tolerance
        self._metric = batch.metric
        self._picked = batch.picked
        # The nodes are kept, so that their Python objects stay the same ones.
        self._ends = {layer.output.grad_fn: index for index, layer in enumerate(seen)}

    def chain(self, calls: Sequence[Call]) -> Chain | Refusal:
        """Return the chain that leads to some layers."""
        found: dict[int, Link] = {}
        wanted = set(calls)
        todo = [index for index, layer in enumerate(self._seen) if layer.call in wanted]
        while todo:
            index = todo.pop()
            if index in found:
                continue
            link = self._link(index)
            if isinstance(link, Refusal):
                return link
            found[index] = link
            if link.parent is not None:
                todo.append(link.parent)
        order = sorted(found)
        position = {index: place for place, index in enumerate(order)}
        links = [
            Link(
                found[index].call,
                found[index].weight,
                None if (parent := found[index].parent) is None else position[parent],
                found[index].slope,
                found[index].error,
            )
            for index in order
        ]
        return Chain(links, calls, self._picked)

    def _link(self, index: int) -> Link | Refusal:
        layer = self._seen[index]
        label = layer.call.label
        points = self._inputs.shape[0]
        if layer.output.is_complex():
            return Refusal(f"{label} is complex")
        if layer.inputs.ndim != 2 or layer.inputs.shape[0] != points:
            return Refusal(f"{label} sees more than one vector per point")
        expected = functional.linear(layer.inputs, layer.module.weight, layer.module.bias)
        scale = layer.output.abs().max()
        if bool(((expected - layer.output).abs() > self._tolerance * scale).any()):
            return Refusal(f"{label} does not give W x + b")
        parent = self._walk(layer.inputs)
        if isinstance(parent, Refusal):
            return Refusal(f"{label}: {parent.reason}")
        return self._with_slope(layer, parent)

    def _with_slope(self, layer: _LayerCall, parent: int | None) -> Link | Refusal:
        label, points = layer.call.label, self._inputs.shape[0]
        source = self._inputs if parent is None else self._seen[parent].output
        if source.is_complex():
            return Refusal(f"{label}: what feeds it is complex")
        if source.numel() != layer.inputs.numel():
            return Refusal(f"{label}: its input has another size than what feeds it")
        # Of an elementwise map, the gradient of the sum is the diagonal of its Jacobian.
        (slope,) = torch.autograd.grad(layer.inputs.sum(), source, retain_graph=True)
        slope = slope.reshape(points, -1).detach()
        if not self._is_diagonal(layer.inputs, source, slope):
            return Refusal(f"{label}: what feeds it mixes entries")
        weight = layer.module.weight.detach()
        if parent is not None:
            return Link(layer.call, weight, parent, slope)
        if not torch.equal(slope, slope[:1].expand_as(slope)):
            return Refusal(f"{label}: an operation before it acts differently on each point")
        weight, error = weight * slope[0], 0.0
        if self._metric is not None:
            weight, error = self._metric.weigh(weight)
        return Link(layer.call, weight, None, None, error)

    def _is_diagonal(self, output: Tensor, source: Tensor, slope: Tensor) -> bool:
        """Check by a random cotangent; names of operations are only a filter."""
        # Batch and instance normalization by the data's own statistics have the name of the
        # elementwise one, for example, and a user's function may have any name.
        generator = torch.Generator("cpu").manual_seed(0)
        cotangent = torch.randn(
            slope.shape, generator=generator, dtype=torch.float64, device="cpu"
        ).to(slope)
        total = contraction([output], [cotangent.reshape(output.shape)])
        (row,) = torch.autograd.grad(total, source, retain_graph=True)
        pulled, expected = row.reshape(slope.shape), slope * cotangent
        known = torch.isfinite(pulled) & torch.isfinite(expected)
        scale = torch.where(known, pulled.abs() + expected.abs(), 0).amax(dim=1, keepdim=True)
        off = torch.where(known, (pulled - expected).abs(), 0)
        return bool((off <= self._tolerance * scale).all())

    def _walk(self, tensor: Tensor) -> int | Refusal | None:
        """Return the index of the layer that feeds a tensor; None for the input."""
        node: Any = tensor.grad_fn
        while node is not None:
            if node in self._ends:
                return self._ends[node]
            name = type(node).__name__.rstrip("0123456789").removesuffix("Backward")
            if name == "AccumulateGrad":
                return None if node.variable is self._inputs else Refusal("another leaf feeds it")
            parents = [parent for parent, _ in node.next_functions if parent is not None]
            if name not in _ELEMENTWISE or len(parents) != 1:
                return Refusal(f"{name} is not elementwise or joins several paths")
            (node,) = parents
        return Refusal("it does not depend on the input")
