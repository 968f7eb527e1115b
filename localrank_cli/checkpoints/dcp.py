"""Folders of torch.distributed.checkpoint, read without a process group and without its code.

The `.metadata` is a pickle: `_Unpickler` knows only the names that torch writes, and maps them to
classes of this file.
"""

import io
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from localrank_cli.checkpoints import unpickling
from localrank_cli.checkpoints.content import DAMAGED, Content, State, cannot_read, printable_name
from localrank_cli.checkpoints.frameworks import (
    COUNTERS,
    PLACES,
    find_states,
    is_bare,
    other_states,
    progress,
)
from localrank_cli.checkpoints.sharded import check_inside, size_of_part
from localrank_cli.checkpoints.torch_file import load_safely
from localrank_cli.checkpoints.unpickling import MalformedError
from localrank_cli.checkpoints.weights import is_average
from localrank_cli.errors import UnreadableError, cause
from localrank_cli.files import open_regular

_CHECKPOINT = "torch.distributed.checkpoint"
_OLD_METADATA = "torch.distributed._shard.sharded_tensor.metadata"  # where older versions had them
_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
# Sizes beyond this are malformed: no file holds as many bytes, and torch counts in int64.
_MAX_SIZE = 2**60
_MOST_BYTES = 2**32  # of metadata: a hundred for each piece
_MOST_AXES = 64
_LONGEST_NAME = 4096  # of one part of a path
# Pieces for each place in a file: empty parts of a tensor may share one.
_MOST_PIECES = 16
# Corners of the pieces of a tensor that are compared with those of the whole: 1 min.
_MOST_CORNERS = 2**26
# Keys of a saved dict that hold other things than weights.
_NOT_WEIGHTS = frozenset((
    "optim", "optimizer", "optimizers", "optim_state", "optimizer_states", "lr_scheduler",
    "lr_schedulers", "scheduler", "dataloader", "train_state", "rng", "rng_state", "rng_states",
    "trainer", "scaler", "loops", "callbacks",
))  # fmt: skip
_MAX_SCALAR_BYTES = 2**20  # a saved step or epoch takes 1261 bytes in torch 2.13


def unpickle(path: Path) -> object:
    """Return what a `.metadata` holds: of a sound file a `DcpMetadata`.

    Raises:
        UnreadableError: If it cannot be read, or needs code.
    """
    try:
        with open_regular(path) as file:
            return _Unpickler(io.BytesIO(file.read(_MOST_BYTES))).load()
    except OSError as error:
        raise cannot_read(path, error) from error
    except _UnknownNameError as error:
        raise UnreadableError(
            f"{path}: needs code to load: {printable_name(str(error))}.",
            "torch.distributed.checkpoint writes no such name: save it again with plain tensors,"
            " or leave it out with --pattern.",
        ) from error
    except Exception as error:  # damaged bytes make pickle raise anything
        why = str(error) if isinstance(error, MalformedError) else cause(error)
        raise UnreadableError(
            f"{path}: not the metadata of torch.distributed.checkpoint ({why}).",
            DAMAGED,
        ) from error


class _UnknownNameError(Exception):
    pass


