"""Arrays from data files, without running code."""

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from localrank_cli.archives import fault_of_archive, is_archive
from localrank_cli.errors import (
    MORE_MEMORY,
    OUT_OF_MEMORY,
    DataError,
    LocalrankError,
    SettingsError,
    cause,
    is_out_of_memory,
)
from localrank_cli.points.containers import Npz, Safetensors, TorchArchive, open_npy
from localrank_cli.points.numbers import from_numpy
from localrank_cli.points.rows import AT_ONCE, Data, Rows, readable

SUFFIXES = (".safetensors", ".npz", ".npy", ".pt", ".pth")
# A tensor that repeats its values (expand) is small in its file; a larger one holds no data.
_MOST_REPEATED = 2**30
_KNOWN = (OSError, ValueError, SafetensorError, EOFError, RuntimeError, pickle.PickleError)
_SAVE_VALUES = "Save the tensor after it was given values."
_DEFAULT_KEYS = ("x", "inputs", "images")


@dataclass(frozen=True)
class _Loaded:
    """The content of a data file."""

    content: object  # a tensor or an array, or a mapping of some
    archive: TorchArchive | None = None  # where its tensors are, if they are on `meta`


def load_array(
    path: Path, key: str, option: str = "--data-key", memory: int | None = None
) -> tuple[Data, str]:
    """Return an array from a file, that of the points or of their labels, and its key.

    The first axis is that of the points; the dtype is the array's own. Without a key it is the only
    array, else `x`, `inputs` or `images`. `option` named the key, for messages. A large array stays
    in the file; `memory` limits the bytes of one that cannot (None: any).

    Raises:
        DataError: If it cannot be read.
        SettingsError: If it is not clear which array is meant.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such data file.", "Check --data.")
    try:
        loaded = _load(path, memory)
        if isinstance(loaded.content, Mapping):
            # Members of an .npz are read only now: labels stay unread.
            chosen = _choose(sorted(map(str, loaded.content)), key, path, option)
            found = _array(loaded, path, chosen)
        else:
            chosen, found = "", _array(loaded, path, "")
    except LocalrankError:
        raise
    except Exception as error:
        raise _cannot_read(path, error) from error
    if key and not chosen:
        advice = (
            "Leave it out."
            if option == "--data-key"
            else "Save points and labels in one .npz, .safetensors or .pt file, each under a name."
        )
        raise SettingsError(f"{option} {key}: {path} holds one array without a name.", advice)
    return found, chosen


def _cannot_read(path: Path, error: Exception) -> DataError:
    if is_out_of_memory(error):
        return DataError(f"{path}: cannot be read ({OUT_OF_MEMORY}).", MORE_MEMORY)
    if isinstance(error, _KNOWN):
        return DataError(
            f"{path}: cannot be read ({_reason(error)}).",
            "Known are .safetensors, .npz, .npy and .pt with plain arrays; no pickled objects.",
        )
    # zipfile and numpy raise errors of their own for damaged files.
    return DataError(f"{path}: cannot be read ({type(error).__name__}).", "Is the file complete?")


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load(path: Path, memory: int | None) -> _Loaded:
    suffix, size = path.suffix.lower(), path.stat().st_size
    if suffix == ".safetensors":
        return _Loaded(load_file(path) if size <= AT_ONCE else Safetensors(path))
    if suffix in (".npy", ".npz"):
        return _Loaded(Npz(path, memory) if is_archive(path) else open_npy(path))
    fault = fault_of_archive(path) if is_archive(path) else ""
    if fault:
        raise ValueError(fault)
    archive = TorchArchive(path) if size > AT_ONCE and is_archive(path) else None
    if archive is not None and archive.is_native:
        return _Loaded(_named(archive.load()), archive)
    if memory is not None and size > max(memory, AT_ONCE):
        raise DataError(
            f"{path}: is of a format that can only be read as a whole, which needs"
            f" {readable(size)}; the budget is {readable(memory)}.",
            "Save it again with the torch of this machine, or give more with --memory.",
        )
    return _Loaded(_named(_load_torch(path)))


def _load_torch(path: Path, *, mapped: bool = False) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about legacy storages: the user can do nothing
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped or None)


def _named(loaded: object) -> object:
    if isinstance(loaded, (tuple, list)):
        return {str(index): value for index, value in enumerate(loaded)}
    if isinstance(loaded, Mapping):
        return {str(name): value for name, value in loaded.items()}
    if isinstance(loaded, Tensor):
        return loaded
    raise ValueError(f"holds a {type(loaded).__name__}, not tensors")


def _reason(error: Exception) -> str:
    if isinstance(error, pickle.PickleError):
        return "it holds more than tensors, or is not a torch file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{cause(error)}"


def _choose(keys: list[str], key: str, path: Path, option: str) -> str:
    names = ", ".join(keys) or "none"
    if key:
        if key not in keys:
            raise SettingsError(f"{option}: {path} has no array {key!r}.", f"Its arrays: {names}.")
        return key
    if len(keys) == 1:
        return keys[0]
    for default in _DEFAULT_KEYS:
        if default in keys:
            return default
    if not keys:
        raise DataError(f"{path} holds no array.", "Check --data.")
    raise SettingsError(
        f"{path} holds several arrays: {names}.", "Choose one with --data-key NAME."
    )


def _array(loaded: _Loaded, path: Path, key: str) -> Data:
    where = f"{path}[{key}]" if key else str(path)
    value: object = loaded.content[key] if isinstance(loaded.content, Mapping) else loaded.content
    if isinstance(value, Rows):
        return value
    if isinstance(value, np.ndarray):
        return from_numpy(value, where)
    if not isinstance(value, Tensor):
        raise DataError(f"{where} is a {type(value).__name__}, not an array.", "Check --data-key.")
    if value.layout != torch.strided or value.is_quantized or value.is_nested:
        raise DataError(f"{where} is not a plain tensor.", "Save it dense: x.to_dense().")
    claimed, held = value.numel() * value.itemsize, value.untyped_storage().nbytes()
    if claimed > max(held, _MOST_REPEATED):
        raise DataError(
            f"{where} claims {claimed} bytes, and the file keeps {held} for it.",
            "Save it with each value once, or as a copy: x.clone().",
        )
    if loaded.archive is not None:
        rows = loaded.archive.rows(value)
        mapped = _Loaded(_named(_load_torch(path, mapped=True))) if rows is None else None
        return _array(mapped, path, key) if mapped is not None else cast("Rows", rows)
    if value.is_meta:
        raise DataError(f"{where} has no values: it was saved from the meta device.", _SAVE_VALUES)
    return value.detach().resolve_conj().resolve_neg()
