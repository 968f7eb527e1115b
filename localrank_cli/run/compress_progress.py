"""How much of a compression is done, by the time that each kind of work has taken so far."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

# calibrate: a batch, forwards and backwards; factor: a unit of `factor_work`; norms: a batch by
# which BatchNorm is estimated; measure: a batch through a network and the original.
Work = Literal["calibrate", "factor", "norms", "measure"]
# Receives the share that is done, and what is done now.
Watcher = Callable[[float, str], None]

# Seconds for a unit of work, before any was done: batches relative to one that is measured.
_BATCHES: dict[Work, float] = {"calibrate": 2.0, "norms": 0.5}
_FACTOR = 5e-10


@dataclass
class Progress:
    """Counts what is done, and estimates how long the rest takes.

    A share of the work that is counted in batches would say nothing: factoring the layers may take
    most of the time, or none that matters. No number depends on the times.
    """

    watcher: Watcher
    clock: Callable[[], float] = time.monotonic
    _left: dict[Work, float] = field(default_factory=dict)
    _spent: dict[Work, tuple[float, float]] = field(default_factory=dict)  # units, seconds
    _began: float = field(init=False)
    _mark: float = field(init=False)

    def __post_init__(self) -> None:
        self._began = self._mark = self.clock()

    def expect(self, left: dict[Work, float]) -> None:
        """Set the units of each kind of work that are left."""
        self._left = dict(left)
        self._mark = self.clock()  # what came between was none of these

    def done(self, work: Work, text: str, units: float = 1.0) -> None:
        """Count what was done since the last call."""
        now = self.clock()
        before, seconds = self._spent.get(work, (0.0, 0.0))
        self._spent[work] = before + units, seconds + now - self._mark
        self._mark = now
        if work in self._left:
            # A bisection may take more budgets than are expected.
            self._left[work] = max(self._left[work] - units, 0.0)
        self.watcher(self._share(now), text)

    def _share(self, now: float) -> float:
        """Return the time that was spent as a share of the whole; 0 while that is unknown."""
        if not self._left:
            return 0.0
        left = sum(units * self._each(work) for work, units in self._left.items())
        spent = now - self._began
        return spent / (spent + left) if spent > 0 else 0.0

    def _each(self, work: Work) -> float:
        """Return the seconds that a unit takes."""
        units, seconds = self._spent.get(work, (0.0, 0.0))
        if units:
            return seconds / units
        return _FACTOR if work == "factor" else _BATCHES.get(work, 1.0) * self._measured

    @property
    def _measured(self) -> float:
        """The seconds that a measured batch takes; the original is measured before the rest."""
        units, seconds = self._spent.get("measure", (0.0, 0.0))
        return seconds / units if units else 0.0
