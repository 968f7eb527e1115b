"""A bound on the rank of a Jacobian by the narrowest place that everything passes through.

Autograd's graph of one pass computes J^T u from u. Where all of its paths lead through one node,
J^T u is a linear function of the gradient at that node, so that the rank of J is at most the number
of that gradient's entries. Entries that are zero for a normal u are zero for every u, except with
probability 0, and do not count: units whose activation is flat, and inputs that nothing depends on.
"""

from typing import Any

import torch
from torch import Tensor

# Entries beside ones of at least this size are zero only where they are negligible: no underflow.
_SAFE_SIZE = 1e-150


def rank_bound(output: Tensor, varied: Tensor, cotangent: Tensor) -> int:
    """Return what the rank of d output / d varied cannot exceed, from one backward pass.

    Args:
        output: A tensor with a graph, which is kept.
        varied: The leaf with respect to which it is differentiated.
        cotangent: Standard normal numbers in the shape of the output.
    """
    counts = [output.numel(), varied.numel()]
    handles = [
        node.register_prehook(lambda gradients: counts.append(_count(gradients)))
        for node in _narrows(output, varied)
    ]
    try:
        (found,) = torch.autograd.grad(
            output, varied, cotangent, retain_graph=True, allow_unused=True
        )
    finally:
        for handle in handles:
            handle.remove()
    return min(*counts, _count((found,)))


def _count(gradients: tuple[Tensor | None, ...]) -> int:
    """Return how many numbers a node receives that are not always zero."""
    total = 0
    for one in gradients:
        if one is None:
            continue
        parts = torch.view_as_real(one.resolve_conj()) if one.is_complex() else one
        largest = float(parts.abs().max()) if parts.numel() else 0.0
        # NaN and numbers that may have lost neighbours to underflow: all of them.
        is_clear = largest == 0 or largest >= _SAFE_SIZE
        total += int(torch.count_nonzero(parts)) if is_clear else parts.numel()
    return total


def _narrows(output: Tensor, varied: Tensor) -> list[Any]:
    """Return the nodes through which every path from the output to the varied tensor leads."""
    parents: dict[Any, list[Any]] = {}
    reaches: dict[Any, bool] = {}
    ordered: list[Any] = []  # each node after those behind it
    todo: list[tuple[Any, bool]] = [(output.grad_fn, False)]
    while todo:
        node, is_left = todo.pop()
        if is_left:
            if node in reaches:
                continue
            reaches[node] = getattr(node, "variable", None) is varied or any(
                reaches[one] for one in parents[node]
            )
            ordered.append(node)
        elif node not in parents:
            parents[node] = [one for one, _ in node.next_functions if one is not None]
            todo.append((node, True))
            todo += [(one, False) for one in parents[node]]
    found, ahead = [], set[Any]()  # where the paths from what was passed lead
    for node in reversed(ordered):
        if not reaches[node]:
            continue
        ahead.discard(node)
        if not ahead and parents[node]:  # the varied tensor itself is counted anyway
            found.append(node)
        ahead.update(one for one in parents[node] if reaches[one])
    return found
