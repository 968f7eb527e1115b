"""The journal beside a table: while a run is not finished, this file is the truth.

One line for each record, `{"crc32": ..., "head": {...}, "body": {...}}`, appended and fsynced. A
line that a crash tore is cut at the next start; heads tell what there is without the bodies being
read. A later record of the same kind, run, checkpoint and points takes the place
of an earlier one.
"""

import json
import os
import stat
import sys
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from localrank_cli.errors import OutputError
from localrank_cli.results.write import cannot_write

_START = len(b'{"crc32":"00000000",')
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Entry:
    """Where a record stands, and its head."""

    head: dict[str, Any]
    offset: int  # of the line, in bytes
    length: int


def read_heads(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """Reads the heads of whole lines, of a journal that may be growing.

    Args:
        path: The file.
        offset: Where to begin, in bytes.

    Returns:
        The heads, and where to begin next time.
    """
    heads = []
    with suppress(OSError), path.open("rb") as file:
        file.seek(offset)
        for line in file:
            head = head_of(line)
            if head is None:  # torn, or not yet whole
                break
            heads.append(head)
            offset += len(line)
    return heads, offset


def read_line(path: Path, entry: Entry) -> bytes:
    """Reads a record as it stands in a journal that is not open.

    Args:
        path: The journal.
        entry: From its `entries`.

    Returns:
        The line.

    Raises:
        OutputError: If it is not what it was, or gone.
    """
    try:
        with path.open("rb") as file:
            file.seek(entry.offset)
            line = file.read(entry.length)
    except OSError as error:
        raise changed(path) from error
    if head_of(line) != entry.head:
        raise changed(path)
    return line


def line_of(head: dict[str, Any], body: Any) -> bytes:
    """Writes a line.

    Args:
        head: What tells which record it is.
        body: Anything that JSON can hold.

    Returns:
        The line, with its end.
    """
    parts = [json.dumps(part, ensure_ascii=True, separators=(",", ":")) for part in (head, body)]
    rest = f'"head":{parts[0]},"body":{parts[1]}}}\n'.encode()
    return b'{"crc32":"%08x",' % zlib.crc32(rest) + rest


def head_of(line: bytes) -> dict[str, Any] | None:
    """Reads the head of a line, without the body.

    Args:
        line: With its end.

    Returns:
        The head; None of a line that is torn or damaged.
    """
    rest = line[_START:]
    if not line.endswith(b"\n") or line[:_START] != b'{"crc32":"%08x",' % zlib.crc32(rest):
        return None
    head, _ = _DECODER.raw_decode(rest.decode(), len('"head":'))
    return _shared(head) if isinstance(head, dict) else None


def _shared(value: dict[str, Any]) -> dict[str, Any]:
    """With one string for each name: thousands of heads are held at once."""
    return {sys.intern(k): _shared(v) if isinstance(v, dict) else v for k, v in value.items()}


def changed(path: Path) -> OutputError:
    """Says that a line is not what it was.

    Args:
        path: The journal.

    Returns:
        The error to raise.
    """
    return OutputError(f"{path}: changed while it was in use.", "Run the same command again.")


FORMAT = 1
# The status of a record that takes an earlier one away.
GONE = "gone"
_KIND = "journal"

Key = tuple[str, ...]


def journal_path(target: Path) -> Path:
    """Where the journal of a table stands.

    Args:
        target: The table.

    Returns:
        `ranks.csv.journal` for `ranks.csv`.
    """
    return target.with_name(target.name + ".journal")


class Journal:
    """An open journal.

    Args:
        path: The file; made if it is not there.
        read_only: Whether nothing will be appended; the file must be there.

    Raises:
        OutputError: If it cannot be opened, is none, or is damaged before its last line.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._entries: dict[str, dict[Key, Entry]] = {}  # by kind: most are of one
        self._end = 0
        try:
            flags = os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT
            # Not to wait for the other end of what is a pipe.
            self._file: BinaryIO = os.fdopen(os.open(path, flags | os.O_NONBLOCK, 0o666), "rb")
        except OSError as error:
            raise cannot_write(path, error) from error
        try:
            self._check_kind()
            self._scan()
        except BaseException:
            self._file.close()
            raise

    def _check_kind(self) -> None:
        if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            raise OutputError(
                f"{self.path}: is no ordinary file.", "Remove it, or give another name with -o."
            )

    def _scan(self) -> None:
        for number, line in enumerate(self._file, start=1):
            head = head_of(line)
            if head is None:
                # Only the last line can be torn; a bad one among others is damage of another kind.
                if self._file.read(1):
                    raise self._damaged(number)
                break
            if number == 1 and (head.get("kind"), head.get("format")) != (_KIND, FORMAT):
                raise OutputError(
                    f"{self.path}: is no journal of this version of localrank.",
                    "Give another name with -o, or start anew with --overwrite.",
                )
            self._keep(head, len(line))

    def _keep(self, head: dict[str, Any], length: int) -> None:
        of_kind = self._entries.setdefault(str(head.get("kind", "")), {})
        of_kind[_key(head)] = Entry(head, self._end, length)
        self._end += length

    def _damaged(self, number: int) -> OutputError:
        return OutputError(
            f"{self.path}: line {number} is damaged.",
            "Something else wrote into it; start anew with --overwrite, or remove that line to"
            " compute its checkpoint again.",
        )

    @property
    def is_new(self) -> bool:
        """Whether nothing was ever written."""
        return not self._entries

    def entries(self, kind: str) -> list[Entry]:
        """What there is of one kind.

        Args:
            kind: As in the heads.

        Returns:
            The latest of each run and checkpoint, in no particular order; not what is gone.
        """
        every = self._entries.get(kind, {}).values()
        return [entry for entry in every if entry.head.get("status") != GONE]

    def body(self, entry: Entry) -> Any:
        """Reads a record's body.

        Args:
            entry: From `entries`.

        Returns:
            What was appended.

        Raises:
            OutputError: If the file cannot be read, or changed.
        """
        try:
            line = os.pread(self._file.fileno(), entry.length, entry.offset)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        if head_of(line) is None:
            raise changed(self.path)
        return json.loads(line)["body"]

    def append(self, head: dict[str, Any], body: Any, *, sync: bool = True) -> None:
        """Appends a record and brings it to the disk.

        Args:
            head: With `kind`; small.
            body: Anything that JSON can hold.
            sync: Whether it must be on the disk when this returns.

        Raises:
            OutputError: If it cannot be written; what was there before is untouched.
        """
        self._append(head, line_of(head, body), sync=sync)

    def copy(self, head: dict[str, Any], line: bytes) -> None:
        """Appends a line of another journal as it is, and leaves bringing it to the disk to `sync`.

        Args:
            head: Of the line.
            line: From `read_line`.
        """
        self._append(head, line, sync=False)

    def _append(self, head: dict[str, Any], line: bytes, *, sync: bool) -> None:
        if self.is_new and head.get("kind") != _KIND:
            self.append({"kind": _KIND, "format": FORMAT}, {})
        try:
            # The first append also cuts what a crash left behind the last whole line.
            os.ftruncate(self._file.fileno(), self._end)
            _write_all(self._file.fileno(), line, self._end)
            if sync:
                os.fsync(self._file.fileno())
        except OSError as error:
            self._cut()
            raise cannot_write(self.path, error) from error
        self._keep(head, len(line))

    def sync(self) -> None:
        """Brings everything to the disk.

        Raises:
            OutputError: If that fails.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _cut(self) -> None:
        """Takes half a line away again."""
        with suppress(OSError):
            os.ftruncate(self._file.fileno(), self._end)

    def move(self, path: Path) -> None:
        """Gives the file another name, in place of what has that name.

        Args:
            path: The new name.

        Raises:
            OutputError: If that fails.
        """
        try:
            self.path.replace(path)
        except OSError as error:
            raise cannot_write(path, error) from error
        self.path = path

    def discard(self) -> None:
        """Removes the file."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
        except OSError:  # of a full disk: append has told already
            if error is None:
                raise


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(descriptor, data[written:], offset + written)


def _key(head: dict[str, Any]) -> Key:
    names = ("kind", "run", "checkpoint", "points")
    return tuple(str(head.get(name, "")) for name in names)
