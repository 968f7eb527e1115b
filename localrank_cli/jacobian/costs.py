"""Which calls go by forward mode and which by reverse, and in what portions."""

from collections.abc import Sequence
from dataclasses import dataclass

from localrank_cli.layers.survey import CallRecord


@dataclass(frozen=True)
class Split:
    """The calls of each mode."""

    forward: tuple[CallRecord, ...]
    reverse: tuple[CallRecord, ...]


def split_by_depth(records: Sequence[CallRecord], n_in: int) -> Split:
    """Chooses the depth down to which forward mode serves all calls at the least cost.

    One direction of either mode costs about one forward pass to the call's depth d_l. Forward
    mode down to depth D costs n_in * d_D and gives every call on the way; each deeper call costs
    n_out * d_l by reverse mode.

    Args:
        records: The calls, in order of execution.
        n_in: Entries of the varied tensor.

    Returns:
        The split with the least total cost; on equal cost the one with more reverse mode.
    """
    ordered = sorted(records, key=lambda record: record.cost)
    reverse_costs = [record.numel * record.cost for record in ordered]
    best, best_cost = 0, sum(reverse_costs)
    for count in range(1, len(ordered) + 1):
        cost = n_in * ordered[count - 1].cost + sum(reverse_costs[count:])
        if cost < best_cost:
            best, best_cost = count, cost
    chosen = {record.call for record in ordered[:best]}
    return Split(
        tuple(record for record in records if record.call in chosen),
        tuple(record for record in records if record.call not in chosen),
    )


def directions_at_once(n_points: int, activations: int, itemsize: int, budget: int) -> int:
    """How many directions fit in a budget.

    Args:
        n_points: Points in the batch.
        activations: Entries of all intermediate results for one point. Not all live at once,
            which pays for values held beside tangents.
        itemsize: Bytes of an entry.
        budget: Bytes.

    Returns:
        At least 1.
    """
    return max(1, budget // max(1, n_points * activations * itemsize))


def layer_groups(
    records: Sequence[CallRecord], n_in: int, itemsize: int, budget: int
) -> list[tuple[CallRecord, ...]]:
    """Divides calls so that the Jacobians of one group at one point fit in a budget.

    Args:
        records: The calls.
        n_in: Entries of the varied tensor.
        itemsize: Bytes of an entry.
        budget: Bytes.

    Returns:
        Groups in the order given; a call too large for the budget stands alone.
    """
    groups: list[tuple[CallRecord, ...]] = []
    current: list[CallRecord] = []
    size = 0
    for record in records:
        needed = record.numel * n_in * itemsize
        if current and size + needed > budget:
            groups.append(tuple(current))
            current, size = [], 0
        current.append(record)
        size += needed
    if current:
        groups.append(tuple(current))
    return groups
