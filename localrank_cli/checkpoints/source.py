"""Where the files of a checkpoint come from, if they are not on the disk yet."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from localrank_cli.errors import UnreadableError


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
    def versions(self) -> tuple[str, ...]:
        """The version of each file of the weights: an ETag, say."""
        ...

    @property
    def facts(self) -> Mapping[str, str]:
        """Where the checkpoint is from, for the manifest."""
        ...

    def has_content_of(self, other: "Source") -> bool:
        """Return whether it is known, without the weights, that another has the same."""
        ...

    def explained(self, error: UnreadableError) -> UnreadableError:
        """Return an error with the address in place of the path."""
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
