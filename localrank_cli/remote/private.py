"""Private folders of downloads, one for each process, and those that ended processes left."""

import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from localrank_cli.errors import OutputError

_MARK = "localrank-downloads.json"
_PREFIX = "run-"
# What is in a private folder, besides the mark.
_PARTS = ("series", "headers", "incoming", "versions")


def cache_folder() -> Path:
    """Return the folder of all private folders, under the system's folder of caches."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    parent = Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache"
    return parent / "localrank"


@dataclass(frozen=True)
class Private:
    """A folder that one process downloads to."""

    folder: Path

    @classmethod
    def make(cls, address: str, parent: Path | None = None, *, keeps: bool = False) -> "Private":
        """Make a folder of a new name.

        Raises:
            OutputError: If it cannot be made.
        """
        parent = parent or cache_folder()
        try:
            parent.mkdir(parents=True, exist_ok=True)
            parent = parent.resolve()
            made = cls(Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent)))
            mark = {
                "address": address,
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "keeps": keeps,
            }
            (made.folder / _MARK).write_text(json.dumps(mark), encoding="utf-8")
            for part in _PARTS:
                (made.folder / part).mkdir()
        except OSError as error:
            raise OutputError(
                f"{parent}: downloads cannot be written there ({error.strerror}).",
                "Name a folder that can be written with --cache DIR.",
            ) from error
        return made

    @property
    def address(self) -> str:
        """The address whose files are here."""
        return str(self._mark().get("address", ""))

    @property
    def keeps(self) -> bool:
        """Whether nothing that is whole is removed from it but by `remove`."""
        return self._mark().get("keeps") is True

    @property
    def n_bytes(self) -> int:
        """The bytes on the disk, without holes."""
        return sum(
            one.lstat().st_blocks * 512
            for part in _PARTS
            for one in (self.folder / part).rglob("*")
            if not one.is_symlink() and one.is_file()
        )

    @property
    def is_used(self) -> bool:
        """Whether the process that made it is running, or may be: it is on another machine."""
        mark = self._mark()
        pid = mark.get("pid")
        if mark.get("host") != socket.gethostname() or not isinstance(pid, int):
            return True
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            return True
        return True

    def keep(self, path: str, version: str) -> None:
        """Note which version of a file is whole at a path under `series`."""
        noted = _state(self.folder / "series" / path, version)
        (self.folder / "versions" / _hash_of(path)).write_text(noted, encoding="utf-8")

    def kept(self, path: str, version: str) -> Path | None:
        """Return the file at a path under `series`, if it is whole, unchanged and of a version."""
        place = self.folder / "series" / path
        try:
            noted = (self.folder / "versions" / _hash_of(path)).read_text(encoding="utf-8")
            is_it = noted == _state(place, version) and place.is_file()
        except (OSError, ValueError):
            return None
        return place if version and is_it else None

    def remove(self) -> None:
        """Remove what localrank put there, and the folder if nothing else is in it."""
        for part in _PARTS:
            shutil.rmtree(self.folder / part, ignore_errors=True)
        with suppress(OSError):
            (self.folder / _MARK).unlink(missing_ok=True)
            self.folder.rmdir()

    def _mark(self) -> dict[str, object]:
        try:
            found = json.loads((self.folder / _MARK).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _state(place: Path, version: str) -> str:
    """Return what differs once a download is written to."""
    return f"{version} {place.stat().st_mtime_ns}"


def _hash_of(path: str) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()


def private_folders(parent: Path | None = None) -> Iterator[Private]:
    """Yield the private folders that are there, by name."""
    parent = parent or cache_folder()
    for folder in sorted(parent.glob(f"{_PREFIX}*")):
        if not folder.is_symlink() and (folder / _MARK).is_file():
            yield Private(folder)
