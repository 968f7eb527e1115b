"""Files of torch.save: read without running code, or with it where the user trusts them."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from localrank_cli.archives import fault_of_archive, is_archive
from localrank_cli.checkpoints import pickles, trusted
from localrank_cli.checkpoints.content import DAMAGED, cannot_read, check_limits, printable_name
from localrank_cli.checkpoints.foreign import describe_foreign
from localrank_cli.checkpoints.frameworks import WITH_CODE
from localrank_cli.checkpoints.unpickling import Bounded, HostileError, MalformedError
from localrank_cli.errors import UnreadableError, cause

_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_ARCHIVE = b"PK\x03\x04"


class TorchScriptError(Exception):
    """An archive holds a program of TorchScript, which torch.load would hand to other code."""


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
        check_limits(path, error)
        _check_foreign(path)
        if isinstance(error, pickles.RefusedNameError):
            what = f"{path}: the pickle needs code to load: {printable_name(str(error))}."
            raise UnreadableError(what, WITH_CODE) from error
        advice = WITH_CODE if isinstance(error, HostileError) else DAMAGED
        raise UnreadableError(
            f"{path}: not a readable torch file ({_reason(error)}).", advice
        ) from error


def run_pickle(path: Path, mapped: bool) -> object:
    """Return what torch.save wrote, after running the code that the file names.

    Raises:
        UnreadableError: If it cannot be read in this way either.
    """
    _check_foreign(path)
    try:
        return _load_trusted(path, _is_sound_archive(path) and mapped)
    except UnreadableError:
        raise
    except trusted.NotImportableError as error:
        raise UnreadableError(
            f"{path}: the pickle needs {printable_name(str(error))}, which cannot be imported"
            f" ({cause(error.__cause__ or error)}).",
            "Install the package that defines it; `--model FILE.py:NAME` provides the names of"
            " __main__. Or convert the file where it was made: torch.save(model.state_dict(),"
            " FILE).",
        ) from error
    except Exception as error:  # the file's code may raise anything
        check_limits(path, error)
        raise UnreadableError(
            f"{path}: cannot be loaded even with its code ({cause(error)}).",
            "Convert it where it was made: torch.save(model.state_dict(), FILE); or leave it out"
            " with --pattern.",
        ) from error


def load_safely(file: Path | BytesIO, *, mapped: bool = False) -> object:
    """Return what torch.save wrote, without running code; mapped where the file allows it.

    Objects that are neither tensors nor plain containers are `pickles.Inert`.

    Raises:
        Exception: Whatever torch and the pickle machinery happen to raise.
    """
    with file.open("rb") if isinstance(file, Path) else file as stream:
        is_zip = stream.read(4) == _ARCHIVE
        stream.seek(0)
        if is_zip:
            opened: Any = stream if isinstance(file, BytesIO) else str(file)
            if "constants.pkl" in torch._C.PyTorchFileReader(opened).get_all_records():
                raise TorchScriptError("a TorchScript program")
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
