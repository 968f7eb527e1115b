"""What a store of files on another machine offers."""

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from localrank_cli.remote.address import Address


@dataclass(frozen=True)
class StoredFile:
    """A file of a store, as it was when it was listed."""

    path: str  # where it is placed, relative to the folder of all series
    key: str  # by which the store finds it
    size: int  # bytes
    version: str  # differs where the content does: an ETag, say; "" if the store shows none
    is_hash: bool = False  # whether equal versions mean equal contents


@dataclass(frozen=True)
class Listing:
    """The files that an address names."""

    root: str  # the folder or file itself, as a `path` of files
    files: tuple[StoredFile, ...]
    shown: str  # the address, in place of the root in messages
    refs: Mapping[str, str] = field(default_factory=dict)  # names of revisions -> commit


class Store(Protocol):
    """Files on another machine."""

    def listing(self, address: Address) -> Listing:
        """Return the files that an address names.

        Raises:
            UnreadableError: If the store cannot be reached or read, or nothing is there.
        """
        ...

    def part(self, file: StoredFile, start: int, end: int) -> bytes:
        """Return the bytes of a file from `start` to `end`, or to its own end.

        Raises:
            UnreadableError: If it cannot be read.
        """
        ...

    def cached(self, file: StoredFile) -> Path | None:
        """Return a whole file that the client has already; it is never removed or changed."""
        ...

    def download(self, file: StoredFile, incoming: Path) -> Path:
        """Return the path of a whole file, which was brought to somewhere in `incoming`.

        Raises:
            UnreadableError: If it cannot be read, or has changed since it was listed.
        """
        ...

    def check(self, file: StoredFile, path: Path) -> None:
        """Check that a whole file on this machine has the content that was listed, if that shows.

        Raises:
            UnreadableError: If it has another.
        """
        ...

    def name_of(self, path: str) -> str:
        """Return the address of what is placed at a path, for messages."""
        ...

    def facts(self, file: StoredFile) -> Mapping[str, str]:
        """Return what the manifest says of where a checkpoint with this file is from."""
        ...


def is_of_disk(error: BaseException) -> bool:
    """Return whether an error of a client means that this machine's disk takes no more."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
    return isinstance(error, OSError) and error.errno in full
