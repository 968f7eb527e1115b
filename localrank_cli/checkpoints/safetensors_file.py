"""Files of safetensors: whole, some of their tensors, or their header alone."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from localrank_cli.checkpoints.content import (
    DAMAGED,
    Content,
    cannot_read,
    check_file,
    check_limits,
)
from localrank_cli.checkpoints.foreign import describe_by_magic
from localrank_cli.errors import UnreadableError, cause

# For a header it is enough to know whether numbers are floats, integers or complex.
_NOT_FLOATS = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16,
    "I16": torch.int16, "U32": torch.uint32, "I32": torch.int32, "U64": torch.uint64,
    "I64": torch.int64, "C64": torch.complex64,
}  # fmt: skip


def load_safetensors(path: Path) -> Content:
    """Return all tensors of a file, read to memory.

    Raises:
        UnreadableError: If it cannot be read.
    """
    try:
        return Content({"": load(path.read_bytes())})
    except (SafetensorError, RuntimeError, OverflowError, TypeError) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        raise cannot_read(path, error) from error


def read_tensors(path: Path, keys: Collection[str], *, header_only: bool = False) -> Content:
    """Return some tensors of a file; keys that it does not hold are left out.

    With `header_only` the tensors are on `meta`.

    Raises:
        UnreadableError: If it cannot be read.
    """
    check_file(path)
    return open_safetensors(path, keys, header_only=header_only)


def open_safetensors(
    path: Path, keys: Collection[str] | None = None, *, header_only: bool
) -> Content:
    """Return the tensors of a file, or those of some keys, mapped; `read_tensors` looks first.

    Raises:
        UnreadableError: If it cannot be read.
    """
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


def _damaged(path: Path, error: Exception) -> UnreadableError:
    check_limits(path, error)
    what, advice = describe_by_magic(path) or (
        f"not a readable safetensors file ({cause(error)})", DAMAGED,
    )  # fmt: skip
    return UnreadableError(f"{path}: {what}.", advice)
