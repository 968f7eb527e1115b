"""Find the chain of a network in the graphs that autograd recorded of it.

Where every tapped layer is an exact nn.Linear that sees one vector per point, and everything
between such layers and LayerNorms or RMSNorms is elementwise (activations, skip connections,
gates), the Jacobian consists of products and sums of the weights, of diagonal matrices D of the
slopes, and of the normalizations' derivatives. Autograd computes D from the operations between two
layers, whatever they are.

Each layer's output is cut off from what comes before it: the graph of a layer's input then ends at
the outputs that it is made of. The graph that autograd recorded in the very pass that is analyzed
is the structure of the Jacobian: mixing of entries shows as an operation that is not elementwise. A
symbolic trace of the code would show less, and fails on control flow.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from localrank_cli.errors import cause
from localrank_cli.jacobian.batch import Batch
from localrank_cli.jacobian.chain import Chain
from localrank_cli.jacobian.guards import (
    close,
    is_finite_alone,
    is_the_same_alone,
    random_cotangent,
    smallest,
)
from localrank_cli.jacobian.links import Link, Norm, Term, pulled
from localrank_cli.jacobian.routes import contraction
from localrank_cli.layers.capture import Call

# Elementwise operations by the name of their backward node: a quick filter, and no proof. The last
# two are operations in place on a view, such as the output of a batch norm; what they do is hidden.
_ELEMENTWISE = frozenset(
    """
    Abs Add Alias Asinh Atan Celu Clamp ClampMax ClampMin Clone Cos Cosh Div Elu Erf Erfc Exp Expm1
    Gelu Hardshrink Hardsigmoid Hardswish Hardtanh LeakyRelu Log1P LogSigmoid Maximum Minimum Mish
    Mul NativeBatchNorm Neg Pow PreluKernel Reciprocal Relu Rsub Sigmoid Sign Silu Sin Sinh Softplus
    Softshrink Sqrt Square Sub Tan Tanh Threshold Where
    View UnsafeView ReshapeAlias Unsqueeze Squeeze AsStrided CopySlices
    """.split()  # noqa: SIM905  # one word a line would hide the list
)
# Entries outside of this range have squares that a double cannot hold.
_SMALLEST, _LARGEST = 1e-100, 1e100
_SEED = 0  # of random cotangents


@dataclass(frozen=True)
class Refusal:
    """The reason why a network is not a chain."""

    reason: str


def find_chain(batch: Batch, values: Mapping[Call, Tensor], tolerance: float) -> Chain | Refusal:
    """Return the chain in autograd's graphs of one pass over the batch, or why there is none.

    The points of a chain are separate, see `_gives_rows`.

    `values` are the outputs of the wanted calls, (points, n_out), without a graph, and `tolerance`
    is the relative difference below which two computations of a value agree.
    """
    if batch.wrt is not None:
        return Refusal("the varied tensor is not the input")
    inputs = batch.inputs.detach().clone().requires_grad_(True)
    try:
        with torch.enable_grad():
            # A clone: a model may change its input in place.
            return _trace(batch, inputs, values, tolerance)
    except Exception as error:  # the user's model may raise anything; the general routes report it
        return Refusal(f"{cause(error)}")


def _trace(
    batch: Batch, inputs: Tensor, values: Mapping[Call, Tensor], tolerance: float
) -> Chain | Refusal:
    calls = list(values)
    seen = _run(batch.model, inputs.clone())
    missing = [call for call in calls if call not in {layer.call for layer in seen}]
    if missing:
        return Refusal(f"{missing[0].label} is not a plain nn.Linear")
    last = max(index for index, layer in enumerate(seen) if layer.call in set(calls))
    links = _Walk(seen[: last + 1], inputs, tolerance, batch).links(calls)
    if isinstance(links, Refusal):
        return links
    # Of plain chains too: beside a large entry, `_are_diagonal` sees no mixing of small ones, which
    # later layers may enlarge.
    if not _gives_rows(batch, links, values, tolerance):
        return Refusal("products of its layers do not give its derivative")
    if any(_is_huge(link) for link in links):
        return Refusal("its weights are so large that products or their QR may overflow")
    return Chain(links, calls, batch.picked)


def _is_huge(link: Link) -> bool:
    """Return whether a link enlarges so much that later ones may have to make up for it.

    Infinite slopes are their point's own.
    """
    layer = link.layer if isinstance(link.layer, Tensor) else link.layer.scale
    sizes = [float(torch.linalg.vector_norm(layer, math.inf))] if layer.numel() else []
    sizes += [one for term in link.terms for one in term.diagonals.largest]
    return any(_LARGEST < size < math.inf for size in sizes)


@dataclass(frozen=True)
class _LayerCall:
    call: Call
    module: Any
    inputs: Tensor
    output: Tensor
    leaf: Tensor  # the output, without its history: where graphs of later inputs end


def _run(model: nn.Module, inputs: Tensor) -> list[_LayerCall]:
    seen: list[_LayerCall] = []
    counts: dict[str, int] = {}

    def hook(name: str) -> Any:
        """Return the hook of a layer."""

        def on_output(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            """Keep a call of the layer, and pass a copy of its output on."""
            counts[name] = counts.get(name, 0) + 1
            if not _is_fixed(module):
                return output
            if output.requires_grad:  # else it does not depend on the input, or nothing may
                leaf = output.detach().clone().requires_grad_(True)
                call = Call(name, counts[name])
                # A clone: what later changes the input in place is no part of this layer.
                seen.append(_LayerCall(call, module, args[0].clone(), output.detach(), leaf))
                output = leaf
            return output.clone()  # later operations may work in place

        return on_output

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if _is_plain(module)
    ]
    try:
        model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _is_plain(module: nn.Module) -> bool:
    """Return whether a module is exactly one of torch's layers that links are, without hooks."""
    if type(module) not in {nn.Linear, *_NORMS}:
        return False
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _is_fixed(module: Any) -> bool:
    """Return whether weight and bias are no results of this pass, as in a hypernetwork."""
    weights = module.weight, getattr(module, "bias", None)
    return all(one is None or one.is_leaf for one in weights)


