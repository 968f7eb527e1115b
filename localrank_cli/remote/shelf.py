"""Which weights from other machines are on the disk: those of at most two checkpoints."""

import threading
from typing import Protocol


class Item(Protocol):
    """A checkpoint that can be brought to the disk."""

    @property
    def stays(self) -> bool:
        """Whether it is to stay until the end."""
        ...

    def bring(self) -> None:
        """Bring the weights to the disk."""
        ...

    def remove(self) -> None:
        """Remove what has come of the weights, whole or not."""
        ...


class Shelf:
    """The checkpoints of this process whose weights are on the disk."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._there: list[Item] = []  # at most two, but those that stay
        self._current: Item | None = None  # asked for last, and in use

    def bring(self, item: Item, *, is_current: bool) -> None:
        """Bring a checkpoint, after removing those that are neither in use nor next."""
        with self._lock:
            if item not in self._there:
                for other in [one for one in self._there if one is not self._current]:
                    if not other.stays:
                        other.remove()
                        self._there.remove(other)
                # Counted before it is whole: what has come of it is removed too.
                self._there.append(item)
                try:
                    item.bring()
                except BaseException:
                    item.remove()
                    self._there.remove(item)
                    raise
            if is_current:
                self._current = item

    @property
    def is_busy(self) -> bool:
        """Whether a checkpoint is on its way."""
        return self._lock.locked()
