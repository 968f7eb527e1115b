"""The formats of one weights file, each in one entry of `FORMATS`; none runs code to be read.

Trainers keep other objects beside the weights, or a whole module: see `pickles`.
"""

import errno
import json
import os
import struct
import warnings
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from localrank_cli.archives import fault_of_archive, is_archive
from localrank_cli.checkpoints import pickles, trusted
from localrank_cli.checkpoints.content import DAMAGED, Content, cannot_read, printable_name
from localrank_cli.checkpoints.foreign import describe_by_magic, describe_foreign
from localrank_cli.checkpoints.frameworks import WITH_CODE, unwrap
from localrank_cli.checkpoints.torch_file import load_safely
from localrank_cli.checkpoints.unpickling import HostileError, MalformedError
from localrank_cli.errors import UnreadableError, cause, is_out_of_files, is_out_of_memory

# For a header it is enough to know whether numbers are floats, integers or complex.
_NOT_FLOATS = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16,
    "I16": torch.int16, "U32": torch.uint32, "I32": torch.int32, "U64": torch.uint64,
    "I64": torch.int64, "C64": torch.complex64,
}  # fmt: skip


@dataclass(frozen=True)
class Access:
    """How to read a file; the options are those of `read_checkpoint`."""

    trust_pickle: bool = False
    header_only: bool = False
    mapped: bool = True


@dataclass(frozen=True)
class Format:
    """A format of weights files.

    Args:
        read: Returns the content of a file that is there and not empty.
        is_whole: Returns whether an open file, at its start, was written to its end.
    """

    read: Callable[[Path, Access], Content]
    is_whole: Callable[[BinaryIO], bool]


def read(
    path: Path, *, trust_pickle: bool = False, header_only: bool = False, mapped: bool = True
) -> Content:
    """Return the content of a weights file; the options are those of `read_checkpoint`.

    Raises:
        UnreadableError: If it cannot be read; the message names the file.
    """
    _check_file(path)
    return _format_of(path).read(path, Access(trust_pickle, header_only, mapped))


def is_whole(path: Path) -> bool:
    """Return whether a file was written to its end, as far as its format shows."""
    try:
        with path.open("rb") as file:
            return _format_of(path).is_whole(file)
    except OSError:
        return False


def _format_of(path: Path) -> Format:
    """Return the format of a file; files that an index names may have any suffix."""
    return FORMATS.get(weights_suffix(path.name).lower(), _TORCH)


def _read_safetensors(path: Path, access: Access) -> Content:
    if not access.mapped and not access.header_only:
        return _read_bytes(path)
    return _open_safetensors(path, access.header_only, None)


def _read_torch(path: Path, access: Access) -> Content:
    try:
        return unwrap(load_torch(path, mapped=access.mapped), path)
    except UnreadableError:
        if not access.trust_pickle:
            raise
    return unwrap(_run_pickle(path, access.mapped), path)


def _is_whole_safetensors(file: BinaryIO) -> bool:
    """Return whether a file is as long as its header says."""
    start = file.read(8)
    if len(start) < 8:
        return False
    (length,) = struct.unpack("<Q", start)
    size = os.fstat(file.fileno()).st_size
    if length > size:
        return False
    try:
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        ends = [entry["data_offsets"][1] for entry in header.values()]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return True  # damaged rather than incomplete: the reader reports it
    needed: int = 8 + length + max(ends, default=0)
    return size >= needed


def _is_whole_torch(file: BinaryIO) -> bool:
    """Return whether a zip has its table of contents; older files do not show their length."""
    return not file.read(8).startswith(b"PK\x03\x04") or zipfile.is_zipfile(file)


_TORCH = Format(_read_torch, _is_whole_torch)
FORMATS: Mapping[str, Format] = {
    ".safetensors": Format(_read_safetensors, _is_whole_safetensors),
    ".pt": _TORCH,
    ".pth": _TORCH,
    ".pt.tar": _TORCH,
    ".pth.tar": _TORCH,
    ".ckpt": _TORCH,
    ".bin": _TORCH,
}
SUFFIXES = tuple(FORMATS)


def _read_bytes(path: Path) -> Content:
    try:
        return Content({"": load(path.read_bytes())})
    except (SafetensorError, RuntimeError, OverflowError, TypeError) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        raise cannot_read(path, error) from error


def _check_limits(path: Path, error: Exception) -> None:
    """Do not call a file damaged where no memory was left, or too many files were open."""
    if is_out_of_memory(error):
        raise MemoryError(f"{path}: {cause(error)}") from error
    if is_out_of_files(error):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path)) from error


def _damaged(path: Path, error: Exception) -> UnreadableError:
    _check_limits(path, error)
    what, advice = describe_by_magic(path) or (
        f"not a readable safetensors file ({cause(error)})", DAMAGED,
    )  # fmt: skip
    return UnreadableError(f"{path}: {what}.", advice)


def read_tensors(path: Path, keys: Collection[str], *, header_only: bool = False) -> Content:
    """Return some tensors of a safetensors file; keys that it does not hold are left out.

    With `header_only` the tensors are on `meta`.

    Raises:
        UnreadableError: If it cannot be read.
    """
    _check_file(path)
    return _open_safetensors(path, header_only, keys)


