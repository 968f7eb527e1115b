"""Writes rows as CSV, TSV or JSON lines; a file appears whole or not at all."""

import csv
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from localrank_cli.errors import OutputError, UsageError
from localrank_cli.table.columns import Cell, Row, as_text

FORMATS = (".csv", ".tsv", ".jsonl")


def check_suffix(path: Path) -> None:
    """Checks that the suffix names a format.

    Args:
        path: The output file.

    Raises:
        UsageError: If it does not.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(
            f"--output {path}: the suffix {path.suffix!r} names no format.",
            f"Known are {', '.join(FORMATS)}, and - for CSV on standard output.",
        )


class RowWriter:
    """Writes rows to a stream.

    Args:
        stream: Where to; text, without newline translation.
        columns: The header.
        suffix: The format.
    """

    def __init__(self, stream: TextIO, columns: Sequence[str], suffix: str = ".csv") -> None:
        self._stream = stream
        self._columns = tuple(columns)
        self._json = suffix == ".jsonl"
        delimiter = "\t" if suffix == ".tsv" else ","
        self._csv = csv.writer(stream, delimiter=delimiter, lineterminator="\n")
        if not self._json:
            self._csv.writerow(self._columns)

    def write(self, rows: Iterable[Row]) -> None:
        """Writes rows and flushes.

        Args:
            rows: In their final order.
        """
        for row in rows:
            if self._json:
                cells = {name: _json_cell(row.get(name)) for name in self._columns}
                self._stream.write(json.dumps(cells, ensure_ascii=False) + "\n")
            else:
                self._csv.writerow([as_text(row.get(name)) for name in self._columns])
        self._stream.flush()


class OutputFile:
    """A file that is written beside its target and takes its name only when whole.

    Args:
        target: The output file; must not exist.

    Raises:
        OutputError: If the target exists, or nothing can be written beside it.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        refuse_existing(target)
        self._temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            # Opened before any work, so that a folder without write permission is known at once.
            self.stream: TextIO = self._temporary.open(
                "w", encoding="utf-8", errors="backslashreplace", newline=""
            )
        except OSError as error:
            raise cannot_write(target, error) from error

    def finish(self) -> None:
        """Brings everything to the disk.

        Raises:
            OutputError: If that fails; nothing is left behind.
        """
        try:
            self.stream.flush()
            os.fsync(self.stream.fileno())
            self.stream.close()
        except OSError as error:
            raise cannot_write(self.target, error) from error

    def commit(self) -> None:
        """Gives the finished file its name.

        Raises:
            OutputError: If that fails; nothing is left behind.
        """
        try:
            self._temporary.replace(self.target)
        except OSError as error:
            raise cannot_write(self.target, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.stream.close()
        except OSError:
            if error is None:
                raise
        finally:
            self._temporary.unlink(missing_ok=True)


def refuse_existing(target: Path) -> None:
    """Refuses to write over what is there.

    Args:
        target: The output file.

    Raises:
        OutputError: If it exists.
    """
    for path in (target, manifest_path(target)):
        if path.exists() or path.is_symlink():
            raise OutputError(
                f"{path}: exists already.", "Give another name with -o, or remove it first."
            )


def manifest_path(target: Path) -> Path:
    """Where the manifest of a table stands.

    Args:
        target: The table.

    Returns:
        `ranks.csv.json` for `ranks.csv`.
    """
    return target.with_name(target.name + ".json")


def commit_with_manifest(table: OutputFile, manifest: dict[str, object]) -> None:
    """Gives a table its name, with its manifest beside it; both or none.

    Args:
        table: With all its rows.
        manifest: Anything that JSON can hold.

    Raises:
        OutputError: If one of them cannot be written.
    """
    target = manifest_path(table.target)
    with OutputFile(target) as beside:
        try:
            json.dump(manifest, beside.stream, indent=2, ensure_ascii=False)
            beside.stream.write("\n")
        except OSError as error:
            raise cannot_write(target, error) from error
        beside.finish()
        table.finish()
        beside.commit()
        try:
            table.commit()
        except OutputError:
            target.unlink(missing_ok=True)
            raise


def cannot_write(target: Path, error: OSError) -> OutputError:
    """Says why a file cannot be written.

    Args:
        target: The file.
        error: What the system said.

    Returns:
        The error to raise.
    """
    advice = "Choose another place with -o, or free space there."
    if isinstance(error, FileNotFoundError):
        advice = f"Make the folder {target.parent} first, or choose another place with -o."
    return OutputError(f"{target}: cannot be written ({error.strerror or error}).", advice)


def _json_cell(cell: Cell) -> Cell:
    if isinstance(cell, float):
        return float(as_text(cell)) if math.isfinite(cell) else None
    return cell
