"""torch.load, given only what it reads without running code: for checkpoints, data and pieces."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from localrank_cli.checkpoints import pickles
from localrank_cli.checkpoints.unpickling import Bounded

_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_ARCHIVE = b"PK\x03\x04"


class TorchScriptError(Exception):
    """An archive holds a program of TorchScript, which torch.load would hand to other code."""


def load_safely(file: Path | BytesIO, *, mapped: bool = False) -> object:
    """Return what torch.save wrote, without running code; mapped where the file allows it.

    Objects that are neither tensors nor plain containers are `pickles.Inert`.

    Raises:
        Exception: Whatever torch and the pickle machinery happen to raise.
    """
    with file.open("rb") if isinstance(file, Path) else file as stream:
        is_archive = stream.read(4) == _ARCHIVE
        stream.seek(0)
        if is_archive:
            opened: Any = stream if isinstance(file, BytesIO) else str(file)
            if "constants.pkl" in torch._C.PyTorchFileReader(opened).get_all_records():
                raise TorchScriptError("a program of TorchScript")
            stream.seek(0)
            return _load(file, mapped)
        # Without a descriptor, so that torch does not look for a tar archive of before 0.2.
        return _load(stream if isinstance(stream, BytesIO) else Bounded(stream), False)


def _load(file: "Path | BytesIO | Bounded", mapped: bool) -> object:
    with warnings.catch_warnings(), _unforced():
        warnings.simplefilter("ignore")  # about legacy storages: the user can do nothing
        return torch.load(
            file,  # type: ignore[arg-type]  # Bounded has what torch needs
            map_location="cpu",
            pickle_module=pickles,
            weights_only=False,
            mmap=mapped or None,  # legacy files refuse mmap
        )


@contextmanager
def _unforced() -> Iterator[None]:
    """Let torch.load use `pickles` where the user's environment forbids it to run code."""
    forced = os.environ.pop(_FORCE, None)
    try:
        yield
    finally:
        if forced is not None:
            os.environ[_FORCE] = forced
