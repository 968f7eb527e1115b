"""Tables as pandas DataFrames: built of rows, or read from CSV, TSV, JSON lines or Parquet."""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import pandas as pd

from localrank_cli.errors import DataError, SettingsError, UsageError, one_line, shortened
from localrank_cli.results.columns import (
    COLUMNS,
    FLOAT,
    INT,
    OPTIONAL,
    OPTIONAL_INT,
    STR,
    Row,
    on_one_line,
    pair_names,
)
from localrank_cli.results.compressed import BUDGETS

READABLE = (".csv", ".tsv", ".jsonl", ".parquet")
# The columns that every figure needs. `status` is not among them, so that tables made by hand work.
NEEDED = ("run", "step", "layer", "layer_index", "tolerance")
_OK = "ok"
_LONGEST_LINE = 2**24
_LIMIT = 2.0**63  # tables hold whole numbers as int64
# The numbers of budgets.csv that are drawn, and the least and most that they can be.
_BUDGET_RANGES = {
    "budget": (0.0, 1.0),
    "weights": (1.0, _LIMIT),
    "loss": (-math.inf, math.inf),
    "loss_increase_se": (0.0, math.inf),
}
_DTYPES = {INT: "int64", OPTIONAL_INT: "Int64", FLOAT: "float64"}


def to_frame(rows: Iterable[Row], columns: Sequence[str]) -> pd.DataFrame:
    """Build a DataFrame of rows at full precision, with the dtypes of `docs/table.md`."""
    every = list(rows)
    data = {name: [row.get(name) for row in every] for name in columns}
    frame = pd.DataFrame(data, columns=list(columns))
    dtypes = {
        name: _DTYPES[kind]
        for name, kind in (COLUMNS | OPTIONAL).items()
        if name in data and kind in _DTYPES
    }
    for name, kind in COLUMNS.items():
        if kind == INT and name in data and None in data[name]:  # of failed checkpoints
            dtypes[name] = _DTYPES[OPTIONAL_INT]
    return frame.astype(dtypes)


def read_tables(paths: Sequence[Path]) -> pd.DataFrame:
    """Read tables into one.

    With several files, `run` gets the name of its file where two have the same run, and the column
    `table` names the file.

    Raises:
        UsageError: If two of the files are the same, or a suffix is unknown.
        DataError: If one cannot be read.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError("the same table is given twice.", "Name each file once.")
    frames = [read_table(path) for path in paths]
    if len(frames) == 1:
        return frames[0]
    names = _distinct_names(paths)
    owners: dict[str, set[str]] = {}
    for name, frame in zip(names, frames, strict=True):
        for run in frame["run"].unique():
            owners.setdefault(str(run), set()).add(name)
    for name, frame in zip(names, frames, strict=True):
        frame["run"] = [f"{name}: {run}" if len(owners[run]) > 1 else run for run in frame["run"]]
        frame["table"] = name
    return pd.concat(frames, ignore_index=True)


def read_table(path: Path, needed: Iterable[str] = NEEDED, writer: str = "analyze") -> pd.DataFrame:
    """Read one table that a command `writer` wrote, which must have the columns `needed`.

    Texts are str, on one line as in CSV, missing ones empty; numbers are int64 where none is
    missing and all must be whole, else float64 with NaN.

    Raises:
        UsageError: If the suffix is not that of a table.
        DataError: If it cannot be read, holds no rows, lacks a column, or holds a word where a
            number should be.
    """
    frame = _texts(path, writer)
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        there = ", ".join(map(str, frame.columns[:8])) + (", ..." if frame.shape[1] > 8 else "")
        raise DataError(
            f"{path}: has no column {', '.join(missing)} (it has {there}).",
            f"Name a table that localrank {writer} wrote.",
        )
    if frame.empty:
        raise DataError(f"{path}: holds a header but no rows.", f"Run localrank {writer} again.")
    columns = {str(name): _typed(path, str(name), frame[name]) for name in frame.columns}
    typed = pd.DataFrame(columns)
    _check_places(path, typed)
    return _with_sources(typed)


def _check_places(path: Path, frame: pd.DataFrame) -> None:
    """Check that every row which did not fail has a step and a layer."""
    good = pd.Series(True, frame.index)
    if "status" in frame.columns:
        good = frame["status"] == _OK
    for name in ("step", "layer_index"):
        if name in frame.columns and (good & frame[name].isna()).any():
            row = int((good & frame[name].isna()).to_numpy().argmax())
            raise DataError(
                f"{path}: column {name}, row {row + 1}: expected a whole number, got nothing.",
                "Name a table that localrank analyze wrote.",
            )


def _with_sources(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table in which layers with several sources are named `LAYER from SOURCE`.

    To figures and pages each pair of a layer and a source is a layer of its own.
    """
    if not {*NEEDED, "wrt"} <= set(frame.columns):
        return frame
    parts = []
    for _, part in frame.groupby("run", sort=False):
        pairs = list(zip(part["layer"], part["wrt"], strict=True))
        names = pair_names(pairs)
        parts.append(pd.Series([names[pair] for pair in pairs], index=part.index))
    return frame.assign(layer=pd.concat(parts)) if parts else frame


