"""The headers of weights on another machine: names, shapes and counters, without large tensors."""

import io
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from torch import Tensor

from localrank_cli.archives import outline
from localrank_cli.checkpoints.content import DAMAGED
from localrank_cli.checkpoints.formats import weights_suffix
from localrank_cli.checkpoints.pickles import Inert
from localrank_cli.checkpoints.torch_file import load_torch
from localrank_cli.errors import UnreadableError
from localrank_cli.remote.store import StoredFile

_SAFETENSORS = ".safetensors"
_FIRST_READ = 2**18  # bytes: most headers of safetensors
_MOST_HEADER = 100 * 2**20  # that of safetensors itself
_LAST_READ = 2**18  # bytes: the list at the end of most files of torch.save
# A hole saves less time than a further request costs if it has fewer bytes.
_LEAST_HOLE = 2**20
_AT_ONCE = 8  # parts of a file that are read in parallel
_ZIP = b"PK\x03\x04"


@dataclass(frozen=True)
class Piece:
    """A part of a file."""

    start: int
    content: bytes


class Reader(Protocol):
    """Reads parts of stored files."""

    def whole_part(self, file: StoredFile, start: int, end: int) -> bytes:
        """Return the bytes of a file from `start` to `end`."""
        ...

    def address_of(self, file: StoredFile) -> str:
        """Return the address of a file, for messages."""
        ...


def head_of(file: StoredFile, reader: Reader) -> list[Piece] | None:
    """Return the parts of a file of weights that show what is in it; None if all of it is needed.

    Raises:
        UnreadableError: If it cannot be read, or is none of its format.
    """
    suffix = weights_suffix(file.path).lower()
    if suffix == _SAFETENSORS:
        return [Piece(0, _of_safetensors(file, reader))]
    return _of_torch(file, reader) if suffix else None


def _of_safetensors(file: StoredFile, reader: Reader) -> bytes:
    start = reader.whole_part(file, 0, min(_FIRST_READ, file.size))
    length = 8 + int.from_bytes(start[:8], "little")
    if length > min(file.size, _MOST_HEADER):
        raise UnreadableError(f"{reader.address_of(file)}: is not a safetensors file.", DAMAGED)
    if length > len(start):
        start += reader.whole_part(file, len(start), length)
    return start[:length]


def _of_torch(file: StoredFile, reader: Reader) -> list[Piece] | None:
    """Return the parts of an archive of torch.save, all of a small file; None for an older one."""
    if file.size < 2 * _LEAST_HOLE:
        return [Piece(0, reader.whole_part(file, 0, file.size))]
    if reader.whole_part(file, 0, len(_ZIP)) != _ZIP:
        return None
    try:
        parts = outline(cast("BinaryIO", _Ranges(file, reader)), _LEAST_HOLE)
    except (ValueError, OSError):  # reported when the whole file is read
        return None
    if sum(end - start for start, end in parts) > file.size // 2:
        return None
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        contents = pool.map(lambda part: reader.whole_part(file, *part), parts)
        return [Piece(start, found) for (start, _), found in zip(parts, contents, strict=True)]


def shows_counters(path: Path) -> bool:
    """Return whether a file of torch.save with holes is read, and all of its counters are there.

    A counter may be a tensor of one value that is a part of a large one, which is a hole.
    """
    if weights_suffix(path.name).lower() == _SAFETENSORS:
        return True
    try:
        loaded = load_torch(path)
    except UnreadableError:  # reported when the whole file is read
        return False
    return not any(
        one.numel() == 1 and one.untyped_storage().nbytes() >= _LEAST_HOLE
        for one in _tensors(loaded)
    )


def _tensors(value: object) -> Iterator[Tensor]:
    """Yield the tensors within what torch.save wrote, at any depth."""
    waiting, seen = [value], set[int]()
    while waiting:
        one = waiting.pop()
        if isinstance(one, Tensor):
            yield one
        if id(one) in seen or isinstance(one, (Tensor, str, bytes)):
            continue
        seen.add(id(one))
        if isinstance(one, Mapping):
            waiting += one.values()
        elif isinstance(one, (list, tuple, set)):
            waiting += one
        elif isinstance(one, Inert):
            waiting += [one.args, one.items, one.values, one.state]


class _Ranges(io.RawIOBase):
    """A stored file to be read from any place, whose end has been read already."""

    def __init__(self, file: StoredFile, reader: Reader) -> None:
        self._file, self._reader, self._at = file, reader, 0
        self._tail_at = max(0, file.size - _LAST_READ)
        self._tail = reader.whole_part(file, self._tail_at, file.size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, which no read is needed for."""
        self._at = offset + (self._file.size if whence == io.SEEK_END else 0)
        return self._at

    def tell(self) -> int:
        """Return the place."""
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        """Return the bytes that follow, or all of them."""
        end = self._file.size if size < 0 else min(self._at + size, self._file.size)
        start, self._at = self._at, max(end, self._at)
        if start >= end:
            return b""
        if start >= self._tail_at:
            return self._tail[start - self._tail_at : end - self._tail_at]
        return self._reader.whole_part(self._file, start, end)
