"""What a store of files on another machine offers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class StoredFile:
    """A file of a revision."""

    name: str  # relative to the revision
    size: int  # bytes
    content: str  # a hash of its content


class Store(Protocol):
    """The revisions of one repository, each of which never changes."""

    def revisions(self, patterns: tuple[str, ...]) -> Mapping[str, list[str]]:
        """Return the revisions that a pattern matches: commit -> its names.

        Without patterns it is the default one.

        Raises:
            UnreadableError: If the store cannot be reached or read.
        """
        ...

    def files(self, commit: str) -> list[StoredFile]:
        """Return the files of a revision.

        Raises:
            UnreadableError: If they cannot be listed.
        """
        ...

    def start(self, commit: str, name: str, size: int) -> bytes:
        """Return the first `size` bytes of a file, or all of a shorter one.

        Raises:
            UnreadableError: If it cannot be read.
        """
        ...

    def download(self, commit: str, name: str, incoming: Path) -> tuple[Path, bool]:
        """Return the path of a whole file, and whether it is ours to move.

        It is placed somewhere in `incoming`, unless the client has it already.

        Raises:
            UnreadableError: If it cannot be read.
        """
        ...
