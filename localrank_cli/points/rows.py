"""Arrays that stay in their file: their rows are read when they are asked for.

They are read, not mapped: a mapped file counts against a limit of the address space, and a process
that has read all of it appears to hold all of it in memory.
"""

import math
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

import torch
from torch import Tensor

from localrank_cli.errors import DataError, readable
from localrank_cli.points.defaults import DEFAULT_POINTS

AT_ONCE = 2**24  # bytes; a smaller array is read whole
# Values that are read in vain so that one read serves for several rows.
_IN_VAIN = 2**14
_HELD = 8  # bytes of a value of a point that was drawn

Decode: TypeAlias = Callable[[bytearray], Tensor]  # bytes of values in order -> shape (values,)


class Rows(ABC):
    """An array in a file, as far as it is used like a tensor."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        self.shape = torch.Size(shape)
        self.dtype = dtype  # of the tensors that it returns

    @abstractmethod
    def read(self, start: int, stop: int) -> Tensor:
        """Return some rows, one after another in the file, as a contiguous tensor of their own."""

    def __getitem__(self, index: "slice | Tensor") -> Tensor:
        """Return the rows of a slice without a step, or of sorted indices."""
        if isinstance(index, slice):
            start, stop, _ = index.indices(self.shape[0])
            return self.read(start, max(start, stop))
        return torch.cat([self.read(one, one + 1) for one in index.tolist()])

    def reshape(self, *shape: int) -> "Rows":
        """Return the rows in another shape; their number must be the same."""
        return _Reshaped(self, shape)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def numel(self) -> int:
        """Return the number of values."""
        return math.prod(self.shape)

    def is_floating_point(self) -> bool:
        """Return whether the values are floats."""
        return self.dtype.is_floating_point

    def is_complex(self) -> bool:
        """Return whether the values are complex."""
        return self.dtype.is_complex


Data: TypeAlias = Tensor | Rows


class _Reshaped(Rows):
    def __init__(self, rows: Rows, shape: Sequence[int]) -> None:
        super().__init__(shape, rows.dtype)
        self._rows = rows

    def read(self, start: int, stop: int) -> Tensor:
        """Return some rows; see `Rows`."""
        return self._rows.read(start, stop).reshape(stop - start, *self.shape[1:])


@dataclass(frozen=True)
class Layout:
    """Where the values of an array are in a file, or in one of an archive's."""

    offset: int  # bytes before the first value
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # values between neighbours of each axis
    itemsize: int
    dtype: torch.dtype  # of what `decode` returns
    decode: Decode

    @property
    def span(self) -> int:
        """The number of values from the first to the last."""
        return _span(self.shape, self.strides)

    @property
    def end(self) -> int:
        """The offset of the byte after the last value."""
        return self.offset + self.span * self.itemsize


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of an array whose last axis changes fastest."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


class FileRows(Rows):
    """An array whose values lie in a file as they are, in any order of axes."""

    def __init__(self, path: Path, layout: Layout) -> None:
        super().__init__(layout.shape, layout.dtype)
        self._path, self._layout = path, layout

    def read(self, start: int, stop: int) -> Tensor:
        """Return some rows; see `Rows`.

        Raises:
            EOFError: If the file has become shorter.
        """
        layout = self._layout
        shape = (stop - start, *layout.shape[1:])
        with self._path.open("rb") as file:
            return self._block(file, start * layout.strides[0], shape, layout.strides)

    def _block(
        self, file: BinaryIO, first: int, shape: Sequence[int], strides: Sequence[int]
    ) -> Tensor:
        numel, span = math.prod(shape), _span(shape, strides)
        if numel == 0:
            return torch.empty(tuple(shape), dtype=self.dtype)
        if span <= 2 * numel + _IN_VAIN:
            layout = self._layout
            data = bytearray(span * layout.itemsize)
            file.seek(layout.offset + first * layout.itemsize)
            if _fill(file, data) < len(data):
                raise EOFError("the file ends before its last value")
            found = layout.decode(data).as_strided(tuple(shape), tuple(strides))
            # Else a copy: there are bytes of other values, and expanded axes share theirs.
            is_all = span == numel and found.is_contiguous()
            return found if is_all else found.clone(memory_format=torch.contiguous_format)
        # Its rows are far from each other: another axis changes faster than the first.
        axis = max((a for a, n in enumerate(shape) if n > 1), key=lambda a: strides[a])
        rest = tuple(shape[:axis]) + tuple(shape[axis + 1 :])
        steps = tuple(strides[:axis]) + tuple(strides[axis + 1 :])
        parts = [
            self._block(file, first + index * strides[axis], rest, steps)
            for index in range(shape[axis])
        ]
        return torch.stack(parts, dim=axis)


