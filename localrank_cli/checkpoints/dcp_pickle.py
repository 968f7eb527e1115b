"""The pickle in which torch.distributed.checkpoint keeps its metadata, read without running code.

Its few classes are known by name, and each name leads to a plain class of this file: not even
torch's own code runs. Every other name is refused.
"""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from localrank_cli.checkpoints.faults import DAMAGED, cannot_read, shown
from localrank_cli.errors import UnreadableError, cause


def unpickle(path: Path) -> object:
    """Loads a `.metadata`.

    Args:
        path: The file.

    Returns:
        What it holds: of a sound file a `DcpMetadata`.

    Raises:
        UnreadableError: If it cannot be read, or needs code.
    """
    try:
        with path.open("rb") as file:
            return _Unpickler(file).load()
    except OSError as error:
        raise cannot_read(path, error) from error
    except _UnknownNameError as error:
        raise UnreadableError(
            f"{path}: needs code to load: {shown(str(error))}.",
            "torch.distributed.checkpoint writes no such name: save it again with plain tensors,"
            " or leave it out with --pattern.",
        ) from error
    except Exception as error:  # whatever damaged bytes lead the pickle machinery to
        raise UnreadableError(
            f"{path}: not the metadata of torch.distributed.checkpoint ({cause(error)}).",
            DAMAGED,
        ) from error


class _UnknownNameError(Exception):
    pass


class _Closed(type):
    """A pickle can set attributes of whatever it can name: of these classes it cannot."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise AttributeError(f"{cls.__name__}.{name} is not to be set")


class _Inert(metaclass=_Closed):
    """Stands for what is of no use here: paths, enumerations, the identity of the save."""

    def __new__(cls, *_: object) -> "_Inert":
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


class DcpMetadata(metaclass=_Closed):
    """The whole."""

    planner_data: Any = None


class DcpTensor(metaclass=_Closed):
    """A tensor: its properties, size and chunks."""


class DcpBytes(metaclass=_Closed):
    """A value that is no tensor."""


class DcpChunk(metaclass=_Closed):
    """A part of a tensor."""


class DcpStorage(metaclass=_Closed):
    """Where a part lies."""

    transform_descriptors: Any = None


class DcpProperties(metaclass=_Closed):
    """Of a tensor; only its type is kept."""

    dtype: Any = None

    def __setstate__(self, state: Any) -> None:
        self.dtype = state[0] if isinstance(state, tuple) else state["dtype"]


class DcpIndex(metaclass=_Closed):
    """The name of a part: of the tensor, and where the part begins in it."""

    fqn: Any = None
    offset: Any = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DcpIndex) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def key(self) -> tuple[str, tuple[int, ...] | None]:
        """What names a part; of plain types, since nested ones take long to hash."""
        offset = self.offset
        plain = offset is None or (
            isinstance(offset, tuple) and all(isinstance(value, int) for value in offset)
        )
        if not isinstance(self.fqn, str) or not plain:
            raise TypeError("an index is no name")
        return self.fqn, offset


def _size(values: Any = ()) -> tuple[int, ...]:
    return tuple(values)


_CHECKPOINT = "torch.distributed.checkpoint"
_SHARDED = "torch.distributed._shard.sharded_tensor.metadata"  # where older versions had them
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
    (_SHARDED, "TensorProperties"): DcpProperties,
    (_SHARDED, "MEM_FORMAT_ENCODING"): _Inert,
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


_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


class _Unpickler(pickle.Unpickler):  # noqa: S301  # it finds no name but those above
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NAMES:
            return _NAMES[module, name]
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise _UnknownNameError(f"{module}.{name}")