class _Closed(type):
    """Metaclass that forbids setting attributes of a class, which a pickle could otherwise do."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise AttributeError(f"{cls.__name__}.{name} is not to be set")


class _Inert(metaclass=_Closed):
    """Placeholder for what is not needed: paths, enumerations, the identity of the save."""

    def __new__(cls, *_: object) -> "_Inert":
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


class DcpMetadata(metaclass=_Closed):
    """The whole of a `.metadata`."""

    planner_data: Any = None


class DcpTensor(metaclass=_Closed):
    """A tensor: its properties, size and chunks."""

    properties: Any
    size: Any
    chunks: Any


class DcpBytes(metaclass=_Closed):
    """A value that is not a tensor."""


class DcpChunk(metaclass=_Closed):
    """A part of a tensor."""


class DcpStorage(metaclass=_Closed):
    """The place of a part: file, offset and length."""

    transform_descriptors: Any = None


class DcpProperties(metaclass=_Closed):
    """The properties of a tensor, of which only the dtype is kept."""

    dtype: Any = None

    def __setstate__(self, state: Any) -> None:
        self.dtype = state[0] if isinstance(state, tuple) else state["dtype"]


class DcpIndex(metaclass=_Closed):
    """The name of a part: its tensor, and where it begins in the tensor."""

    fqn: Any = None
    offset: Any = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DcpIndex) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def key(self) -> tuple[str, str]:
        """The name of a part in texts, of which no file can foresee the hash."""
        if not isinstance(self.fqn, str):
            raise TypeError("the name of a part is malformed")
        return _key(self.fqn, None if self.offset is None else _ints(self.offset))


def _key(name: str, offset: tuple[int, ...] | None) -> tuple[str, str]:
    return name, "" if offset is None else str(offset)


def _size(values: Any = ()) -> tuple[int, ...]:
    return _ints(tuple(values) if isinstance(values, list) else values)


def _ints(values: Any) -> tuple[int, ...]:
    """Return a shape or place as torch writes them, in a tuple."""
    if not isinstance(values, tuple) or len(values) > _MOST_AXES:
        raise ValueError("a size is malformed")
    for value in values:
        if type(value) is not int or not 0 <= value < _MAX_SIZE:
            raise ValueError("a size is malformed")
    return values


_NAMES: Mapping[tuple[str, str], Callable[..., Any]] = {
    (f"{_CHECKPOINT}.metadata", "Metadata"): DcpMetadata,
    (f"{_CHECKPOINT}.metadata", "TensorStorageMetadata"): DcpTensor,
    (f"{_CHECKPOINT}.metadata", "BytesStorageMetadata"): DcpBytes,
    (f"{_CHECKPOINT}.metadata", "ChunkStorageMetadata"): DcpChunk,
    (f"{_CHECKPOINT}.metadata", "TensorProperties"): DcpProperties,
    (f"{_CHECKPOINT}.metadata", "MetadataIndex"): DcpIndex,
    (f"{_CHECKPOINT}.metadata", "StorageMeta"): _Inert,
    (f"{_CHECKPOINT}.metadata", "_MEM_FORMAT_ENCODING"): _Inert,
    (f"{_CHECKPOINT}.filesystem", "_StorageInfo"): DcpStorage,
    (_OLD_METADATA, "TensorProperties"): DcpProperties,
    (_OLD_METADATA, "MEM_FORMAT_ENCODING"): _Inert,
    ("torch", "Size"): _size,
    ("torch.serialization", "_get_layout"): _Inert,
    ("collections", "OrderedDict"): dict,
    ("pathlib", "PosixPath"): _Inert,
    ("pathlib", "PurePosixPath"): _Inert,
    ("pathlib", "WindowsPath"): _Inert,
    ("pathlib", "PureWindowsPath"): _Inert,
    ("pathlib._local", "PosixPath"): _Inert,
    ("pathlib._local", "WindowsPath"): _Inert,
}


class _Unpickler(unpickling.Unpickler):
    keys = (DcpIndex,)
    targets = (
        _Inert, DcpMetadata, DcpTensor, DcpBytes, DcpChunk, DcpStorage, DcpProperties, DcpIndex,
    )  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        """Return the inert class for a name; every other name is an error."""
        if (module, name) in _NAMES:
            return _NAMES[module, name]
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise _UnknownNameError(f"{module}.{name}")


@dataclass(frozen=True)
class Piece:
    """The place of a part of a tensor, or of a whole value."""

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
    dtype: torch.dtype | None = None  # None: not a tensor
    size: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The name of the entry in messages."""
        return printable_name(".".join(self.path))