class PackedRows(Rows):
    """An array within a compressed file of an archive, read from its beginning again and again."""

    def __init__(self, path: Path, name: str, layout: Layout) -> None:
        super().__init__(layout.shape, layout.dtype)
        self._path, self._name, self._layout = path, name, layout
        self._bytes_of_row = math.prod(layout.shape[1:]) * layout.itemsize
        self._open: tuple[zipfile.ZipFile, BinaryIO] | None = None
        self._at = 0  # the row that comes next

    def read(self, start: int, stop: int) -> Tensor:
        """Return some rows; see `Rows`.

        Raises:
            EOFError: If the file has become shorter.
        """
        if self._open is None or start < self._at:
            self._begin()
        assert self._open is not None
        _, file = self._open
        skip(file, (start - self._at) * self._bytes_of_row)
        data = bytearray((stop - start) * self._bytes_of_row)
        if _fill(file, data) < len(data):
            raise EOFError("the file ends before its last value")
        self._at = stop
        return self._layout.decode(data).reshape(stop - start, *self.shape[1:])

    def _begin(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open[0].close()
        archive = zipfile.ZipFile(self._path)
        file: BinaryIO = archive.open(self._name)  # type: ignore[assignment]  # IO[bytes] of a member
        self._open, self._at = (archive, file), 0
        skip(file, self._layout.offset)


def chunks(data: Data) -> Iterator[tuple[int, Tensor]]:
    """Yield all rows in chunks of about `AT_ONCE` bytes, with the index of the first of each."""
    row = math.prod(data.shape[1:]) * data.dtype.itemsize
    step = max(1, AT_ONCE // max(1, row))
    for start in range(0, data.shape[0], step):
        yield start, data[start : start + step]


def check_memory(data: Data, wanted: int | None, memory: int | None, name: str) -> None:
    """Check that the points that are to be drawn fit in a budget of bytes (None: any).

    `wanted` is None for the default number of points.

    Raises:
        DataError: If they do not; with the numbers and the ways out.
    """
    if memory is None or data.ndim == 0:
        return
    count = min(DEFAULT_POINTS if wanted is None else wanted, data.shape[0])
    point = math.prod(data.shape[1:]) * _HELD
    if count * point > memory:
        fitting = memory // max(1, point)
        fewer = f"Ask for at most --points {fitting}, or give" if fitting else "Give"
        raise DataError(
            f"{name}: {count} points of {point // _HELD} entries need {readable(count * point)},"
            f" but the budget is {readable(memory)}.",
            f"{fewer} more with --memory.",
        )


def whole(data: Data, memory: int, name: str) -> Tensor:
    """Return all rows of an array that must fit in a budget of bytes, such as labels.

    Raises:
        DataError: If they do not; with the numbers and the ways out.
    """
    size = data.numel() * _HELD
    if isinstance(data, Rows) and size > memory:
        raise DataError(
            f"{name}: {data.numel()} entries need {readable(size)}, but the budget is"
            f" {readable(memory)}.",
            "Give more with --memory, or save fewer points.",
        )
    return data[:] if isinstance(data, Rows) else data


def skip(file: BinaryIO, count: int) -> None:
    """Read some bytes and forget them; a compressed file cannot be sought in.

    Raises:
        EOFError: If there are fewer.
    """
    while count:
        found = len(file.read(min(count, 2**20)))
        if not found:
            raise EOFError("the file ends before its last value")
        count -= found


def _fill(file: BinaryIO, data: bytearray) -> int:
    view, done = memoryview(data), 0
    while done < len(data):
        found = file.readinto(view[done:])  # type: ignore[attr-defined]  # BinaryIO of typeshed lacks it
        if not found:
            break
        done += found
    return done


def _span(shape: Sequence[int], strides: Sequence[int]) -> int:
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
