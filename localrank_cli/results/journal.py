"""The journal beside a table: while a run is not finished, this file is the truth.

One line for each record, `{"crc32": ..., "head": {...}, "body": {...}}`, appended and fsynced. A
line that a crash tore is cut at the next start; heads tell what there is without the bodies being
read. A later record of the same kind, run, checkpoint and points takes the place
of an earlier one.
"""

import os
import stat
import sys
import zlib
from contextlib import suppress
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from localrank_cli.errors import OutputError, one_line
from localrank_cli.results.schema import check_head, check_line
from localrank_cli.results.write import cannot_write
from localrank_cli.validation import load_first, loads, shown

_START = len(b'{"crc32":"00000000",')


@dataclass(frozen=True)
class Entry:
    """Where a record stands, and its head."""

    head: dict[str, Any]
    offset: int  # of the line, in bytes
    length: int


def read_heads(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """Read the heads of whole lines, of a journal that may be growing.

    Args:
        path: The file.
        offset: Where to begin, in bytes.

    Returns:
        The heads, and where to begin next time.

    Raises:
        OutputError: If a line is whole and holds what no journal holds.
    """
    heads = []
    with suppress(OSError), path.open("rb") as file:
        file.seek(offset)
        for line in file:
            try:
                head = head_of(line)
                if head is None:  # torn, or not yet whole
                    break
                check_head(head)
            except ValueError as error:
                raise _strange(path, offset, error) from error
            heads.append(head)
            offset += len(line)
    return heads, offset


def read_line(path: Path, entry: Entry) -> bytes:
    """Return the line of a record of a journal that is not open.

    Raises:
        OutputError: If it is not what it was, or gone.
    """
    try:
        with path.open("rb") as file:
            file.seek(entry.offset)
            line = file.read(entry.length)
    except OSError as error:
        raise changed(path) from error
    try:
        is_same = head_of(line) == entry.head
    except ValueError:
        is_same = False
    if not is_same:
        raise changed(path)
    return line


def read_body(path: Path, entry: Entry) -> Any:
    """Return the body of a record of a journal that is not open.

    Raises:
        OutputError: If it is not what it was, or not what a journal holds.
    """
    return _body_of(path, entry, read_line(path, entry))


def _body_of(path: Path, entry: Entry, line: bytes) -> Any:
    try:
        # Measures may overflow, and losses of a network that diverged are not finite.
        whole: Any = loads(line.decode(), non_finite=True)
        check_line(entry.head["kind"], whole)
    except ValueError as error:
        raise _strange(path, entry.offset, error) from error
    return whole["body"]


def _strange(path: Path, offset: int, error: ValueError) -> OutputError:
    """Word that a line is whole and makes no sense."""
    number = 1
    with suppress(OSError), path.open("rb") as file:
        number += file.read(offset).count(b"\n")
    return OutputError(
        f"{path}: line {number}: {one_line(error)}.",
        "Something else wrote into it; start over with --overwrite, or remove that line to compute"
        " its checkpoint again.",
    )


def line_of(head: dict[str, Any], body: Any) -> bytes:
    """Write a line.

    Args:
        head: What tells which record it is.
        body: Anything that JSON can hold.

    Returns:
        The line, with its end.
    """
    parts = [dumps(part, ensure_ascii=True, separators=(",", ":")) for part in (head, body)]
    rest = f'"head":{parts[0]},"body":{parts[1]}}}\n'.encode()
    return b'{"crc32":"%08x",' % zlib.crc32(rest) + rest


def head_of(line: bytes) -> dict[str, Any] | None:
    """Read the head of a line, without the body.

    Args:
        line: With its end.

    Returns:
        The head; None of a line that is torn or damaged.

    Raises:
        ValueError: If the line is whole and has no head.
    """
    rest = line[_START:]
    if not line.endswith(b"\n") or line[:_START] != b'{"crc32":"%08x",' % zlib.crc32(rest):
        return None
    if not rest.startswith(b'"head":'):
        raise ValueError("head: is missing")
    head = load_first(rest.decode(), len('"head":'))
    if not isinstance(head, dict):
        raise ValueError(f"head: expected keys with values, got {shown(head)}")  # noqa: TRY004
    return _shared(head)


def _shared(value: dict[str, Any]) -> dict[str, Any]:
    """With one string for each name: thousands of heads are held at once."""
    return {sys.intern(k): _shared(v) if isinstance(v, dict) else v for k, v in value.items()}


def changed(path: Path) -> OutputError:
    """Word that a line is not what it was.

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
    """Return the path of a table's journal.

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
        self.is_sound = True  # until a body turns out to be none
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
            try:
                head = self._head_of(line, number)
            except ValueError as error:
                raise _strange(self.path, self._end, error) from error
            if head is None:
                # Only the last line can be torn; a bad one among others is damage of another kind.
                if self._file.read(1):
                    raise self._damaged(number)
                break
            self._keep(head, len(line))

    def _head_of(self, line: bytes, number: int) -> dict[str, Any] | None:
        head = head_of(line)
        if head is None:
            return None
        if number == 1 and (head.get("kind"), head.get("format")) != (_KIND, FORMAT):
            raise OutputError(
                f"{self.path}: is no journal of this version of localrank.",
                "Give another name with -o, or start over with --overwrite.",
            )
        check_head(head)
        return head

    def _keep(self, head: dict[str, Any], length: int) -> None:
        of_kind = self._entries.setdefault(str(head.get("kind", "")), {})
        of_kind[_key(head)] = Entry(head, self._end, length)
        self._end += length

    def _damaged(self, number: int) -> OutputError:
        return OutputError(
            f"{self.path}: line {number} is damaged.",
            "Something else wrote into it; start over with --overwrite, or remove that line to"
            " compute its checkpoint again.",
        )

    @property
    def is_new(self) -> bool:
        """Whether nothing was ever written."""
        return not self._entries

    def entries(self, kind: str) -> list[Entry]:
        """Return what there is of one kind.

        Args:
            kind: As in the heads.

        Returns:
            The latest of each run and checkpoint, in no particular order; not what is gone.
        """
        every = self._entries.get(kind, {}).values()
        return [entry for entry in every if entry.head.get("status") != GONE]

    def body(self, entry: Entry) -> Any:
        """Return the body of a record.

        Raises:
            OutputError: If the file cannot be read, changed, or holds what no journal holds.
        """
        try:
            line = os.pread(self._file.fileno(), entry.length, entry.offset)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        try:
            is_whole = head_of(line) is not None
        except ValueError:
            is_whole = False
        if not is_whole:
            raise changed(self.path)
        try:
            return _body_of(self.path, entry, line)
        except OutputError:
            self.is_sound = False
            raise

    def check_settings(self) -> None:
        """Check that what decided the numbers is there for every checkpoint.

        Raises:
            OutputError: If it is not.
        """
        there = {entry.head["run"] for entry in self.entries("settings")}
        for entry in self.entries("checkpoint"):
            if entry.head["run"] not in there:
                raise OutputError(
                    f"{self.path}: does not say what decided the numbers of {entry.head['run']!r}.",
                    "Something else wrote into it; start over with --overwrite.",
                )

    def append(self, head: dict[str, Any], body: Any, *, sync: bool = True) -> None:
        """Append a record and brings it to the disk.

        Args:
            head: With `kind`; small.
            body: Anything that JSON can hold.
            sync: Whether it must be on the disk when this returns.

        Raises:
            OutputError: If it cannot be written; what was there before is untouched.
        """
        self._append(head, line_of(head, body), sync=sync)

    def copy(self, head: dict[str, Any], line: bytes) -> None:
        """Append a line of another journal as it is; `sync` brings it to the disk.

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
        """Bring everything to the disk.

        Raises:
            OutputError: If that fails.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _cut(self) -> None:
        """Remove half a line again."""
        with suppress(OSError):
            os.ftruncate(self._file.fileno(), self._end)

    def move(self, path: Path) -> None:
        """Rename the file, in place of what has that name.

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
        """Remove the file."""
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
        except OSError:  # of a full disk: append has raised already
            if error is None:
                raise


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(descriptor, data[written:], offset + written)


def _key(head: dict[str, Any]) -> Key:
    names = ("kind", "run", "checkpoint", "points")
    return tuple(str(head.get(name, "")) for name in names)