def read_metadata(path: Path) -> list[Entry]:
    """Return all entries of a `.metadata`, in the order of the file.

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
    """Check that every piece of some entries is in a file that is long enough.

    Raises:
        UnreadableError: If a file is missing, too short, or outside the folder.
    """
    ends: dict[str, int] = {}
    for entry in entries:
        for piece in entry.pieces:
            ends[piece.file] = max(ends.get(piece.file, 0), piece.start + piece.length)
    for name, end in ends.items():
        file = path.parent / name
        size = size_of_part(file, path, "weights")
        if size < end:
            raise UnreadableError(
                f"{file}: has {size} bytes, but {path} places weights up to byte {end}.", DAMAGED
            )


def _entries(metadata: Any) -> list[Entry]:
    if not isinstance(metadata, DcpMetadata):
        raise TypeError(f"it holds a {type(metadata).__name__}")
    storage = {index.key: info for index, info in _mapping(metadata, "storage_data").items()}
    paths = metadata.planner_data if isinstance(metadata.planner_data, Mapping) else {}
    found: list[Entry] = []
    left = _MOST_PIECES * (len(storage) + 1)
    for name, value in _mapping(metadata, "state_dict_metadata").items():
        path = _path(paths.get(name, (name,)))
        if isinstance(value, DcpTensor):
            left -= len(value.chunks)
            if left < 0:
                raise ValueError(f"its tensors have more pieces than its {len(storage)} places")
            found.append(_tensor(name, path, value, storage))
        elif _key(name, None) in storage:
            found.append(Entry(path, (_piece(storage[_key(name, None)]),)))
    return found


def _path(parts: Any) -> tuple[str, ...]:
    if not isinstance(parts, (tuple, list)) or not parts:
        raise TypeError("the path of an entry is malformed")
    if len(parts) > _MOST_AXES or not all(isinstance(part, (str, int)) for part in parts):
        raise TypeError("the path of an entry holds something other than names")
    path = tuple(map(str, parts))
    if any(len(part) > _LONGEST_NAME for part in path):
        raise ValueError(f"the path of an entry has a name of over {_LONGEST_NAME} letters")
    return path


def _mapping(metadata: Any, name: str) -> Mapping[Any, Any]:
    value = vars(metadata).get(name)
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is not a dict")
    return value


def _tensor(
    name: str, path: tuple[str, ...], value: Any, storage: Mapping[tuple[str, str], Any]
) -> Entry:
    size, dtype = _ints(value.size), value.properties.dtype
    if not isinstance(dtype, torch.dtype):
        raise TypeError("a tensor has no type")
    pieces = []
    for chunk in value.chunks:
        offsets, sizes = _ints(chunk.offsets), _ints(chunk.sizes)
        info = storage.get(_key(name, offsets)) or storage.get(_key(name, None))
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


def _check_cover(size: tuple[int, ...], pieces: list[Piece]) -> None:
    """Check that the pieces fill a tensor without overlap.

    They do if and only if their corners cancel out to those of the whole, each counted as +1 or -1
    by the number of axes on which it is an end: this takes one look at each piece.
    """
    if math.prod(filter(None, size)) >= _MAX_SIZE:  # torch cannot hold the shape, even if empty
        raise ValueError(f"a tensor has the shape {list(size)}")
    if not all(len(piece.offsets) == len(piece.sizes) == len(size) for piece in pieces):
        raise ValueError(f"the pieces of a tensor do not make up its shape {list(size)}")
    cut = [
        axis
        for axis, length in enumerate(size)
        if any((piece.offsets[axis], piece.sizes[axis]) != (0, length) for piece in pieces)
    ]
    if len(pieces) << len(cut) > _MOST_CORNERS:
        raise ValueError(f"a tensor is cut into {len(pieces)} pieces along {len(cut)} axes")
    corners: Counter[tuple[int, ...]] = Counter()
    for piece in pieces:
        ends = [(piece.offsets[axis], piece.offsets[axis] + piece.sizes[axis]) for axis in cut]
        _add_corners(corners, ends, 1)
    _add_corners(corners, [(0, size[axis]) for axis in cut], -1)
    # On the other axes every piece spans the whole, which may be empty.
    if any(corners.values()) and all(size[axis] for axis in range(len(size)) if axis not in cut):
        raise ValueError(f"the pieces of a tensor do not make up its shape {list(size)}")


def _add_corners(corners: Counter[tuple[int, ...]], ends: list[tuple[int, int]], sign: int) -> None:
    for chosen in itertools.product((0, 1), repeat=len(ends)):
        corner = tuple(pair[end] for pair, end in zip(ends, chosen, strict=True))
        corners[corner] += -sign if sum(chosen) % 2 else sign


def read_dcp(path: Path, *, header_only: bool = False) -> Content:
    """Return the weights in a folder of torch.distributed.checkpoint.

    State dicts are named by their place in the dict that was saved, "" for its top level. With
    `header_only` the tensors are on `meta`.

    Raises:
        UnreadableError: If it is damaged or incomplete, or holds no weights.
    """
    entries = read_metadata(path)
    leaves = {
        id(tensor): (tensor, entry) for tensor, entry in map(_on_meta, entries) if entry.dtype
    }
    states, averaged, others = _states(leaves)
    if not states:
        names = ", ".join(repr(entry.name) for entry in entries[:8])
        raise UnreadableError(
            f"{path}: no weights found; its entries are {names or 'none'}.",
            "Weights must be at the top level, in model or in state_dict. Leave it out with"
            " --pattern.",
        )
    facts = _facts(path, entries)
    needed = [leaves[id(tensor)][1] for state in states.values() for tensor in state.values()]
    check_files(path, needed)
    for entry in needed:
        _check_kept(path, entry)
    step, source, epoch = progress(facts)
    if not header_only:
        states = {
            container: {
                key: _read_tensor(path, leaves[id(tensor)][1]) for key, tensor in state.items()
            }
            for container, state in states.items()
        }
    averaged |= {place for place in others if is_average(place)}
    return Content(states, step, source, epoch, averaged, others=others)


def dcp_files(path: Path) -> list[Path]:
    """Return the files that hold a checkpoint's tensors, each once.

    Raises:
        UnreadableError: If the metadata are damaged.
    """
    names = dict.fromkeys(piece.file for entry in read_metadata(path) for piece in entry.pieces)
    return [path.parent / name for name in names]


def _on_meta(entry: Entry) -> tuple[Tensor, Entry]:
    return torch.empty(entry.size, dtype=entry.dtype, device="meta"), entry


class _Found(NamedTuple):
    """The state dicts in a folder, as in `Content`."""

    states: dict[str, State]
    averaged: frozenset[str] = frozenset()
    others: frozenset[str] = frozenset()


def _states(leaves: Mapping[int, tuple[Tensor, Entry]]) -> _Found:
    tree: dict[str, Any] = {}
    top: dict[str, Tensor] = {}
    for tensor, entry in leaves.values():
        first, *rest = entry.path
        if not rest:
            top[first] = tensor
        elif first not in _NOT_WEIGHTS:
            place = tree
            for part in entry.path[:-1]:
                inner = place.setdefault(part, {})
                # Entries below a name that is itself a value belong to no state dict.
                place = inner if isinstance(inner, dict) else {}
            place[entry.path[-1]] = tensor
    states, averaged = find_states(tree)
    others = other_states(tree, states, on_meta=True)
    bare = {
        key: tensor
        for key, tensor in top.items()
        if key not in COUNTERS and key.split(".", 1)[0] not in _NOT_WEIGHTS
    }
    if is_bare(bare, (states | others).values()):
        states = {"": bare} | states
    if states:
        return _Found(states | others, averaged, frozenset(others))
    if others and not any(tensor.ndim > 1 or "." in key for key, tensor in bare.items()):
        return _Found(others, frozenset(), frozenset(others))
    return _Found({"": bare} if bare else {})


def _facts(path: Path, entries: Sequence[Entry]) -> dict[str, Any]:
    """Return the counters of the training's progress, each read from its place in a file."""
    facts: dict[str, Any] = {}
    places = [(), *PLACES]
    for entry in entries:
        *parents, name = entry.path
        scalar = all(size == 1 for size in entry.size) and len(entry.pieces) == 1
        if name not in COUNTERS or tuple(parents) not in places or not scalar:
            continue
        value = _read_scalar(path.parent, entry.pieces[0])
        inner = facts
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = value
    return facts


