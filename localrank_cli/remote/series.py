"""A series on another machine as a folder on this one, with at most two checkpoints in it.

The folder has the layout of the Hub's own cache: `snapshots/COMMIT` and `refs`. An empty file is in
the place of weights that are not there.
"""

import os
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from localrank_cli.checkpoints.content import DAMAGED
from localrank_cli.checkpoints.folders import ADAPTER_CONFIG, FACTS
from localrank_cli.checkpoints.formats import is_weights_file
from localrank_cli.checkpoints.reading import files_of
from localrank_cli.checkpoints.series import CheckpointFile, Series
from localrank_cli.checkpoints.sharded import is_index
from localrank_cli.errors import LocalrankError, UnreadableError
from localrank_cli.remote.private import Private, private_folders
from localrank_cli.remote.store import Store, StoredFile

# Read for the network and the step; nothing else of a revision is brought here but weights.
_SMALL = ("config.json", ADAPTER_CONFIG, *FACTS)
_MOST_SMALL = 256 * 2**20  # bytes; a trainer_state.json holds the log of the whole training
_FIRST_READ = 2**18  # bytes: most headers of safetensors
_MOST_HEADER = 100 * 2**20  # that of safetensors itself
_AT_ONCE = 8  # revisions that are looked at in parallel: each takes a few requests
_SPARE = 2**28  # bytes of the disk that a download must leave


class RemoteSeries:
    """The checkpoints of a repository, each a revision.

    Args:
        store: Where the files are.
        name: ORG/NAME.
        address: As the user wrote it, for messages.
        private: Where to place them.
    """

    def __init__(self, store: Store, name: str, address: str, private: Private) -> None:
        self.store, self.name, self.address, self.private = store, name, address, private
        self.folder = private.folder / "series" / name
        self._headers = private.folder / "headers"
        self._files: dict[str, dict[str, StoredFile]] = {}
        self._sources: dict[Path, _Revision] = {}
        self._lock = threading.Lock()  # of what is on the disk
        self._there: list[_Revision] = []  # at most two
        self._current: _Revision | None = None  # fetched last

    def open(self, patterns: tuple[str, ...]) -> None:
        """List the revisions, and bring their small files.

        Raises:
            UnreadableError: If the store cannot be reached or read.
        """
        revisions = self.store.revisions(patterns)
        (self.folder / "refs").mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(self._prepare, revisions))
        self._write_refs(revisions)

    def _write_refs(self, revisions: Mapping[str, list[str]]) -> None:
        for commit, names in revisions.items():
            for name in names:
                ref = self.folder / "refs" / name
                ref.parent.mkdir(parents=True, exist_ok=True)
                ref.write_text(commit, encoding="ascii")

    def _prepare(self, commit: str) -> None:
        folder = self.folder / "snapshots" / commit
        folder.mkdir(parents=True)
        files = {one.name: one for one in self.store.files(commit) if _is_plain(one.name)}
        self._files[commit] = files
        for name, one in files.items():
            path = folder / name
            if name in _SMALL or is_index(path):
                if one.size > _MOST_SMALL:
                    raise UnreadableError(
                        f"{self.address}: {name} of {commit} has {one.size} bytes, expected at most"
                        f" {_MOST_SMALL}.",
                        DAMAGED,
                    )
                path.write_bytes(self._whole(commit, one))
            elif is_weights_file(path):
                path.touch()

    def _whole(self, commit: str, file: StoredFile) -> bytes:
        content = self.store.start(commit, file.name, file.size) if file.size else b""
        self.check_size(commit, file, len(content))
        return content

    def check_size(self, commit: str, file: StoredFile, size: int) -> None:
        """Check that a file has arrived as a whole.

        Raises:
            UnreadableError: If it has not.
        """
        if size != file.size:
            raise UnreadableError(
                f"{self.address}: {file.name} of {commit} came with {size} bytes, expected"
                f" {file.size}.",
                "Run the same command again: what is finished is kept.",
            )

    def attach(self, series: Series) -> Series:
        """Return a series found in the folder, with where each checkpoint comes from."""
        files = tuple(replace(one, source=self._source(one)) for one in series.files)
        return replace(series, files=files, address=self.address)

    def _source(self, file: CheckpointFile) -> "_Revision":
        found = self._sources.get(file.path)
        if found is None:
            commit = file.path.relative_to(self.folder / "snapshots").parts[0]
            found = _Revision(self, commit, file.path)
            try:
                found.files = self._weights(commit, file.path)
            except UnreadableError as error:  # concerns this checkpoint alone
                found.fault = error
            self._sources[file.path] = found
        return found

    def _weights(self, commit: str, path: Path) -> tuple[StoredFile, ...]:
        """Return the files of the weights, without an index."""
        listed = self._files[commit]
        names = [one.name for one in files_of(path) if not is_index(one)]
        absent = [name for name in names if name not in listed]
        if absent:
            raise UnreadableError(
                f"{self.address}: {commit} has no {absent[0]}, which {path.name} names.",
                "Choose other revisions with hf://ORG/NAME@GLOB.",
            )
        return tuple(listed[name] for name in names)

    def header_of(self, revision: "_Revision") -> Path:
        """Return a file with the header of a revision's weights; see `Source`."""
        if not all(one.name.lower().endswith(".safetensors") for one in revision.files):
            self.bring(revision, is_current=True)
            return revision.path
        folder = self._headers / revision.commit
        path = folder / revision.path.name
        if path.exists():
            return path
        folder.mkdir(exist_ok=True)
        for one in revision.files:
            start = self._header(revision.commit, one)
            partial = folder / f"{one.name}.part"
            with partial.open("wb") as file:
                file.write(start)
                file.truncate(one.size)  # a hole, which takes no room
            partial.replace(folder / one.name)
        if is_index(revision.path):
            shutil.copyfile(revision.path, path)
        return path

    def _header(self, commit: str, file: StoredFile) -> bytes:
        start = self.store.start(commit, file.name, min(_FIRST_READ, file.size))
        length = 8 + int.from_bytes(start[:8], "little")
        if length > min(file.size, _MOST_HEADER):
            raise UnreadableError(
                f"{self.address}: {file.name} of {commit} is not a safetensors file.", DAMAGED
            )
        if length > len(start):
            start = self.store.start(commit, file.name, length)
        if length > len(start):
            self.check_size(commit, file, len(start))
        return start[:length]

    def bring(self, revision: "_Revision", *, is_current: bool) -> None:
        """Bring the weights of a revision; of others at most those fetched last stay.

        Raises:
            UnreadableError: If they cannot be read, or there is no room.
        """
        with self._lock:
            if revision not in self._there:
                leaving = [one for one in self._there if one is not self._current]
                for other in [] if self.private.keeps else leaving:
                    other.remove()
                    self._there.remove(other)
                self._check_room(revision)
                # Counted before it is whole: what has come of it is removed too.
                self._there.append(revision)
                try:
                    self._download(revision)
                except BaseException:
                    revision.remove()
                    self._there.remove(revision)
                    raise
            if is_current:
                self._current = revision

    def _download(self, revision: "_Revision") -> None:
        incoming = self.private.folder / "incoming"
        for file in revision.files:
            place = revision.path.parent / file.name
            kept = self._kept(revision.commit, file)
            found, is_ours = (
                self.store.download(revision.commit, file.name, incoming)
                if kept is None
                else (kept, False)
            )
            self.check_size(revision.commit, file, found.stat().st_size)
            if is_ours:
                found.replace(place)
            else:  # in the client's own cache or of an earlier run, which is only read
                link = place.with_name(f"{place.name}.link")
                link.symlink_to(found)
                link.replace(place)
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir(exist_ok=True)

    def _kept(self, commit: str, file: StoredFile) -> Path | None:
        """Return a file that an earlier run has kept."""
        for private in private_folders(self.private.folder.parent):
            path = private.folder / "series" / self.name / "snapshots" / commit / file.name
            is_other = private != self.private and private.keeps
            if is_other and path.is_file() and path.stat().st_size == file.size:
                return path.resolve()
        return None

    def _check_room(self, revision: "_Revision") -> None:
        free = shutil.disk_usage(self.private.folder).free
        if revision.size + _SPARE > free:
            raise UnreadableError(
                f"{self.private.folder}: has {free} bytes free, and the weights of"
                f" {revision.commit} ({self.address}) take {revision.size}.",
                "Make room, or name a folder on a larger disk with --cache DIR; localrank cache"
                " --clear removes what earlier runs left.",
            )