def without_failed(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the rows whose status is ok, and a sentence on the others; empty without others.

    Raises:
        DataError: If no row is left.
    """
    if "status" not in frame.columns:
        return frame, ""
    failed = frame[frame["status"] != _OK]
    if failed.empty:
        return frame, ""
    words = ", ".join(f"{count} {word}" for word, count in failed["status"].value_counts().items())
    steps = sorted({int(step) for step in failed["step"].dropna()})
    at = ", ".join(map(str, steps[:5])) + (", ..." if len(steps) > 5 else "")
    note = (
        f"{len(failed)} of {len(frame)} rows are left out because they failed ({words}; step {at})"
    )
    if len(failed) == len(frame):
        raise DataError(
            f"the table has no row whose status is ok ({words}).",
            "The column message gives the reasons.",
        )
    return frame[frame["status"] == _OK].reset_index(drop=True), note


def split_spec(text: str) -> tuple[Path, str]:
    """Split FILE:COLUMN.

    Raises:
        UsageError: If it has no such form.
    """
    file, colon, column = text.rpartition(":")
    if not colon or not file or not column:
        raise UsageError(f"--with {text}: not of the form METRICS.csv:COLUMN.")
    return Path(file), column


def read_metrics(path: Path, column: str) -> pd.DataFrame:
    """Read a column of numbers, with its columns `step` and, where runs differ, `run`.

    Raises:
        DataError: If the column is missing, or holds no numbers.
    """
    frame = read_table(path, needed=("step",))
    others = [str(name) for name in frame.columns if name not in {"step", "run"}]
    if column not in frame.columns:
        raise DataError(
            f"{path}: has no column {column}.", f"It has {', '.join(others) or 'no others'}."
        )
    if not pd.api.types.is_numeric_dtype(frame[column]):
        raise DataError(f"{path}: column {column} holds no numbers.")
    return frame


def read_budgets(path: Path) -> pd.DataFrame:
    """Read the table `budgets.csv` of `localrank compress`.

    Raises:
        UsageError: If the suffix is not that of a table.
        DataError: If it cannot be read, or a number is missing or impossible.
    """
    frame = read_table(path, BUDGETS, "compress")
    for name, (least, most) in _BUDGET_RANGES.items():
        cells = frame[name]
        numbers = pd.to_numeric(cells, errors="coerce")
        is_missing = cells.isna() | (cells == "")  # a method without ranks has no loss
        bad = ~(is_missing | numbers.between(least, most))
        if bad.any():
            row = int(bad.to_numpy().argmax())
            limits = (f" {word} {one:g}" for word, one in (("from", least), ("to", most)))
            expected = "a number" + "".join(one for one in limits if "inf" not in one)
            raise DataError(
                f"{path}: column {name}, row {row + 1}: expected {expected}, got"
                f" {shortened(cells.iloc[row])!r}.",
                "Name a table that localrank compress wrote.",
            )
    return frame


def _texts(path: Path, writer: str) -> pd.DataFrame:
    """Return all cells as in the file."""
    suffix = path.suffix.lower()
    if suffix not in READABLE:
        raise UsageError(
            f"{path}: the suffix {path.suffix!r} is not a table format.",
            f"Supported: {', '.join(READABLE)}.",
        )
    try:
        if suffix == ".parquet":
            return _parquet(path)
        if path.stat().st_size == 0:
            raise DataError(f"{path}: is empty.", f"Run localrank {writer} again.")
        if suffix == ".jsonl":
            return _json_lines(path)
        return _separated(path, "\t" if suffix == ".tsv" else ",")
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}).", "Check the name."
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not UTF-8 text.", "Name a table written by localrank."
        ) from error
    except (ValueError, csv.Error) as error:
        reason = one_line(error)
        raise DataError(f"{path}: is not a table ({reason}).", "Was it cut off?") from error


def _lines(stream: TextIO) -> Iterator[str]:
    """Yield the lines of a table.

    Raises:
        ValueError: If one is longer than in any table: a file with a hole is one line of gigabytes.
    """
    while line := stream.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE and not line.endswith("\n"):
            raise ValueError(f"a line has over {_LONGEST_LINE:,} letters")
        yield line


def _separated(path: Path, delimiter: str) -> pd.DataFrame:
    # pandas would fill up a line that was cut off.
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(_lines(stream), delimiter=delimiter, strict=True)
        header = next(reader, [])
        if not header or len(set(header)) < len(header):
            raise csv.Error("its first line names no columns, or one twice")
        rows = []
        for row in reader:
            if len(row) != len(header):
                raise csv.Error(
                    f"line {reader.line_num} has {len(row)} cells, the header {len(header)}"
                )
            rows.append(row)
    return pd.DataFrame(rows, columns=header, dtype=object)


def _json_lines(path: Path) -> pd.DataFrame:
    rows = []
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(_lines(stream), 1):
            if not line.strip():
                continue
            row = json.loads(line)
            if not isinstance(row, dict):
                raise csv.Error(f"line {number} is not a JSON object")
            rows.append(row)
    return pd.DataFrame(rows)


def _parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except ImportError as error:
        raise SettingsError(
            f"{path}: reading Parquet needs pyarrow, which is not installed.",
            "Run: pip install pyarrow",
        ) from error


def _typed(path: Path, name: str, cells: "pd.Series[str]") -> pd.Series:
    kind = COLUMNS.get(name)
    if kind == STR:
        return _names(cells)
    empty = cells.isna() | (cells == "")
    # A NaN that analyze would never write as text counts as missing as well.
    parsed = pd.to_numeric(cells.where(~empty), errors="coerce")
    if kind == INT and parsed.dtype == "int64":
        return parsed  # float64 would round those beyond 2^53
    numbers = parsed.astype("float64")
    bad = numbers.isna() & ~empty & ~cells.astype(str).str.lower().isin(["nan"])
    if kind is None:
        return _names(cells) if bad.any() else numbers
    if kind in {INT, OPTIONAL_INT}:
        bad |= numbers.notna() & ((numbers % 1 != 0) | (numbers.abs() >= _LIMIT))
    if bad.any():
        row = int(bad.to_numpy().argmax())
        expected = "a number" if kind not in {INT, OPTIONAL_INT} else "a whole number"
        raise DataError(
            f"{path}: column {name}, row {row + 1}: expected {expected}, got {cells.iloc[row]!r}.",
            "Name a table that localrank analyze wrote.",
        )
    if kind == INT and not numbers.isna().any():
        return numbers.astype("int64")
    return numbers


def _names(cells: "pd.Series[str]") -> "pd.Series[str]":
    return cells.fillna("").astype(str).map(on_one_line).astype(object)


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return for each path its shortest ending, without the suffix, that is unique."""
    parts = [path.resolve().with_suffix("").parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [path.name for path in paths]  # they differ in the suffix only
