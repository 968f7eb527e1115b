"""What the `.metadata` of torch.distributed.checkpoint says: which tensors lie where."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from localrank_cli.checkpoints.dcp_pickle import DcpMetadata, DcpTensor, unpickle
from localrank_cli.checkpoints.faults import DAMAGED, cannot_read, shown
from localrank_cli.checkpoints.sharded import check_inside
from localrank_cli.errors import UnreadableError, cause

_MOST_VALUES = 2**60


@dataclass(frozen=True)
class Piece:
    """Where a part of a tensor, or a whole value, lies."""

    file: str  # inside the checkpoint's folder
    start: int
    length: int
    offsets: tuple[int, ...] = ()  # of the part in the tensor
    sizes: tuple[int, ...] = ()  # of the part


@dataclass(frozen=True)
class Entry:
    """One tensor or value of a checkpoint."""

    path: tuple[str, ...]  # in the dict that was saved, such as ("model", "0.weight")
    pieces: tuple[Piece, ...]
    dtype: torch.dtype | None = None  # None: no tensor
    size: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """For messages."""
        return shown(".".join(self.path))


def read_metadata(path: Path) -> list[Entry]:
    """Lists what a folder of torch.distributed.checkpoint holds.

    Args:
        path: Its `.metadata`.

    Returns:
        All entries, in the order of the file.

    Raises:
        UnreadableError: If it is damaged, would run code, or names files outside its folder.
    """
    try:
        entries = _entries(unpickle(path))
    except (AttributeError, TypeError, ValueError, KeyError, RecursionError) as error:
        raise UnreadableError(
            f"{path}: not the metadata of torch.distributed.checkpoint ({cause(error)}).",
            DAMAGED,
        ) from error
    for name in {piece.file for entry in entries for piece in entry.pieces}:
        check_inside(path, name)
    return entries


def check_files(path: Path, entries: list[Entry]) -> None:
    """Checks that every piece lies in a file of the folder that is long enough.

    Args:
        path: The `.metadata`.
        entries: What is needed of it.

    Raises:
        UnreadableError: If a file is missing, too short, or outside the folder.
    """
    ends: dict[str, int] = {}
    for entry in entries:
        for piece in entry.pieces:
            ends[piece.file] = max(ends.get(piece.file, 0), piece.start + piece.length)
    for name, end in ends.items():
        file = path.parent / name
        try:
            size = file.stat().st_size
        except FileNotFoundError as error:
            raise UnreadableError(
                f"{file}: there is no such file, and {path} says that it holds weights.",
                "Copy the whole checkpoint again, or leave it out with --pattern.",
            ) from error
        except OSError as error:
            raise cannot_read(file, error) from error
        if size < end:
            raise UnreadableError(
                f"{file}: has {size} bytes, and {path} places weights up to byte {end}.", DAMAGED
            )


def _entries(metadata: Any) -> list[Entry]:
    if not isinstance(metadata, DcpMetadata):
        raise TypeError(f"it holds a {type(metadata).__name__}")
    storage = {index.key: info for index, info in _mapping(metadata, "storage_data").items()}
    paths = metadata.planner_data if isinstance(metadata.planner_data, Mapping) else {}
    found: list[Entry] = []
    for name, value in _mapping(metadata, "state_dict_metadata").items():
        path = _path(paths.get(name, (name,)))
        if isinstance(value, DcpTensor):
            found.append(_tensor(name, path, value, storage))
        elif (name, None) in storage:
            found.append(Entry(path, (_piece(storage[name, None]),)))
    return found


def _path(parts: Any) -> tuple[str, ...]:
    if not isinstance(parts, (tuple, list)) or not parts:
        raise TypeError("a path is no path")
    if not all(isinstance(part, (str, int)) for part in parts):
        raise TypeError("a path is not of names")
    return tuple(map(str, parts))


def _mapping(metadata: Any, name: str) -> Mapping[Any, Any]:
    value = vars(metadata).get(name)
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is no dict")
    return value


def _tensor(
    name: str, path: tuple[str, ...], value: Any, storage: Mapping[tuple[Any, Any], Any]
) -> Entry:
    size, dtype = _ints(value.size), value.properties.dtype
    if not isinstance(dtype, torch.dtype):
        raise TypeError("a tensor has no type")
    pieces = []
    for chunk in value.chunks:
        offsets, sizes = _ints(chunk.offsets), _ints(chunk.sizes)
        info = storage.get((name, offsets)) or storage.get((name, None))
        if info is None:
            raise ValueError("a piece of a tensor is in no file")
        pieces.append(_piece(info, offsets, sizes))
    _check_cover(size, pieces)
    return Entry(path, tuple(pieces), dtype, size)


def _piece(info: Any, offsets: tuple[int, ...] = (), sizes: tuple[int, ...] = ()) -> Piece:
    if info.transform_descriptors:
        raise ValueError("its files are compressed")
    if not isinstance(info.relative_path, str):
        raise TypeError("a file has no name")
    start, length = _ints((info.offset, info.length))
    return Piece(info.relative_path, start, length, offsets, sizes)


def _ints(values: Any) -> tuple[int, ...]:
    found = tuple(values)
    if not all(type(value) is int and 0 <= value < _MOST_VALUES for value in found):
        raise ValueError("sizes are no sizes")
    return found


def _check_cover(size: tuple[int, ...], pieces: list[Piece]) -> None:
    """Pieces inside the tensor, apart from each other, and as many values as the tensor has."""
    boxes = [tuple(zip(p.offsets, p.sizes, strict=True)) for p in pieces]
    inside = all(
        len(box) == len(size)
        and all(start + length <= whole for (start, length), whole in zip(box, size, strict=True))
        for box in boxes
    )
    count = sum(_count(piece.sizes) for piece in pieces)
    if _count(filter(None, size)) >= _MOST_VALUES:  # torch cannot hold the shape, even if empty
        raise ValueError(f"a tensor has the shape {list(size)}")
    if not inside or count != _count(size) or count >= _MOST_VALUES or _overlap(boxes):
        raise ValueError(f"the pieces of a tensor do not make up its shape {list(size)}")


def _overlap(boxes: list[tuple[tuple[int, int], ...]]) -> bool:
    ordered = sorted(box for box in boxes if all(length for _, length in box))
    for number, one in enumerate(ordered):
        for other in ordered[number + 1 :]:
            if one and other[0][0] >= sum(one[0]):
                break  # sorted by where they begin on the first axis: the rest begins later
            if all(a < c + d and c < a + b for (a, b), (c, d) in zip(one, other, strict=True)):
                return True
    return False


def _count(sizes: Iterable[int]) -> int:
    count = 1
    for size in sizes:
        count *= size
    return count