class _Revision:
    """The weights of one revision; a `checkpoints.source.Source`."""

    def __init__(self, series: RemoteSeries, commit: str, path: Path) -> None:
        self._series = series
        self.commit, self.path = commit, path
        self.files: tuple[StoredFile, ...] = ()
        self.fault: UnreadableError | None = None  # why the files are not known
        # Begun, but perhaps not ended.
        self._thread: threading.Thread | None = None

    @property
    def name(self) -> str:
        """The address of the one revision, by its commit."""
        return f"hf://{self._series.name}@{self.commit}"

    @property
    def size(self) -> int:
        """The bytes of all files of the weights."""
        return sum(one.size for one in self.files)

    @property
    def content(self) -> tuple[str, ...]:
        """The hashes of the files of the weights."""
        return tuple(one.content for one in self.files)

    def header(self) -> Path:
        """Return a file with the header of the weights.

        Raises:
            UnreadableError: If it cannot be read.
        """
        if self.fault is not None:
            raise self.fault
        return self._series.header_of(self)

    def fetch(self) -> None:
        """Bring the weights to the disk."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._series.bring(self, is_current=True)

    def prefetch(self) -> None:
        """Begin to bring the weights to the disk, and return at once."""
        if self._thread is None:
            # A daemon: the end of the process does not wait for a download.
            self._thread = threading.Thread(target=_quietly, args=(self._ahead,), daemon=True)
            self._thread.start()

    def _ahead(self) -> None:
        self._series.bring(self, is_current=False)

    def remove(self) -> None:
        """Put empty files in the place of the weights."""
        for file in self.files:
            place = self.path.parent / file.name
            empty = place.with_name(f"{place.name}.empty")
            empty.touch()
            empty.replace(place)


def _quietly(work: Callable[[], None]) -> None:
    """Leave an error to `fetch`, which tries again and is where it can be reported."""
    with suppress(LocalrankError, OSError):
        work()


def _is_plain(name: str) -> bool:
    """Return whether a remote name is that of a file in the checkpoint's folder itself."""
    return (
        name not in {"", ".", ".."}
        and not any(mark in name for mark in ("/", "\\", "\0"))
        and os.fsencode(name).isascii()
        and len(name) < 200
    )
