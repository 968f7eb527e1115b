"""The cost of each mode, and the division of a memory budget among Jacobians and directions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from localrank_cli.errors import BudgetError, readable
from localrank_cli.layers.capture import Call
from localrank_cli.layers.positions import Parts
from localrank_cli.layers.survey import CallRecord

# More directions at once bring no gain when a matrix product uses the whole machine, and fewer keep
# the working set close to the caches.
_MAX_DIRECTION_BYTES = 256 * 2**20
_DOUBLE = 8  # bytes


@dataclass(frozen=True)
class Budget:
    """A memory budget in bytes, divided by purpose."""

    total: int

    @property
    def jacobians(self) -> int:
        """Bytes for the Jacobians that are held: a third, since an SVD copies its matrix twice."""
        return self.total // 3

    @property
    def directions(self) -> int:
        """Bytes for the intermediate results of the directions that are pushed through at once."""
        return max(1, min(self.total // 4, _MAX_DIRECTION_BYTES))

    @property
    def replays(self) -> int:
        """Bytes for what comes before several sources: within what the others leave."""
        return self.total // 8

    def part_directions(self, one: int) -> int:
        """Return the directions of `one` bytes each that are pushed through at once, at least 1.

        At least 32 where there is room: fewer leave a processor idle in products of matrices.
        """
        return max(1, min(self.total // 4, max(_MAX_DIRECTION_BYTES, 32 * one)) // max(1, one))

    def block(self, n_out: int, n_in: int) -> int:
        """Return the bytes for one block of a Jacobian that is not held.

        A sixth of what its reduction leaves: the block, the output of the directions before it is
        copied in, and the QR's own copy take it three times, and the directions the other half.
        """
        return max(min(n_out, n_in) * _DOUBLE, self._left(n_out, n_in) // 6)

    def block_directions(self, n_out: int, n_in: int) -> int:
        """Return the bytes for the directions that compute a block."""
        return max(1, min(self._left(n_out, n_in) // 2, _MAX_DIRECTION_BYTES))

    def squares(self, size: int, held: int) -> int:
        """Return how many matrices of size x size have their eigenvalues computed side by side.

        Half of what the Jacobians leave, which hold `held` bytes: each takes its Gram matrix,
        LAPACK's copy of it and what follows from them.
        """
        return max(1, (self.total - held) // 2 // (4 * size * size * _DOUBLE))

    def _left(self, n_out: int, n_in: int) -> int:
        return self.total - _reduction_bytes(n_out, n_in)


def check_fits(records: Sequence[CallRecord], n_in: int, memory: int) -> None:
    """Check that at least the square of every Jacobian's shorter side fits in `memory` bytes.

    Raises:
        BudgetError: If one does not; with the sizes and what to do.
    """
    for record in records:
        needed = needed_bytes(record.numel, n_in)
        if needed > memory:
            raise BudgetError(
                f"layer {record.call.label!r} has a Jacobian of {record.numel} x {n_in}; its"
                f" reduction needs {readable(needed)}, but the budget is {readable(memory)}.",
                "Give more with --memory, leave the layer out with --exclude, or vary a smaller"
                " tensor with --wrt.",
            )


def needed_bytes(n_out: int, n_in: int) -> int:
    """Return the least budget in which the singular values of a Jacobian can be computed."""
    return _reduction_bytes(n_out, n_in) + min(n_out, n_in) * _DOUBLE


def _reduction_bytes(n_out: int, n_in: int) -> int:
    # R with a block under it, the QR's copy, its R, and memory that the allocator does not return,
    # which took 1.5 to 2 squares of 3072 x 3072 (372 MiB where 256 were given for three squares).
    short = min(n_out, n_in)
    return 5 * short * short * _DOUBLE


@dataclass(frozen=True)
class Split:
    """The calls of each mode."""

    forward: tuple[CallRecord, ...]
    reverse: tuple[CallRecord, ...]


def split_by_depth(records: Sequence[CallRecord], n_in: int) -> Split:
    """Return the division of calls between forward and reverse mode with the least total cost.

    One direction of either mode costs about one forward pass to the call's depth d_l. Forward mode
    down to depth D costs n_in * d_D and gives every call on the way; each deeper call costs n_out *
    d_l by reverse mode. On equal cost more calls take reverse mode.
    """
    return split_by_passes(records, n_in, {record.call: record.numel for record in records})


def split_by_passes(
    records: Sequence[CallRecord],
    forward: int,
    reverse: Mapping[Call, int],
    source_cost: float = 0.0,
) -> Split:
    """Return the division of calls between the modes, as `split_by_depth` does.

    `forward` directions give every call on their way, and `reverse` rows one call each; what comes
    before `source_cost` is not run again.
    """
    ordered = sorted(records, key=lambda record: record.cost)
    depths = [max(record.cost - source_cost, 1.0) for record in ordered]
    rows = [reverse[record.call] * depth for record, depth in zip(ordered, depths, strict=True)]
    costs = [sum(rows)] + [
        forward * depths[count - 1] + sum(rows[count:]) for count in range(1, len(ordered) + 1)
    ]
    best = costs.index(min(costs))
    chosen = {record.call for record in ordered[:best]}
    return Split(
        tuple(record for record in records if record.call in chosen),
        tuple(record for record in records if record.call not in chosen),
    )


def directions_at_once(n_points: int, activations: int, itemsize: int, budget: int) -> int:
    """Return how many directions fit in a budget of bytes, at least 1.

    `activations` are the entries of all intermediate results for one point. Not all live at once,
    which pays for values held beside tangents.
    """
    return max(1, budget // max(1, n_points * activations * itemsize))


def layer_groups(
    records: Sequence[CallRecord], n_in: int, itemsize: int, budget: int
) -> list[tuple[CallRecord, ...]]:
    """Return groups of calls whose Jacobians at one point fit in a budget of bytes, in order.

    A call too large for the budget is alone in its group.
    """
    return groups_of([(record, record.numel * n_in * itemsize) for record in records], budget)


def groups_of(sizes: Sequence[tuple[CallRecord, int]], budget: int) -> list[tuple[CallRecord, ...]]:
    """Return groups of calls, each with its bytes, that fit in a budget together, in order."""
    groups: list[tuple[CallRecord, ...]] = []
    current: list[CallRecord] = []
    size = 0
    for record, needed in sizes:
        if current and size + needed > budget:
            groups.append(tuple(current))
            current, size = [], 0
        current.append(record)
        size += needed
    if current:
        groups.append(tuple(current))
    return groups


def part_bytes(parts: Parts, n_in: int) -> int:
    """Return the bytes of the Jacobians of all parts of one call at one point."""
    n_columns = n_in if parts.columns is None else parts.columns.shape[2]
    return parts.n_parts * parts.n_rows * n_columns * _DOUBLE


def check_parts_fit(
    records: Sequence[CallRecord], parts: Mapping[Call, Parts], n_in: int, memory: int
) -> None:
    """Check that the Jacobian of one position fits, as `check_fits` does.

    Raises:
        BudgetError: If one does not.
    """
    for record in records:
        one = parts[record.call]
        n_columns = n_in if one.columns is None else one.columns.shape[2]
        check_fits([replace(record, shape=(one.n_rows,))], n_columns, memory)


class Alive(TorchDispatchMode):
    """Counter of the bytes of all tensors that operations made and that still exist."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._sizes: dict[int, tuple[Any, int]] = {}  # by storage

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # As in `survey`: the default imports torch._dynamo, which takes as long as torch.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                reference: Any = StorageWeakRef(storage)
                self._sizes.setdefault(reference.cdata, (reference, storage.nbytes()))
        for key in [key for key, (one, _) in self._sizes.items() if one.expired()]:
            del self._sizes[key]
        self.peak = max(self.peak, sum(size for _, size in self._sizes.values()))
        return out
