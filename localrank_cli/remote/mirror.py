"""Files on another machine as a folder on this one, in which weights are empty until needed.

The folder has the names that the store has, as far as a file may have them here, so that it is
listed by the rules of any folder. What cannot be a name (`..`, a line break) is left out with a
note: no part of a key is ever read as a path.
"""

import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from localrank_cli.checkpoints.content import DAMAGED
from localrank_cli.checkpoints.folders import ADAPTER_CONFIG, DCP_METADATA, FACTS
from localrank_cli.checkpoints.formats import SUFFIXES, is_weights_file
from localrank_cli.checkpoints.names import SETTINGS_FILE
from localrank_cli.checkpoints.reading import files_of
from localrank_cli.checkpoints.series import CheckpointFile, Series
from localrank_cli.checkpoints.sharded import is_index
from localrank_cli.errors import (
    LocalrankError,
    Note,
    OutputError,
    UnreadableError,
    listed,
    readable,
)
from localrank_cli.remote.address import Address
from localrank_cli.remote.headers import Piece, head_of, shows_counters
from localrank_cli.remote.private import Private, private_folders
from localrank_cli.remote.shelf import Shelf
from localrank_cli.remote.store import Listing, Store, StoredFile

# Read for the network, the step and the settings: brought here as soon as they are listed.
_SMALL = ("config.json", ADAPTER_CONFIG, DCP_METADATA, SETTINGS_FILE, *FACTS)
_MOST_SMALL = 256 * 2**20  # bytes; a trainer_state.json holds the log of the whole training
_AT_ONCE = 8  # files that are read in parallel
_SPARE = 2**28  # bytes of the disk that a download must leave
_LONGEST_NAME = 200  # bytes; most file systems allow 255, and suffixes are added
_MOVED = "Rerun the same command to resume."


