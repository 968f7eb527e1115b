"""The journal beside a table, which holds all results of a run that is not finished.

It has one line for each record, `{"crc32": ..., "head": {...}, "body": {...}}`, appended and
fsynced. A line that a crash left incomplete is cut off at the next start. Heads are read without
bodies. A later record of the same kind, run, checkpoint and points replaces an earlier one.
"""

import os
import stat
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Any, BinaryIO, Self

from localrank_cli.errors import OutputError, one_line
from localrank_cli.results.schema import check_head, check_line
from localrank_cli.results.write import cannot_write
from localrank_cli.validation import load_first, loads, shown

FORMAT = 1
GONE = "gone"  # the status of a record that removes an earlier one
_KIND, _SETTINGS, _CHECKPOINT = "journal", "settings", "checkpoint"
_BEGIN = b'{"crc32":"'
_MOST_FOREIGN = 2**26  # bytes; a crash may leave zeros in place of a line
_START = len(b'{"crc32":"00000000",')
_REPAIR = (
    "Something else wrote into it; start over with --overwrite, or remove that line to compute its"
    " checkpoint again."
)

Key = tuple[str, ...]
Settings = Mapping[str, Any]  # of a series


@dataclass(frozen=True)
class Entry:
    """The place of a record in a journal, and its head."""

    head: dict[str, Any]
    offset: int  # of the line, in bytes
    length: int


def may_be_journal(path: Path) -> bool:
    """Return whether a file begins as a journal does."""
    with path.open("rb") as file:
        return file.read(len(_BEGIN)) == _BEGIN


