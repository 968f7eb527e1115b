"""Where the files of a checkpoint come from, if they are not on the disk yet."""

from pathlib import Path
from typing import Protocol


class Source(Protocol):
    """A checkpoint whose weights are brought to the disk when they are read.

    Until then an empty file is in the place of each, which nothing can take for weights.
    """

    @property
    def name(self) -> str:
        """The address of the one checkpoint, for messages."""
        ...

    @property
    def size(self) -> int:
        """The bytes of all files of the weights."""
        ...

    @property
    def content(self) -> tuple[str, ...]:
        """The hashes of the files of the weights; equal for equal weights."""
        ...

    def header(self) -> Path:
        """Return a file with the header of the weights, which may hold nothing else."""
        ...

    def fetch(self) -> None:
        """Bring the weights to the disk. Those of the checkpoint fetched before stay there."""
        ...

    def prefetch(self) -> None:
        """Begin to bring the weights to the disk, and return at once."""
        ...
