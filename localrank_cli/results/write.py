"""Write rows as CSV, TSV, JSON lines or parquet; a file appears whole or not at all."""

import csv
import errno
import fcntl
import json
import math
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from localrank_cli.errors import OutputError, UsageError
from localrank_cli.results.columns import Cell, Row, as_text, header

PARQUET = ".parquet"
_TEMPORARY = re.compile(r"\.(.+)\.\d+\.tmp", re.DOTALL)  # as temporary_path names it
_CONTROL = re.compile(r"[\x7f-\x9f]")
_DEAD = 3600.0  # seconds; without flock, a temporary file untouched for so long is a dead process's
FORMATS = (".csv", ".tsv", ".jsonl", PARQUET)


def check_suffix(path: Path) -> None:
    """Check that the suffix names a format that can be written.

    Raises:
        UsageError: If it does not.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(
            f"--output {path}: the suffix {path.suffix!r} is not a table format.",
            f"Supported: {', '.join(FORMATS)}, and - for CSV on standard output.",
        )
    if path.suffix.lower() == PARQUET and find_spec("pyarrow") is None:
        raise UsageError(
            f"--output {path}: parquet needs the package pyarrow, which is not installed.",
            "Install it with: pip install 'localrank[parquet]'; or write .csv.",
        )
    real = Path(os.path.realpath(path))
    if os.path.islink(path) and real.suffix.lower() != path.suffix.lower():  # noqa: PTH114  # Path raises for too long a name
        raise UsageError(
            f"--output {path}: is a link to {real}, whose suffix names another format or none.",
            "Give both the same suffix, or name another file with -o.",
        )


class RowWriter:
    """Writer of rows to a stream.

    Args:
        stream: A text stream without newline translation.
        columns: The header.
        suffix: The format.
        flush: Whether to flush after each call, so that a reader sees the rows at once.
    """

    def __init__(
        self, stream: TextIO, columns: Sequence[str], suffix: str = ".csv", *, flush: bool = True
    ) -> None:
        self._stream = stream
        self._flush = flush
        self._columns = tuple(columns)
        self._json = suffix == ".jsonl"
        delimiter = "\t" if suffix == ".tsv" else ","
        self._csv = csv.writer(stream, delimiter=delimiter, lineterminator="\n")
        if not self._json:
            self._csv.writerow(self._columns)

    def write(self, rows: Iterable[Row]) -> None:
        """Write rows."""
        for row in rows:
            if self._json:
                cells = {name: _json_cell(row.get(name)) for name in self._columns}
                line = json.dumps(cells, ensure_ascii=False)
                # JSON itself escapes the control characters below these.
                self._stream.write(_CONTROL.sub(lambda c: f"\\u{ord(c[0]):04x}", line) + "\n")
            else:
                self._csv.writerow([as_text(row.get(name)) for name in self._columns])
        if self._flush:
            self._stream.flush()


def write_table(target: Path, rows: Iterable[Row], extra: tuple[str, ...] = ()) -> None:
    """Write a table, whole or not at all; the suffix names its format."""
    write_rows(target, rows, header(extra))


def write_rows(target: Path, rows: Iterable[Row], columns: Sequence[str]) -> None:
    """Write rows of any columns, whole or not at all; the suffix names the format."""
    suffix = target.suffix.lower()
    if suffix == PARQUET:
        with replacing(target, binary=True) as stream:
            from localrank_cli.results.read import to_frame

            to_frame(rows, columns).to_parquet(stream, index=False)
        return
    with replacing(target) as stream:
        writer = RowWriter(stream, columns, suffix, flush=False)
        writer.write(rows)


def write_json(target: Path, value: object) -> None:
    """Write JSON, whole or not at all."""
    with replacing(target) as stream:
        json.dump(value, stream, indent=2, ensure_ascii=False)
        stream.write("\n")


@contextmanager
def replacing(target: Path, *, binary: bool = False) -> Iterator[Any]:
    """Open a file beside its target; it replaces the target once it is on the disk.

    Yields:
        The open file, of bytes or of text.

    Raises:
        OutputError: If it cannot be written; nothing is left behind, and the target is as it was.
    """
    temporary = temporary_path(target)
    text: dict[str, str] = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    try:
        descriptor = _create_locked(temporary)
        try:
            with os.fdopen(
                descriptor, "wb" if binary else "w", **({} if binary else text)
            ) as stream:  # type: ignore[call-overload]  # the mode decides what else fits
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
                temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(target, error) from error


def _create_locked(path: Path) -> int:
    """Create a temporary file and lock it, so that others see whether its process lives."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        with suppress(OSError):  # a file system without flock: its age decides
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Another process may have taken it for a dead one's before it was locked.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents where missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def temporary_path(target: Path) -> Path:
    """Return the path of a hidden file beside a target, of this process, to write it whole."""
    return target.with_name(f".{target.name}.{os.getpid()}.tmp")


