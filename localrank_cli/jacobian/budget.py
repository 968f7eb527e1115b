"""What routes cost, how a memory budget is divided among them, and what does not fit in it."""

from collections.abc import Sequence
from dataclasses import dataclass

from localrank_cli.errors import ModelError
from localrank_cli.layers.survey import CallRecord

# Larger portions of directions stop paying once a matrix product fills the machine, and smaller
# ones keep the working set near the caches.
_PORTION_BYTES = 256 * 2**20
_DOUBLE = 8


@dataclass(frozen=True)
class Budget:
    """Bytes for one purpose each; together they stay inside the total."""

    total: int

    @property
    def jacobians(self) -> int:
        """For the Jacobians that are held: a third, since an SVD copies what it works on twice."""
        return self.total // 3

    @property
    def directions(self) -> int:
        """For the intermediate results of the directions that are pushed through at once."""
        return max(1, min(self.total // 4, _PORTION_BYTES))

    def block(self, n_out: int, n_in: int) -> int:
        """For one block of a Jacobian that is not held, beside what its reduction needs.

        Args:
            n_out: Rows.
            n_in: Columns.

        Returns:
            Bytes: a sixth of what is left, for the block, the output of the directions before it is
            copied in, and the QR's own copy take it three times, and the directions the other half.
        """
        return max(min(n_out, n_in) * _DOUBLE, self._left(n_out, n_in) // 6)

    def block_directions(self, n_out: int, n_in: int) -> int:
        """For the directions that make a block.

        Args:
            n_out: Rows.
            n_in: Columns.

        Returns:
            Bytes.
        """
        return max(1, min(self._left(n_out, n_in) // 2, _PORTION_BYTES))

    def _left(self, n_out: int, n_in: int) -> int:
        return self.total - _reduction_bytes(n_out, n_in)


def check_fits(records: Sequence[CallRecord], n_in: int, memory: int) -> None:
    """Checks that at least the shorter side of every Jacobian fits, squared.

    Args:
        records: The chosen calls.
        n_in: Entries of the varied tensor.
        memory: The budget in bytes.

    Raises:
        ModelError: If one does not; with the numbers and the ways out.
    """
    for record in records:
        row = min(record.numel, n_in) * _DOUBLE
        needed = _reduction_bytes(record.numel, n_in) + row
        if needed > memory:
            raise ModelError(
                f"layer {record.call.label!r} has a Jacobian of {record.numel} x {n_in}; its"
                f" reduction needs {_readable(needed)}, and the budget is {_readable(memory)}.",
                "Give more with --memory, leave the layer out with --exclude, or vary a smaller"
                " tensor with --wrt.",
            )


def _reduction_bytes(n_out: int, n_in: int) -> int:
    # R with a block under it, the QR's copy, its R, and what the allocator does not give back,
    # which took 1.5 to 2 squares of 3072 x 3072 (372 MiB where 256 were given for three squares).
    short = min(n_out, n_in)
    return 5 * short * short * _DOUBLE


def _readable(size: int) -> str:
    return f"{size / 2**30:.3g} GiB" if size >= 2**30 else f"{size / 2**20:.3g} MiB"


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