class _Walk:
    """The walk through the graph from each layer's input back to the layers that feed it."""

    def __init__(
        self, seen: Sequence[_LayerCall], inputs: Tensor, tolerance: float, batch: Batch
    ) -> None:
        self._seen = seen
        self._inputs = inputs
        self._tolerance = tolerance
        self._metric = batch.metric
        self._leaves: dict[int, int | None] = {id(inputs): None}
        self._leaves |= {id(layer.leaf): index for index, layer in enumerate(seen)}

    def links(self, calls: Sequence[Call]) -> list[Link] | Refusal:
        """Return the links that lead to some layers, parents before children."""
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
            todo += [term.parent for term in link.terms]
        order = sorted(found)
        position = {index: place for place, index in enumerate(order)}
        return [
            replace(
                found[index],
                terms=tuple(replace(t, parent=position[t.parent]) for t in found[index].terms),
            )
            for index in order
        ]

    def _link(self, index: int) -> Link | Refusal:
        layer = self._seen[index]
        label = layer.call.label
        points = self._inputs.shape[0]
        if layer.output.is_complex():
            return Refusal(f"{label} is complex")
        if layer.inputs.ndim != 2 or layer.inputs.shape[0] != points:
            return Refusal(f"{label} sees more than one vector per point")
        with torch.no_grad():
            expected, norm = _computed(layer)
        scale = layer.output.abs().max()
        if bool(((expected - layer.output).abs() > self._tolerance * scale).any()):
            return Refusal(f"{label} does not give W x + b")
        feeders = self._walk(layer.inputs)
        if isinstance(feeders, Refusal):
            return Refusal(f"{label}: {feeders.reason}")
        return self._with_slopes(layer, feeders, norm)

    def _with_slopes(
        self, layer: _LayerCall, feeders: Sequence[int | None], norm: Norm | None
    ) -> Link | Refusal:
        sources = [self._inputs if one is None else self._seen[one].leaf for one in feeders]
        is_first = None in feeders
        reason = ""
        if any(source.is_complex() for source in sources):
            reason = ": what feeds it is complex"
        elif any(source.numel() != layer.inputs.numel() for source in sources):
            reason = ": its input has another size than what feeds it"
        elif is_first and (len(feeders) > 1 or norm is not None):
            reason = " does not see the input alone, as a Linear"
        if reason:
            return Refusal(f"{layer.call.label}{reason}")
        # Of an elementwise map, the gradient of the sum is the diagonal of its Jacobian.
        grads = torch.autograd.grad(layer.inputs.sum(), sources, retain_graph=True)
        slopes = [grad.reshape(layer.inputs.shape).detach() for grad in grads]
        if not self._are_diagonal(layer.inputs, sources, slopes):
            return Refusal(f"{layer.call.label}: what feeds it mixes entries")
        if is_first:
            return self._first(layer, slopes[0])
        pairs = zip(feeders, slopes, strict=True)
        terms = tuple(Term(one, slope) for one, slope in pairs if one is not None)
        return Link(layer.call, layer.module.weight.detach() if norm is None else norm, terms)

    def _first(self, layer: _LayerCall, slope: Tensor) -> Link | Refusal:
        """Return the link of a layer that sees the input."""
        if not torch.equal(slope, slope[:1].expand_as(slope)):
            name = layer.call.label
            return Refusal(f"{name}: an operation before it acts differently on each point")
        weight, error = layer.module.weight.detach() * slope[0], 0.0
        if self._metric is not None:
            weight, error = self._metric.weigh(weight)
        return Link(layer.call, weight, (), error)

    def _are_diagonal(
        self, output: Tensor, sources: Sequence[Tensor], slopes: Sequence[Tensor]
    ) -> bool:
        """Check by a random cotangent; names of operations are only a filter."""
        # Batch and instance normalization by the data's own statistics have the name of the
        # elementwise one, for example, and a user's function may have any name.
        cotangent = _random(output.shape[1]).to(slopes[0])
        total = contraction([output], [cotangent.expand(output.shape)])
        rows = torch.autograd.grad(total, sources, retain_graph=True)
        for row, slope in zip(rows, slopes, strict=True):
            pulled_back, expected = row.reshape(slope.shape), slope * cotangent
            known = torch.isfinite(pulled_back) & torch.isfinite(expected)
            scale = torch.where(known, pulled_back.abs() + expected.abs(), 0)
            off = torch.where(known, (pulled_back - expected).abs(), 0)
            if bool((off > self._tolerance * scale.amax(dim=1, keepdim=True)).any()):
                return False
        return True

    def _walk(self, tensor: Tensor) -> list[int | None] | Refusal:
        """Return the indices of the layers that feed a tensor, in order; None for the input."""
        found: set[int | None] = set()
        visited: set[Any] = set()
        todo: list[Any] = [tensor.grad_fn]
        while todo:
            node = todo.pop()
            if node is None or node in visited:
                continue
            visited.add(node)
            name = type(node).__name__.rstrip("0123456789").removesuffix("Backward")
            if name == "AccumulateGrad":
                if id(node.variable) not in self._leaves:
                    return Refusal("another leaf feeds it")
                found.add(self._leaves[id(node.variable)])
            elif name in _ELEMENTWISE:
                todo += [parent for parent, _ in node.next_functions]
            else:
                return Refusal(f"{name} is not elementwise")
        if not found:
            return Refusal("it does not depend on the input")
        return sorted(found, key=lambda one: -1 if one is None else one)