def remove_temporary(*targets: Path) -> None:
    """Remove temporary files that killed processes left beside some targets."""
    names: dict[Path, set[str]] = {}
    for target in targets:
        names.setdefault(target.parent, set()).add(target.name)
    for folder, of_folder in names.items():
        remove_temporary_in(folder, of_folder.__contains__)


def remove_temporary_in(folder: Path, is_ours: Callable[[str], bool]) -> None:
    """Remove temporary files that killed processes left in a folder.

    Args:
        folder: Other processes may be writing into it: their files stay.
        is_ours: Whether a name is that of a file that this program writes there.
    """
    for path in folder.glob(".*.tmp"):
        if (match := _TEMPORARY.fullmatch(path.name)) and is_ours(match[1]):
            with suppress(OSError):  # litter that no reader takes for a table
                _remove_dead(path)


def _remove_dead(path: Path) -> None:
    """Remove a temporary file unless a process is writing it."""
    if path.is_symlink():
        path.unlink()
        return
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError:  # no flock here
            if file_server_time(path.parent) - os.fstat(descriptor).st_mtime < _DEAD:
                return
        path.unlink()
    finally:
        os.close(descriptor)


def file_server_time(folder: Path) -> float:
    """Return the time by the clock that dates files in a folder, which may be another host's."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b" ")
        file.flush()
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_mtime


def refuse_existing(target: Path) -> None:
    """Refuse to overwrite a file that has no journal beside it.

    Raises:
        OutputError: If it exists.
    """
    for path in (target, manifest_path(target)):
        if path.exists() or path.is_symlink():
            raise OutputError(
                f"{path}: already exists, but there is no journal next to it to resume from.",
                "Give another name with -o, or start over with --overwrite.",
            )


def manifest_path(target: Path) -> Path:
    """Return the path of a table's manifest: `ranks.csv.json` for `ranks.csv`."""
    return target.with_name(target.name + ".json")


def cannot_write(target: Path, error: OSError) -> OutputError:
    """Return the error for a file that the system refuses to write."""
    advice = "Choose another place with -o, or free space there."
    # Some folders that exist hold no files of ours, such as /proc.
    if isinstance(error, FileNotFoundError) and not target.parent.is_dir():
        advice = f"Make the folder {target.parent} first, or choose another place with -o."
    elif error.errno == errno.ENAMETOOLONG:
        advice = "Choose a shorter name."
    return OutputError(f"{target}: cannot be written ({error.strerror or error}).", advice)


def real_target(path: Path) -> Path:
    """Return the file that the name of an output leads to, through links; absolute.

    It need not exist. The journal, manifest and lock of a table are beside that file, whichever of
    its names is given.

    Raises:
        OutputError: If something that is not a file has the name, or links lead in a circle.
    """
    real = Path(os.path.realpath(path)) if os.path.islink(path) else path.absolute()  # noqa: PTH114  # Path raises for too long a name
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return real
    except OSError as error:
        raise cannot_write(path, error) from error
    if not is_file:
        raise OutputError(f"{path}: is not a file.", "Choose another name with -o.")
    return real


def written(name: Path) -> str:
    """Return a note that a table of a name given by the user, and its manifest, are written."""
    manifest = manifest_path(name).name
    return f"wrote {name} and {manifest_path(real_target(name)) if name.is_symlink() else manifest}"


def _json_cell(cell: Cell) -> Cell:
    if isinstance(cell, float):
        return float(as_text(cell)) if math.isfinite(cell) else None
    return cell


def check_replaceable(target: Path) -> None:
    """Check, before any work, that a file can be written or replaced.

    Raises:
        OutputError: If its folder is missing or closed, or something else has its name.
    """
    target = real_target(target)
    if not target.parent.is_dir():
        raise cannot_write(target, FileNotFoundError(2, "No such file or directory"))
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise cannot_write(target, PermissionError(13, "Permission denied"))


def write_bytes(target: Path, *parts: bytes | memoryview) -> None:
    """Write a file, whole or not at all, through a link so that the link stays one."""
    target = real_target(target)
    remove_temporary(target)
    with replacing(target, binary=True) as stream:
        for part in parts:
            stream.write(part)
