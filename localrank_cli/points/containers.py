"""Files of arrays, opened without reading the arrays: .npy, .npz, .safetensors and .pt."""

import io
import json
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.serialization import StorageType
from torch.storage import TypedStorage, UntypedStorage

from localrank_cli.archives import Entry, read_entries
from localrank_cli.checkpoints import pickles
from localrank_cli.checkpoints.unpickling import MalformedError
from localrank_cli.errors import DataError, readable
from localrank_cli.points.draw import from_numpy
from localrank_cli.points.rows import (
    AT_ONCE,
    Data,
    FileRows,
    Layout,
    PackedRows,
    row_major,
    skip,
)

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_LONGEST_HEADER = 100_000_000  # of safetensors' own
_LONGEST_NPY_HEADER = 10_000  # numpy's own, which it compares after reading
_SAFETENSORS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64,
    "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
    "C64": torch.complex64,
}  # fmt: skip


def open_npy(path: Path) -> Data:
    """Return the array of an .npy file.

    Raises:
        ValueError: If it is none, or shorter than it claims.
    """
    with path.open("rb") as file:
        layout = _npy_layout(file, str(path))
        if layout.end > path.stat().st_size:
            raise EOFError("the file ends before its last value")
        if layout.span * layout.itemsize > AT_ONCE:
            return FileRows(path, layout)
        file.seek(0)
        return from_numpy(np.lib.format.read_array(file), str(path))


class Npz(Mapping[str, Any]):
    """The arrays of an .npz file, each opened when it is asked for.

    An array that cannot be read in parts may take `memory` bytes; None: any number.
    """

    def __init__(self, path: Path, memory: int | None) -> None:
        self._path, self._memory = path, memory
        entries = read_entries(path)
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
        self._members: dict[str, tuple[Entry, zipfile.ZipInfo]] = {}
        for entry, info in zip(entries, infos, strict=True):
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # Others unpack a few kilobytes to any size at once.
                raise ValueError("it is compressed as numpy never does")
            name = info.filename.removesuffix(".npy")
            if name in self._members:
                raise ValueError(f"two of its arrays are called {name!r}")
            self._members[name] = entry, info

    def __getitem__(self, name: str) -> Any:
        """Return an array, or the bytes of what is none."""
        entry, info = self._members[name]
        with zipfile.ZipFile(self._path) as archive, archive.open(info) as opened:
            file: Any = opened  # typeshed has no name for what a zip file gives
            if file.peek(6)[:6] != b"\x93NUMPY":
                return b""
            layout = _npy_layout(file, f"{self._path}[{name}]")
            size = layout.span * layout.itemsize
            if layout.end > entry.size:
                raise EOFError("an array ends before its last value")
            is_whole = layout.strides == row_major(layout.shape)
            if size <= AT_ONCE or (not is_whole and not entry.is_stored):
                _check_whole(self._path, name, size, self._memory)
                file.seek(0)
                return from_numpy(np.lib.format.read_array(file), f"{self._path}[{name}]")
            # To the end, where its checksum is compared.
            skip(file, entry.size - file.tell())
            file.read(1)
        if entry.is_stored:
            return FileRows(self._path, _moved(layout, entry.offset))
        return PackedRows(self._path, info.filename, layout)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._members)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._members)


def _check_whole(path: Path, name: str, size: int, memory: int | None) -> None:
    if memory is not None and size > max(memory, AT_ONCE):
        raise DataError(
            f"{path}[{name}]: is compressed in Fortran order and can only be read as a whole, which"
            f" needs {readable(size)}; the budget is {readable(memory)}.",
            "Save it with numpy.savez and numpy.ascontiguousarray, or give more with --memory.",
        )


