"""The journal beside a table: while a run is not finished, this file is the truth.

One line for each record, `{"crc32": ..., "head": {...}, "body": {...}}`, appended and fsynced. A
line that a crash tore is cut at the next start; heads tell what there is without the bodies being
read. A later record of the same kind, run, checkpoint and points takes the place
of an earlier one.
"""

import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from localrank_cli.errors import OutputError
from localrank_cli.table.journal_lines import Entry, changed, head_of, line_of
from localrank_cli.table.write import cannot_write

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
