"""The formats of one weights file, each in one entry of `FORMATS`; none runs code to be read.

Trainers keep other objects next to the weights, or a whole module: see `pickles`. Readers are
imported when a file is read, so that suffixes can be looked up without torch.
"""

import json
import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from localrank_cli.errors import UnreadableError

if TYPE_CHECKING:
    from localrank_cli.checkpoints.content import Content


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
        name: What writes such files, for people.
        read: Returns the content of a file that is there and not empty.
        is_whole: Returns whether an open file, at its start, was written to its end.
    """

    name: str
    read: "Callable[[Path, Access], Content]"
    is_whole: Callable[[BinaryIO], bool]


def read(
    path: Path, *, trust_pickle: bool = False, header_only: bool = False, mapped: bool = True
) -> "Content":
    """Return the content of a weights file; the options are those of `read_checkpoint`.

    Raises:
        UnreadableError: If it cannot be read; the message names the file.
    """
    from localrank_cli.checkpoints.content import check_file

    check_file(path)
    return format_of(path).read(path, Access(trust_pickle, header_only, mapped))


def is_whole(path: Path) -> bool:
    """Return whether a file was written to its end, as far as its format shows."""
    try:
        with path.open("rb") as file:
            return format_of(path).is_whole(file)
    except OSError:
        return False


def format_of(path: Path) -> Format:
    """Return the format of a file; files that an index names may have any suffix."""
    return FORMATS.get(weights_suffix(path.name).lower(), TORCH)


def _read_safetensors(path: Path, access: Access) -> "Content":
    from localrank_cli.checkpoints.safetensors_file import load_safetensors, open_safetensors

    if not access.mapped and not access.header_only:
        return load_safetensors(path)
    return open_safetensors(path, header_only=access.header_only)


def _read_torch(path: Path, access: Access) -> "Content":
    from localrank_cli.checkpoints.frameworks import unwrap
    from localrank_cli.checkpoints.torch_file import load_torch, run_pickle

    try:
        return unwrap(load_torch(path, mapped=access.mapped), path)
    except UnreadableError:
        if not access.trust_pickle:
            raise
    return unwrap(run_pickle(path, access.mapped), path)


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


TORCH = Format("torch.save", _read_torch, _is_whole_torch)
FORMATS: Mapping[str, Format] = {
    ".safetensors": Format("safetensors", _read_safetensors, _is_whole_safetensors),
    ".pt": TORCH,
    ".pth": TORCH,
    ".pt.tar": TORCH,
    ".pth.tar": TORCH,
    ".ckpt": TORCH,
    ".bin": TORCH,
}
SUFFIXES = tuple(FORMATS)


def is_weights_file(path: Path) -> bool:
    """Return whether a file has the suffix of a checkpoint."""
    return weights_suffix(path.name) != ""


def weights_suffix(name: str) -> str:
    """Return the suffix that makes a file a checkpoint, as written; empty for other files."""
    lower = name.lower()
    fitting = [suffix for suffix in SUFFIXES if lower.endswith(suffix) and lower != suffix]
    return name[-len(max(fitting, key=len)) :] if fitting else ""