def _npy_layout(file: Any, where: str) -> Layout:
    """Return the layout of an array in numpy's format, of which a file is at the first byte."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of numpy's format is not supported")
    if version != (1, 0):
        start = file.tell()
        (length,) = struct.unpack("<L", file.read(4))
        file.seek(start)
        if length > _LONGEST_NPY_HEADER:
            raise ValueError(f"its header claims {length} bytes")
    shape, is_fortran, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects")
    if any(n < 0 for n in shape):
        raise ValueError(f"its header claims the shape {shape}")
    strides = row_major(shape[::-1])[::-1] if is_fortran else row_major(shape)
    kind = from_numpy(np.empty(0, dtype), where).dtype
    return Layout(
        file.tell(),
        shape,
        strides,
        dtype.itemsize,
        kind,
        lambda data: from_numpy(np.frombuffer(data, dtype), where),
    )


def _moved(layout: Layout, by: int) -> Layout:
    return Layout(
        layout.offset + by, layout.shape, layout.strides, layout.itemsize, layout.dtype,
        layout.decode,
    )  # fmt: skip


class Safetensors(Mapping[str, Data]):
    """The arrays of a .safetensors file that is too large to be read as a whole."""

    def __init__(self, path: Path) -> None:
        self._path, self._size = path, path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            self._start = 8 + length
            if length > min(_LONGEST_HEADER, self._size - 8):
                raise ValueError(f"its header claims {length} bytes")
            try:
                header = json.loads(file.read(length))
                header.pop("__metadata__", None)
            except (ValueError, AttributeError, RecursionError) as error:
                raise ValueError("it has no valid safetensors header") from error
        self._header: dict[str, Any] = header

    def __getitem__(self, name: str) -> Data:
        """Return an array."""
        try:
            layout = _safetensors_layout(self._header[name], self._start, self._size)
        except (KeyError, TypeError) as error:
            raise ValueError("it has no valid safetensors header") from error
        return FileRows(self._path, layout)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._header)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._header)


def _safetensors_layout(entry: Any, start: int, size: int) -> Layout:
    dtype = _SAFETENSORS.get(entry["dtype"])
    shape, (first, last) = entry["shape"], entry["data_offsets"]
    if dtype is None:
        raise ValueError(f"dtype {entry['dtype']} is not supported")
    # JSON knows booleans, which are integers of Python.
    if not shape or not all(type(n) is int and n >= 0 for n in (*shape, first, last)):
        raise ValueError("it has no valid safetensors header")
    layout = _tensor_layout(dtype, start + first, tuple(shape), row_major(shape))
    if layout.end != start + last or layout.end > size:
        raise ValueError("its header places an array where it does not fit")
    return layout


def _tensor_layout(
    dtype: torch.dtype, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> Layout:
    return Layout(
        offset, shape, strides, dtype.itemsize, dtype,
        lambda data: torch.frombuffer(data, dtype=dtype),
    )  # fmt: skip


class TorchArchive:
    """What torch.save wrote, read without its tensors: they are on `meta`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        entries = read_entries(path)
        self._entries = {entry.name.partition("/")[2]: entry for entry in entries}
        self._places: dict[int, tuple[UntypedStorage, Entry]] = {}
        is_program = "constants.pkl" in self._entries  # of TorchScript, which is no data
        order = self._bytes("byteorder").decode("latin-1")
        self.is_native = order in {"", sys.byteorder} and not is_program

    def load(self) -> object:
        """Return the content, as `load_safely` would, without running code.

        Raises:
            pickle.UnpicklingError: If it is malformed, or could take forever.
        """
        file = io.BytesIO(self._bytes("data.pkl"))
        return _Unpickler(file, self._storage, encoding="utf-8").load()

    @property
    def holds_tensors(self) -> bool:
        """Whether the content refers to the values of a tensor."""
        return bool(self._places)

    def rows(self, tensor: Tensor) -> FileRows | None:
        """Return a tensor of the content; None if its values are not in the file as they are.

        Raises:
            ValueError: If it claims values that the file does not hold.
        """
        place = self._places.get(_identity(tensor.untyped_storage()))
        if place is None or tensor.is_neg() or tensor.is_conj() or not tensor.ndim:
            return None
        _, entry = place
        offset = entry.offset + tensor.storage_offset() * tensor.itemsize
        strides = tuple(map(int, tensor.stride()))
        layout = _tensor_layout(tensor.dtype, int(offset), tuple(tensor.shape), strides)
        if layout.end > entry.offset + entry.size:
            raise ValueError("the file ends before its last value")
        return FileRows(self._path, layout)

    def _bytes(self, name: str) -> bytes:
        if name not in self._entries:
            return b""
        entry = self._entries[name]
        with self._path.open("rb") as file:
            file.seek(entry.offset)
            return file.read(entry.size)

    def _storage(self, saved: Any) -> TypedStorage:
        kind, storage, key, _, numel = saved
        entry = self._entries.get(f"data/{key}")
        dtype = getattr(storage, "dtype", None)
        if kind != "storage" or entry is None or not isinstance(dtype, torch.dtype):
            raise MalformedError("it names a tensor that it does not hold")
        if type(numel) is not int or not 0 <= numel * dtype.itemsize < 2**63:
            raise MalformedError("it names a tensor with a malformed size")
        untyped: Any = UntypedStorage(numel * dtype.itemsize, device="meta")
        self._places[_identity(untyped)] = untyped, entry
        return TypedStorage(wrap_storage=untyped, dtype=dtype, _internal=True)


class _Unpickler(pickles.Unpickler):
    """The screened unpickler with the names of storages, as torch.load extends it."""

    def __init__(self, file: BinaryIO, storage: Callable[[Any], TypedStorage], **options: Any):
        super().__init__(file, **options)
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        """Return the replacement for the object of a name; see `pickles.Unpickler`."""
        if "Storage" in name:
            with suppress(KeyError):
                return StorageType(name)
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> TypedStorage:
        """Return the storage of a name."""
        return self._storage(pid)


def _identity(storage: UntypedStorage) -> int:
    """Return a number of a storage itself: those on `meta` have no address."""
    found: int = storage._cdata
    return found