def _check_file(path: Path) -> None:
    try:
        if path.stat().st_size == 0:
            raise UnreadableError(f"{path}: the file is empty.", DAMAGED)
        with path.open("rb"):  # safetensors calls every reason a missing file
            str(path).encode()
    except OSError as error:
        raise cannot_read(path, error) from error
    except UnicodeError as error:  # torch and safetensors take no other names
        raise UnreadableError(
            f"{path}: the path is not UTF-8.", "Rename it, or use a UTF-8 locale."
        ) from error


def is_weights_file(path: Path) -> bool:
    """Return whether a file has the suffix of a checkpoint."""
    return weights_suffix(path.name) != ""


def weights_suffix(name: str) -> str:
    """Return the suffix that makes a file a checkpoint, as written; empty for other files."""
    lower = name.lower()
    fitting = [suffix for suffix in SUFFIXES if lower.endswith(suffix) and lower != suffix]
    return name[-len(max(fitting, key=len)) :] if fitting else ""


def _open_safetensors(path: Path, header_only: bool, keys: Collection[str] | None) -> Content:
    state: dict[str, Tensor] = {}
    wanted = None if keys is None else set(keys)
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = dict(file.metadata() or {})
            for key in file.keys():  # noqa: SIM118  # safetensors' file is no mapping
                if wanted is not None and key not in wanted:
                    continue
                if header_only:
                    found = file.get_slice(key)
                    dtype = _NOT_FLOATS.get(found.get_dtype(), torch.float32)
                    state[key] = torch.empty(found.get_shape(), dtype=dtype, device="meta")
                else:
                    state[key] = file.get_tensor(key)
    # The other errors come from sizes that safetensors accepts and torch cannot hold.
    except (SafetensorError, RuntimeError, OverflowError, TypeError) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        raise cannot_read(path, error) from error
    if not state and wanted is None:
        raise UnreadableError(f"{path}: holds no tensor.", DAMAGED)
    return Content.of_state(state, metadata)


def load_torch(path: Path, *, mapped: bool = True) -> object:
    """Return what torch.save wrote, without running code; mapped where the file allows it.

    Objects that are neither tensors nor plain containers are `pickles.Inert`.

    Raises:
        UnreadableError: If it cannot be read.
    """
    try:
        return load_safely(path, mapped=_is_sound_archive(path) and mapped)
    except UnreadableError:
        raise
    except OSError as error:
        raise cannot_read(path, error) from error
    except Exception as error:  # damaged bytes make pickle raise anything
        _check_limits(path, error)
        _check_foreign(path)
        if isinstance(error, pickles.RefusedNameError):
            what = f"{path}: the pickle needs code to load: {printable_name(str(error))}."
            raise UnreadableError(what, WITH_CODE) from error
        advice = WITH_CODE if isinstance(error, HostileError) else DAMAGED
        raise UnreadableError(
            f"{path}: not a readable torch file ({_reason(error)}).", advice
        ) from error


def _run_pickle(path: Path, mapped: bool) -> object:
    """Return what torch.save wrote, after running the code that the file names."""
    _check_foreign(path)
    try:
        return _load_trusted(path, _is_sound_archive(path) and mapped)
    except UnreadableError:
        raise
    except trusted.NotImportableError as error:
        raise UnreadableError(
            f"{path}: the pickle needs {printable_name(str(error))}, which cannot be imported"
            f" ({cause(error.__cause__ or error)}).",
            "Install what it is from; `--model FILE.py:NAME` provides the names of __main__. Or"
            " convert the file where it was made: torch.save(model.state_dict(), FILE).",
        ) from error
    except Exception as error:  # the file's code may raise anything
        _check_limits(path, error)
        raise UnreadableError(
            f"{path}: cannot be loaded, not even with its code ({cause(error)}).",
            "Convert it where it was made: torch.save(model.state_dict(), FILE); or leave it out"
            " with --pattern.",
        ) from error


def _load_trusted(path: Path, mapped: bool) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # legacy storages, about which the user can do nothing
        return torch.load(
            path,
            map_location="cpu",
            pickle_module=trusted,
            weights_only=False,
            mmap=mapped or None,  # legacy files refuse mmap
        )


def _is_sound_archive(path: Path) -> bool:
    if not is_archive(path):
        return False
    fault = fault_of_archive(path)
    if fault:
        _check_foreign(path)
        raise UnreadableError(f"{path}: not a readable torch file ({fault}).", DAMAGED)
    return True


def _check_foreign(path: Path) -> None:
    foreign = describe_foreign(path)
    if foreign is not None:
        raise UnreadableError(f"{path}: {foreign[0]}.", foreign[1])


def _reason(error: Exception) -> str:
    if isinstance(error, MalformedError):
        return str(error)
    if not isinstance(error, (RuntimeError, EOFError)):
        # torch's own text advises to load with weights_only=False, which would not help here.
        return "its bytes are not those that torch.save writes"
    return cause(error)