def read_heads(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """Return the heads of whole lines from an offset in bytes on, and the offset of the next line.

    The journal may be growing.

    Raises:
        OutputError: If a line is whole and has invalid content.
    """
    heads = []
    with suppress(OSError), path.open("rb") as file:  # not there yet, or merged and removed
        file.seek(offset)
        for line in _lines(file):
            try:
                head = head_of(line)
                if head is None:  # torn, or not yet whole
                    break
                check_head(head)
            except ValueError as error:
                raise _invalid(path, offset, error) from error
            heads.append(head)
            offset += len(line)
    return heads, offset


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a journal; of one that begins as none does, no more than its beginning."""
    while start := file.readline(_START):
        known = start.startswith(_BEGIN[: len(start)])
        yield (
            start
            if start.endswith(b"\n")
            else start + file.readline(-1 if known else _MOST_FOREIGN)
        )


def read_line(path: Path, entry: Entry) -> bytes:
    """Return the line of a record of a journal that is not open.

    Raises:
        OutputError: If it has changed, or is gone.
    """
    try:
        with path.open("rb") as file:
            file.seek(entry.offset)
            line = file.read(entry.length)
    except OSError as error:
        raise _changed(path) from error
    if _sound_head(line) != entry.head:
        raise _changed(path)
    return line


def _sound_head(line: bytes) -> dict[str, Any] | None:
    try:
        return head_of(line)
    except ValueError:
        return None


def read_checkpoint(path: Path, entry: Entry, settings: Settings) -> tuple[bytes, Any]:
    """Return the line and the body of a checkpoint of a journal that is not open.

    Raises:
        OutputError: If it has changed, or does not fit the settings.
    """
    line = read_line(path, entry)
    return line, _body_of(path, entry, line, settings)


def _body_of(path: Path, entry: Entry, line: bytes, settings: Settings | None) -> Any:
    """Return the body of a line; `settings` are those of a checkpoint's run, if they are there."""
    try:
        # Measures may overflow, and losses of a network that diverged are not finite.
        whole: Any = loads(line.decode(), non_finite=True)
        check_line(entry.head["kind"], whole)
        if settings is not None and entry.head["status"] == "ok":
            from localrank_cli.results.record import check_against_settings

            check_against_settings(settings, whole["body"])
    except ValueError as error:
        raise _invalid(path, entry.offset, error) from error
    return whole["body"]


def _invalid(path: Path, offset: int, error: ValueError) -> OutputError:
    """Return the error for a line that is whole and has invalid content."""
    number = 1  # if the file is gone by now
    with suppress(OSError), path.open("rb") as file:
        number += file.read(offset).count(b"\n")
    return OutputError(f"{path}: line {number}: {one_line(error)}.", _REPAIR)


def line_of(head: dict[str, Any], body: Any) -> bytes:
    """Return a record as a line with its end."""
    parts = [dumps(part, ensure_ascii=True, separators=(",", ":")) for part in (head, body)]
    rest = f'"head":{parts[0]},"body":{parts[1]}}}\n'.encode()
    return b'{"crc32":"%08x",' % zlib.crc32(rest) + rest


def head_of(line: bytes) -> dict[str, Any] | None:
    """Return the head of a line (with its end), or None if the line is torn or damaged.

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
        raise ValueError(f"head: expected keys with values, got {shown(head)}")
    return _shared(head)


def _shared(value: dict[str, Any]) -> dict[str, Any]:
    """Return a head with one string for each name, since thousands of heads are held at once."""
    return {sys.intern(k): _shared(v) if isinstance(v, dict) else v for k, v in value.items()}


def _changed(path: Path) -> OutputError:
    """Return the error for a line that has changed."""
    return OutputError(f"{path}: changed while it was in use.", "Rerun the same command.")


def journal_path(target: Path) -> Path:
    """Return the path of a table's journal: `ranks.csv.journal` for `ranks.csv`."""
    return target.with_name(target.name + ".journal")


def table_of(journal: Path) -> Path:
    """Return the path of the table whose journal this is."""
    return journal.with_name(journal.name.removesuffix(".journal"))


class Journal:
    """An open journal.

    Args:
        path: The file, which is created if missing.
        read_only: Whether nothing will be appended; the file must then exist.

    Raises:
        OutputError: If it cannot be opened, is not a journal, or is damaged before its last line.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self.is_sound = True  # until a body turns out to be invalid
        self._entries: dict[str, dict[Key, Entry]] = {}  # by kind: most are of one
        # By run, as far as they were read, with the offset of their line.
        self._settings: dict[str, tuple[int, Settings]] = {}
        self._end = 0
        try:
            flags = os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT
            # O_NONBLOCK: opening a pipe would wait for its other end.
            self._file: BinaryIO = os.fdopen(os.open(path, flags | os.O_NONBLOCK, 0o666), "rb")
        except OSError as error:
            raise cannot_write(path, error) from error
        try:
            self._check_kind()
            self._scan()
        except BaseException:  # raised again
            self._file.close()
            raise

    def _check_kind(self) -> None:
        if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            raise OutputError(
                f"{self.path}: is not a regular file.", "Remove it, or give another name with -o."
            )

    def _scan(self) -> None:
        for number, line in enumerate(_lines(self._file), start=1):
            try:
                head = self._head_of(line, number)
            except ValueError as error:
                raise _invalid(self.path, self._end, error) from error
            if head is None:
                # Only the last line can be torn; a bad one among others is damage of another kind.
                if self._file.read(1):
                    raise OutputError(f"{self.path}: line {number} is damaged.", _REPAIR)
                break
            self._keep(head, len(line))

    def _head_of(self, line: bytes, number: int) -> dict[str, Any] | None:
        head = head_of(line)
        if head is None:
            return None
        if number == 1 and (head.get("kind"), head.get("format")) != (_KIND, FORMAT):
            raise OutputError(
                f"{self.path}: is not a journal of this version of localrank.",
                "Give another name with -o, or start over with --overwrite.",
            )
        check_head(head)
        return head

    def _keep(self, head: dict[str, Any], length: int) -> None:
        of_kind = self._entries.setdefault(str(head.get("kind", "")), {})
        of_kind[_key(head)] = Entry(head, self._end, length)
        self._end += length

    @property
    def is_new(self) -> bool:
        """Whether nothing was ever written."""
        return not self._entries

    def entries(self, kind: str) -> list[Entry]:
        """Return the latest entry of each run and checkpoint of a kind, but for those gone."""
        every = self._entries.get(kind, {}).values()
        return [entry for entry in every if entry.head.get("status") != GONE]

    def body(self, entry: Entry) -> Any:
        """Return the body of a record.

        Raises:
            OutputError: If the file cannot be read, has changed, or has invalid content.
        """
        try:
            line = os.pread(self._file.fileno(), entry.length, entry.offset)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        if _sound_head(line) is None:
            raise _changed(self.path)
        settings = self._settings_of(entry.head) if entry.head["kind"] == _CHECKPOINT else None
        try:
            return _body_of(self.path, entry, line, settings)
        except OutputError:
            self.is_sound = False
            raise

    def _settings_of(self, head: dict[str, Any]) -> Settings | None:
        run = head["run"]
        entry = self._entries.get(_SETTINGS, {}).get(_key({"kind": _SETTINGS, "run": run}))
        if entry is None:
            return None
        offset, settings = self._settings.get(run, (-1, {}))
        if offset != entry.offset:
            settings = self.body(entry)
            self._settings[run] = entry.offset, settings
        return settings

    def check_settings(self) -> None:
        """Check that the journal holds the settings of every checkpoint's series.

        Raises:
            OutputError: If they are not.
        """
        there = {entry.head["run"] for entry in self.entries(_SETTINGS)}
        for entry in self.entries(_CHECKPOINT):
            if entry.head["run"] not in there:
                raise OutputError(
                    f"{self.path}: does not say which settings decided the numbers of"
                    f" {entry.head['run']!r}.",
                    "Something else wrote into it; start over with --overwrite.",
                )

    def append(self, head: dict[str, Any], body: Any, *, sync: bool = True) -> None:
        """Append a record, on the disk on return if `sync`.

        Raises:
            OutputError: If it cannot be written; what was there before is untouched.
        """
        self._append(head, line_of(head, body), sync=sync)

    def copy(self, head: dict[str, Any], line: bytes) -> None:
        """Append a line from `read_line` of another journal; `sync` brings it to the disk."""
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
        """Bring everything to the disk."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _cut(self) -> None:
        """Remove half a line."""
        with suppress(OSError):  # the checksum of half a line does not match: readers skip it
            os.ftruncate(self._file.fileno(), self._end)

    def move(self, path: Path) -> None:
        """Rename the file, replacing any file of that name."""
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

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            self._file.close()
        except OSError:  # a full disk, on which append has raised already
            if error is None:
                raise


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(descriptor, data[written:], offset + written)


def _key(head: dict[str, Any]) -> Key:
    names = ("kind", "run", "checkpoint", "points")
    return tuple(str(head.get(name, "")) for name in names)