def _computed(layer: _LayerCall) -> tuple[Tensor, Norm | None]:
    """Return what a layer gives for its input, and its derivative where it is a normalization."""
    inputs, module = layer.inputs.detach(), layer.module
    make = _NORMS.get(type(module))
    if make is None:
        return functional.linear(inputs, module.weight, module.bias), None
    norm = make(inputs, module)
    output = norm.unit if module.weight is None else norm.unit * module.weight
    bias = getattr(module, "bias", None)
    return (output if bias is None else output + bias), norm


def _layer_norm(inputs: Tensor, module: Any) -> Norm:
    return _norm(inputs - inputs.mean(dim=1, keepdim=True), module, is_centered=True)


def _rms_norm(inputs: Tensor, module: Any) -> Norm:
    return _norm(inputs, module, is_centered=False)


def _norm(inputs: Tensor, module: Any, *, is_centered: bool) -> Norm:
    eps = torch.finfo(inputs.dtype).eps if module.eps is None else module.eps
    inverse = torch.rsqrt(inputs.square().mean(dim=1, keepdim=True) + eps)
    scale = inverse.expand_as(inputs) if module.weight is None else inverse * module.weight.detach()
    return Norm(scale, inputs * inverse, is_centered)


# Of the last axis alone, since the input has no other: see `_Walk._link`.
_NORMS: Mapping[type[nn.Module], Callable[[Tensor, Any], Norm]] = {
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
}