class Mirror:
    """What addresses of one store name, as a folder on this machine.

    Args:
        store: Where the files are.
        private: Where to place them.
        shelf: Which weights are on the disk.
    """

    def __init__(self, store: Store, private: Private, shelf: Shelf) -> None:
        self.store, self.private, self.shelf = store, private, shelf
        self.folder = private.folder / "series"
        self._files: dict[Path, StoredFile] = {}
        self._sources: dict[Path, RemoteCheckpoint] = {}
        self._shown: dict[Path, str] = {}  # roots, and the addresses that name them

    def open(self, address: Address, note: Note) -> Path:
        """List the files of an address, bring the small ones, and return where they are placed.

        Raises:
            UnreadableError: If the store cannot be reached or read.
        """
        found = self.store.listing(address)
        with self._placing():
            return self._placed(found, note)

    @contextmanager
    def _placing(self) -> Iterator[None]:
        """Say what to do if the disk of this machine takes no more."""
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"{self.private.folder}: downloads cannot be written there"
                f" ({error.strerror or error}).",
                "Make room, or name a folder on a larger disk with --cache DIR.",
            ) from error

    def _placed(self, found: Listing, note: Note) -> Path:
        placed = [(one, self._place(one)) for one in found.files]
        odd = [one.path for one, path in placed if path is None and _matters(Path(one.path))]
        if odd:
            names = listed((repr(name.removeprefix(f"{found.root}/")) for name in odd), 4)
            note(f"{found.shown}: left out names that no file on this machine can have: {names}")
        if any(
            path is not None and is_weights_file(path) and not one.version for one, path in placed
        ):
            note(
                f"{found.shown}: the store does not show versions of its files, so each rerun"
                " downloads finished checkpoints again to see whether they changed"
            )
        small = [(one, path) for one, path in placed if path is not None and _is_small(path)]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda pair: self._bring_small(*pair), small))
        root = self.folder / found.root
        if not root.exists() and all(path != root for _, path in placed):
            every = listed((one.path.removeprefix(f"{found.root}/") for one in found.files), 4)
            raise UnreadableError(
                f"{found.shown}: no checkpoint is among its {len(found.files)} files ({every}).",
                f"Name a folder of checkpoints. Supported: {', '.join(SUFFIXES)}.",
            )
        self._write_refs(root, found)
        self._shown[root] = found.shown
        return root

    def _write_refs(self, root: Path, found: Listing) -> None:
        if found.refs:
            (root / "refs").mkdir(parents=True, exist_ok=True)
        for name, commit in found.refs.items():
            ref = root / "refs" / name
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(commit, encoding="ascii")

    def _place(self, file: StoredFile) -> Path | None:
        """Return where a file is placed, with an empty file there if it may be weights.

        None if its name can be none here, or is that of another on this disk.
        """
        parts = file.path.split("/")
        if not all(map(_is_plain, parts)):
            return None
        path = self.folder.joinpath(*parts)
        if path in self._files:  # listed before, by another address: this run sees one state
            return path
        try:
            if _matters(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch(exist_ok=False)
        except (FileExistsError, NotADirectoryError):
            return None
        self._files[path] = file
        return path

    def _bring_small(self, file: StoredFile, path: Path) -> None:
        if file is not self._files[path]:
            return
        if file.size > _MOST_SMALL:
            raise UnreadableError(
                f"{self.store.name_of(file.path)}: has {readable(file.size)}, expected at most"
                f" {readable(_MOST_SMALL)}.",
                DAMAGED,
            )
        path.write_bytes(self.whole_part(file, 0, file.size))
        self.store.check(file, path)

    def whole_part(self, file: StoredFile, start: int, end: int) -> bytes:
        """Return the bytes of a file from `start` to `end`.

        Raises:
            UnreadableError: If fewer came.
        """
        found = self.store.part(file, start, end) if end > start else b""
        self._check_size(file, len(found), end - start)
        return found

    def address_of(self, file: StoredFile) -> str:
        """Return the address of a file, for messages."""
        return self.store.name_of(file.path)

    def _check_size(self, file: StoredFile, size: int, expected: int) -> None:
        if size != expected:
            raise UnreadableError(
                f"{self.store.name_of(file.path)}: came with {size} bytes, expected {expected}.",
                _MOVED,
            )

    def attach(self, series: Series) -> Series:
        """Return a series found in the folder, with where each checkpoint comes from."""
        files = tuple(replace(one, source=self._source(one)) for one in series.files)
        address = self._shown.get(series.folder) or self.name_of(series.folder)
        return replace(series, files=files, address=address)

    def name_of(self, path: Path) -> str:
        """Return the address of what is placed at a path."""
        return self.store.name_of(path.relative_to(self.folder).as_posix())

    def shown(self, text: str) -> str:
        """Return a text with addresses in place of the paths where files are placed."""
        for root, address in self._shown.items():
            text = text.replace(str(root), address)
            text = text.replace(str(self._of_headers(root)), address)
        for folder in (self.folder, self.private.folder / "headers"):
            text = text.replace(f"{folder}/", self.store.name_of(""))
        return text

    def _source(self, file: CheckpointFile) -> "RemoteCheckpoint":
        found = self._sources.get(file.path)
        if found is None:
            found = RemoteCheckpoint(self, file)
            self._sources[file.path] = found
        return found

    def weights_of(self, path: Path) -> tuple[StoredFile, ...]:
        """Return the files with the weights of a checkpoint, without what lists them.

        Raises:
            UnreadableError: If one of them was not listed.
        """
        files = []
        for one in files_of(path):
            if _is_small(one):
                continue
            if one not in self._files:
                raise UnreadableError(
                    f"{self.name_of(path)}: names {one.relative_to(path.parent)}, which is not"
                    " there.",
                    "Save or copy the checkpoint again, or leave it out with --pattern GLOB.",
                )
            files.append(self._files[one])
        return tuple(files)

    def place_of(self, file: StoredFile) -> Path:
        """Return where a file is placed."""
        return self.folder / file.path

    def header_of(self, checkpoint: "RemoteCheckpoint") -> Path | None:
        """Return a file with the header of a checkpoint's weights, if parts of them are enough."""
        with self._placing():
            return self._header_of(checkpoint)

    def _header_of(self, checkpoint: "RemoteCheckpoint") -> Path | None:
        path = self._of_headers(checkpoint.path)
        if path.exists():
            return path
        for one in checkpoint.files:
            head = head_of(one, self)
            if head is None:
                return None
            place = self._of_headers(self.place_of(one))
            place.parent.mkdir(parents=True, exist_ok=True)
            _write_sparse(place, head, one.size)
            if not shows_counters(place):
                place.unlink()
                return None
        if not path.exists():  # what lists the others
            shutil.copyfile(checkpoint.path, path)
        return path

    def _of_headers(self, path: Path) -> Path:
        return self.private.folder / "headers" / path.relative_to(self.folder)

    def bring(self, files: Iterable[StoredFile]) -> None:
        """Bring whole files to their places.

        Raises:
            UnreadableError: If they cannot be read, or there is no room.
        """
        with self._placing():
            self._bring(files)

    def _bring(self, files: Iterable[StoredFile]) -> None:
        there = {one: self._there(one) for one in files}
        self._check_room([one for one, path in there.items() if path is None])
        incoming = self.private.folder / "incoming"
        for one, path in there.items():
            place = self.place_of(one)
            place.parent.mkdir(parents=True, exist_ok=True)
            incoming.mkdir(exist_ok=True)
            if path is None:
                found = self.store.download(one, incoming)
                self._check_size(one, found.stat().st_size, one.size)
                self.store.check(one, found)
                found.replace(place)
                if self.private.keeps:
                    self.private.keep(one.path, one.version)
            else:  # in the client's own cache or of an earlier run, which is only read
                self.store.check(one, path)
                link = incoming / "link"
                link.symlink_to(path)
                link.replace(place)
            shutil.rmtree(incoming, ignore_errors=True)

    def bring_file(self, path: Path) -> bool:
        """Bring a file that is no checkpoint, such as data, and return whether it is one of these.

        It stays until the end.
        """
        file = self._files.get(path)
        if file is None:
            return False
        if not path.exists() or path.stat().st_size != file.size:
            self.bring([file])
        return True

    def _there(self, file: StoredFile) -> Path | None:
        """Return a whole file that the client has, or that an earlier run has kept."""
        cached = self.store.cached(file)
        if cached is not None:
            return cached
        for private in private_folders(self.private.folder.parent):
            if private != self.private and private.keeps:
                path = private.kept(file.path, file.version)
                if path is not None and path.stat().st_size == file.size:
                    return path.resolve()
        return None

    def _check_room(self, files: Iterable[StoredFile]) -> None:
        free, needed = shutil.disk_usage(self.private.folder).free, sum(one.size for one in files)
        if needed and needed + _SPARE > free:
            first = next(iter(files))
            raise UnreadableError(
                f"{self.private.folder}: has {readable(free)} free, but"
                f" {self.store.name_of(first.path)} takes {readable(needed)}.",
                "Make room, or name a folder on a larger disk with --cache DIR; localrank cache"
                " --clear removes what earlier runs left.",
            )


class RemoteCheckpoint:
    """The weights of one checkpoint; a `checkpoints.source.Source`."""

    def __init__(self, mirror: Mirror, file: CheckpointFile) -> None:
        self._mirror = mirror
        self.path = file.path
        single = file.folder is None or file.folder == file.path
        self.name = mirror.name_of(file.path if single or file.folder is None else file.folder)
        self.files: tuple[StoredFile, ...] = ()
        self._fault: UnreadableError | None = None  # why the files are not known
        try:
            self.files = mirror.weights_of(file.path)
        except UnreadableError as error:  # concerns this checkpoint alone
            self._fault = self.explained(error)
        self._run = uuid4().hex  # unlike that of any other run
        self._needs_all = False  # whether parts of the files do not show the header
        # Begun, but perhaps not ended.
        self._thread: threading.Thread | None = None

    @property
    def size(self) -> int:
        """The bytes of all files of the weights."""
        return sum(one.size for one in self.files)

    @property
    def versions(self) -> tuple[str, ...]:
        """The version of each file of the weights."""
        # Without one, it may have changed between any two runs: its content is compared then.
        return tuple(one.version or f"unknown {self._run}" for one in self.files)

    @property
    def facts(self) -> dict[str, str]:
        """Where it is from, for the manifest."""
        more = self._mirror.store.facts(self.files[0]) if self.files else {}
        return {"address": self.name, **more}

    def has_content_of(self, other: object) -> bool:
        """Return whether the store says that another checkpoint has the same content."""
        if not isinstance(other, RemoteCheckpoint) or not self.files:
            return False
        are_hashes = all(one.is_hash for one in (*self.files, *other.files))
        return are_hashes and self.versions == other.versions

    @property
    def stays(self) -> bool:
        """Whether it is to stay on the disk until the end."""
        return self._mirror.private.keeps

    def explained(self, error: UnreadableError) -> UnreadableError:
        """Return an error with the address in place of the path."""
        return type(error)(self._mirror.shown(error.what), self._mirror.shown(error.advice))

    def header(self) -> Path:
        """Return a file with the header of the weights.

        Raises:
            UnreadableError: If it cannot be read.
        """
        if self._fault is not None:
            raise self._fault
        found = None if self._needs_all else self._mirror.header_of(self)
        if found is None:
            self._needs_all = True
            self.fetch()
        return found or self.path

    def fetch(self) -> None:
        """Bring the weights to the disk."""
        if self._fault is not None:
            raise self._fault
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._mirror.shelf.bring(self, is_current=True)

    def prefetch(self) -> None:
        """Begin to bring the weights to the disk, and return at once."""
        if self._thread is None and self._fault is None:
            # A daemon: the end of the process does not wait for a download.
            self._thread = threading.Thread(target=_quietly, args=(self._ahead,), daemon=True)
            self._thread.start()

    def _ahead(self) -> None:
        self._mirror.shelf.bring(self, is_current=False)

    def bring(self) -> None:
        """Bring the weights to the disk; of a shelf."""
        self._mirror.bring(self.files)

    def remove(self) -> None:
        """Put empty files in the place of the weights."""
        for file in self.files:
            place = self._mirror.place_of(file)
            with suppress(FileNotFoundError):  # pieces that only a list names have no empty file
                place.unlink()
            if is_weights_file(place):
                place.touch()


def _write_sparse(place: Path, pieces: Iterable[Piece], size: int) -> None:
    """Write pieces of a file, and holes between them, which take no room."""
    partial = place.with_name("partial")
    with partial.open("wb") as file:
        for one in pieces:
            file.seek(one.start)
            file.write(one.content)
        file.truncate(size)
    partial.replace(place)


def _quietly(work: Callable[[], None]) -> None:
    """Leave an error to `fetch`, which tries again and is where it can be reported."""
    with suppress(LocalrankError, OSError, MemoryError):
        work()


def _is_small(path: Path) -> bool:
    return path.name in _SMALL or is_index(path)


def _matters(path: Path) -> bool:
    """Return whether a file is looked at where checkpoints are looked for."""
    return _is_small(path) or is_weights_file(path)


def _is_plain(name: str) -> bool:
    """Return whether a part of a remote name can be the name of a file here."""
    if name in {"", ".", ".."} or "\\" in name or not name.isprintable():
        return False
    try:
        return len(os.fsencode(name)) < _LONGEST_NAME
    except UnicodeError:
        return False
