"""What the engine hands over: Jacobians of some points, in the form that suits them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from localrank_cli.jacobian.chain import Chain
from localrank_cli.layers.capture import Call
from localrank_cli.layers.survey import CallRecord


@dataclass(frozen=True)
class Portion:
    """Jacobians of one call at some consecutive points, as they stand."""

    record: CallRecord
    start: int  # index of the first point
    jacobians: Tensor  # (points, n_out, n_in or fewer, see `Batch.error`), on the model's device
    finite: Tensor  # (points,) bool: no non-finite pre-activation here or before
    error: float = 0.0  # how far a singular value may be off because columns were reduced


@dataclass(frozen=True)
class BlockPortion:
    """The Jacobian of one call at one point, too large to hold."""

    record: CallRecord
    start: int  # index of the point
    blocks: Callable[[], Iterator[Tensor]]  # each (some of the longer side, shorter side)
    finite: Tensor  # (1,) bool: as above
    error: float = 0.0  # as above


@dataclass(frozen=True)
class ChainPortion:
    """All chosen calls at some consecutive points, as products of weights and diagonals."""

    chain: Chain
    start: int  # index of the first point
    finite: dict[Call, Tensor]  # (points,) bool: as above


AnyPortion = Portion | BlockPortion | ChainPortion
