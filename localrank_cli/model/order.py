"""The orders in which the Linear layers of a state dict can form a chain."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise

Sizes = Mapping[str, tuple[int, int]]  # layer -> (n_out, n_in)

# A search that takes longer has so many orders to choose from that none is certain.
_MAX_TRIES = 10_000


def two_orders(weights: Sizes) -> tuple[list[tuple[str, ...]], bool]:
    """Return two orders in which the shapes fit, or all where there are fewer.

    Names of one pattern stay in the order of their numbers. The second value is whether it is
    certain that there are no more orders.
    """
    found: list[tuple[str, ...]] = []
    if not _may_form_chain(weights):
        return found, True
    for order in _orders(weights):
        if order is None:
            return found, False
        found.append(order)
        if len(found) == 2:
            return found, False
    return found, True


def _may_form_chain(weights: Sizes) -> bool:
    # A chain uses each layer once, as an edge from n_in to n_out: an Euler path over the widths.
    # Checked first, because the search would try every order of layers that form no chain.
    surplus: Counter[int] = Counter()
    for n_out, n_in in weights.values():
        surplus[n_in] += 1
        surplus[n_out] -= 1
    unequal = sorted(value for value in surplus.values() if value)
    return unequal in ([], [-1, 1])


def _orders(weights: Sizes) -> Iterator[tuple[str, ...] | None]:
    # Depth-first, without recursion: a network may have more layers than Python has frames.
    # Yields None where it stops before it has tried every order.
    earlier = _earlier(weights)
    chain: list[str] = []
    used: set[str] = set()
    width: list[int | None] = [None]
    choices = [iter(weights)]
    tries = 0
    while choices:
        name = next(choices[-1], None)
        if name is None:
            choices.pop()
            width.pop()
            if chain:
                used.discard(chain.pop())
            continue
        n_out, n_in = weights[name]
        if name in used or width[-1] not in (None, n_in) or not earlier[name] <= used:
            continue
        tries += 1
        if tries > _MAX_TRIES:
            yield None
            return
        if len(chain) + 1 == len(weights):
            yield (*chain, name)
            continue
        chain.append(name)
        used.add(name)
        width.append(n_out)
        choices.append(iter(weights))


def _earlier(weights: Sizes) -> dict[str, set[str]]:
    """Return for each name the one of the same pattern with the next lower numbers."""
    groups: dict[str, list[tuple[list[int], str]]] = {}
    for name in weights:
        numbers = [int(digits) for digits in re.findall(r"\d+", name)]
        groups.setdefault(re.sub(r"\d+", "#", name), []).append((numbers, name))
    before: dict[str, set[str]] = {name: set() for name in weights}
    for group in groups.values():
        ordered = sorted(group)
        for (lower, first), (higher, second) in pairwise(ordered):
            # Numbers that differ only in leading zeros (1 and 01) say nothing about the order.
            before[second] = {first} if lower < higher else before[first]
    return before