def _read_scalar(folder: Path, piece: Piece) -> object:
    try:
        return load_safely(_bytes(folder, piece)) if piece.length <= _MAX_SCALAR_BYTES else None
    except Exception:  # not a number, or one that needs code to load: such a value is no step
        return None


def _read_tensor(path: Path, entry: Entry) -> Tensor:
    whole = torch.empty(entry.size, dtype=entry.dtype)
    for piece in entry.pieces:
        part = _read_piece(path, entry, piece)
        place = whole
        for axis, (start, length) in enumerate(zip(piece.offsets, piece.sizes, strict=True)):
            place = place.narrow(axis, start, length)
        place.copy_(part)
    return whole


def _check_kept(path: Path, entry: Entry) -> None:
    assert entry.dtype is not None
    count, stored = math.prod(entry.size), sum(piece.length for piece in entry.pieces)
    if count * entry.dtype.itemsize > stored:
        raise UnreadableError(
            f"{path}: {entry.name} has {count} values of {entry.dtype}, and its files"
            f" keep {stored} bytes for it.",
            DAMAGED,
        )


def _read_piece(path: Path, entry: Entry, piece: Piece) -> Tensor:
    file = path.parent / piece.file
    try:
        loaded = load_safely(_bytes(path.parent, piece))
    except OSError as error:
        raise cannot_read(file, error) from error
    except Exception as error:  # damaged bytes make pickle raise anything
        raise UnreadableError(
            f"{file}: {entry.name} is not readable at byte {piece.start} ({cause(error)[:80]}).",
            DAMAGED,
        ) from error
    if (
        not isinstance(loaded, Tensor)
        or tuple(loaded.shape) != piece.sizes
        or loaded.dtype != entry.dtype
        or loaded.layout != torch.strided
        or loaded.is_meta
    ):
        raise UnreadableError(
            f"{file}: {entry.name} at byte {piece.start} is not the {entry.dtype} of"
            f" shape {list(piece.sizes)} that {path.name} declares.",
            DAMAGED,
        )
    return loaded


def _bytes(folder: Path, piece: Piece) -> io.BytesIO:
    with open_regular(folder / piece.file) as file:
        file.seek(piece.start)
        return io.BytesIO(file.read(piece.length))
