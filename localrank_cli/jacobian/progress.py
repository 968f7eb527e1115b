"""The progress of the Jacobians of a checkpoint, for whoever shows it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from localrank_cli.jacobian.forecast import Work
from localrank_cli.layers.capture import Call


@dataclass(frozen=True)
class Step:
    """A moment within a checkpoint."""

    done: float  # share of the work, 0 to 1
    layer: str
    points: tuple[int, int]  # first and last, counted from 1
    n_points: int


Observer = Callable[[Step], None]
Source = Call | None  # None: the network's input


@dataclass(frozen=True)
class Span:
    """The points, and the positions of each, that some Jacobians belong to."""

    start: int  # index of the first point
    n_points: int
    n_parts: int = 1


@dataclass
class Progress:
    """A counter of operations, by the forecast, which tells an observer after each chunk.

    What is done never decreases. Where a network refuses a mode, other passes take the same share.
    """

    observer: Observer | None = None
    span: tuple[float, float] = (0.0, 1.0)  # the share of the work that is counted
    _works: Mapping[tuple[Source, Call], Work] = field(default_factory=dict)
    _n_points: int = 0
    _total: float = 1.0
    _done: float = 0.0
    _told: float = 0.0
    _now: "_Share | None" = None

    def start(self, works: Mapping[tuple[Source, Call], Work], n_points: int) -> None:
        """Begin the Jacobians of a checkpoint."""
        self._works, self._n_points = works, n_points
        self._total = n_points * sum(one.operations + one.reduction for one in works.values())
        self._done, self._told, self._now = 0.0, 0.0, None

    def begin(self, source: Source, calls: Sequence[Call], span: Span, passes: int) -> None:
        """Begin a number of passes that give some calls with respect to a source."""
        works = [self._works[source, call] for call in calls]
        operations = sum(one.operations * _weight(one, span) for one in works)
        self._now = _Share(calls[-1].label, span, operations / max(1, passes), operations)

    def advance(self, passes: int) -> None:
        """Count some of these passes."""
        if self._now is not None:
            self._now.done = min(self._now.done + passes * self._now.each, self._now.operations)
            self._tell(self._now)

    def finish(self, source: Source, call: Call, span: Span) -> None:
        """Count a call, its singular values too, whatever was counted of it before."""
        work = self._works[source, call]
        weight = _weight(work, span)
        self._done += weight * (work.operations + work.reduction)
        now = self._now or _Share(call.label, span, 0.0, 0.0)
        now.operations = max(0.0, now.operations - weight * work.operations)
        now.done = min(now.done, now.operations)
        self._tell(now)

    def _tell(self, now: "_Share") -> None:
        if self.observer is None:
            return
        share = min(1.0, (self._done + now.done) / max(self._total, 1.0))
        self._told = max(self._told, share)
        low, high = self.span
        points = now.span.start + 1, now.span.start + now.span.n_points
        self.observer(Step(low + (high - low) * self._told, now.layer, points, self._n_points))


@dataclass
class _Share:
    layer: str
    span: Span
    each: float  # operations of one pass
    operations: float
    done: float = 0.0


def _weight(work: Work, span: Span) -> float:
    """Return how many points' worth of a call a span is."""
    return span.n_points * min(1.0, span.n_parts / work.n_matrices)