def _random(width: int) -> Tensor:
    """Return the same standard normal numbers for every point, (1, width)."""
    generator = torch.Generator("cpu").manual_seed(_SEED)
    return torch.randn(1, width, generator=generator, dtype=torch.float64, device="cpu")


def _gives_rows(
    batch: Batch, links: Sequence[Link], values: Mapping[Call, Tensor], tolerance: float
) -> bool:
    """Check that u^T J is autograd's at every point, in a pass that nothing is cut off from.

    The random u of each call is scaled so that the largest entry of u^T J is 1: a call cannot hide
    behind a larger one. It is another one at each point: where a pass mixes points, what autograd
    gives for one of them holds the u of others. So a chain that is found has points that are
    separate, in the sense of `guards.points_are_separate`; that its slopes are those of points
    alone is compared, too.
    """
    by_call = {link.call: link for link in links}
    groups: dict[tuple[bool, ...], dict[Call, tuple[Tensor, Tensor]]] = {}
    for index, call in enumerate(values):
        # Not the same for two calls of one size, which may be each other's negative.
        draw = random_cotangent(by_call[call].n_out, batch, _SEED + index)
        # Not the norm, whose squares may be zero or infinite.
        size = pulled(links, {call: draw}).abs().amax(dim=1, keepdim=True)
        if bool(((size > 0) & ((size < _SMALLEST) | (size > _LARGEST))).any()):
            return False  # squares of its entries leave the range, and this check means nothing
        # Zero times what is not finite is NaN, for all calls that are pulled back together.
        finite = torch.isfinite(size)
        groups.setdefault(tuple(finite.squeeze(1).tolist()), {})[call] = draw, size
    return all(_gives_rows_of(batch, links, group, values, tolerance) for group in groups.values())


def _gives_rows_of(
    batch: Batch,
    links: Sequence[Link],
    draws: Mapping[Call, tuple[Tensor, Tensor]],
    values: Mapping[Call, Tensor],
    tolerance: float,
) -> bool:
    """Check calls whose derivatives are finite at the same points.

    `draws` are a cotangent of each, (points, n_out), and the size of what it gives, (points, 1).
    """
    calls = list(draws)
    cotangents = {}
    for call, (draw, size) in draws.items():
        scaled = torch.where(size > 0, draw / size, draw)  # zero has to be zero
        cotangents[call] = torch.where(torch.isfinite(size), scaled, 0)
    expected = pulled(links, cotangents)
    is_finite = torch.isfinite(next(iter(draws.values()))[1])
    if not bool((torch.isfinite(expected) | ~is_finite).all()):
        return False  # scaling leaves the range of a lower precision
    whole = replace(batch, picked={})
    varied = batch.varied.detach().requires_grad_(True)
    outputs = whole.outputs(varied, calls)
    for call, output in zip(calls, outputs, strict=True):
        if not close(output.detach(), values[call], tolerance):
            return False  # recording gradients changes it
    drawn = [cotangents[call] for call in calls]
    (row,) = torch.autograd.grad(contraction(outputs, drawn), varied)
    # NaN where a number is expected comes from a point that is not finite.
    off = torch.where(torch.isfinite(expected), (row - expected).abs(), 0)
    if not bool((off <= tolerance * len(calls)).all()):
        return False
    if batch.n_points == 1:
        return True
    good = torch.stack([torch.isfinite(output).all(dim=1) for output in outputs]).all(dim=0)
    strange = (good & ~torch.isfinite(expected).all(dim=1)).nonzero().squeeze(1).tolist()
    if any(is_finite_alone(whole, calls, drawn, point) for point in strange):
        return False
    points = _ends(torch.cat([size for _, size in draws.values()], dim=1))
    points |= {smallest(whole, good.nonzero().squeeze(1).tolist() or [0])}
    return all(
        is_the_same_alone(whole, calls, drawn, row, point, tolerance) for point in sorted(points)
    )


def _ends(sizes: Tensor) -> set[int]:
    """Return the first and the last point at which each call's derivative is not zero.

    `sizes` are those of the derivatives, (points, calls).
    """
    usable = ((sizes > 0) & torch.isfinite(sizes)).to(torch.uint8)
    first, last = usable.argmax(dim=0), len(sizes) - 1 - usable.flip(0).argmax(dim=0)
    return {*first.tolist(), *last.tolist()}
