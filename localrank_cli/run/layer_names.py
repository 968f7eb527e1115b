"""Names of layers from the headers of safetensors files, without torch, for completion."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from localrank_cli.checkpoints.weights import plain_name

_LARGEST_HEADER = 16 * 2**20  # bytes; those of real networks have at most a few hundred thousand
_MOST_FILES = 1000
_SUFFIX = ".safetensors"


def layers_in(path: Path) -> Iterator[str]:
    """Yield the modules that hold a matrix, from the header of one file of a series."""
    try:
        header = _header(path)
    except (OSError, ValueError, RecursionError):  # completion never complains
        return
    for key, entry in header.items():
        shape = entry.get("shape") if isinstance(entry, dict) else None
        module, _, kind = plain_name(key).rpartition(".")
        if module and kind in {"weight", "weight_v"} and isinstance(shape, list) and len(shape) > 1:
            yield module


def _header(path: Path) -> dict[str, Any]:
    """Return the header of a safetensors file, or of the first one in a folder."""
    file = next(_files(path))
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > _LARGEST_HEADER:
            raise ValueError("too large for a header")
        header = json.loads(stream.read(size))
    if not isinstance(header, dict):
        raise ValueError("not a header")  # as for other broken files
    return header


def _files(path: Path) -> Iterator[Path]:
    """Yield safetensors files, at most two folders deep.

    Raises:
        ValueError: At the end.
    """
    if path.is_file():
        yield path
    for pattern in (f"*{_SUFFIX}", f"*/*{_SUFFIX}"):
        for _, file in zip(range(_MOST_FILES), path.glob(pattern), strict=False):
            if file.is_file():
                yield file
    raise ValueError("no safetensors file")
