"""Reads one checkpoint file, whatever its format, without running code."""

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from localrank_cli.checkpoints.containers import unwrap
from localrank_cli.checkpoints.content import Content, epoch_in, step_in
from localrank_cli.errors import UnreadableError

_GLOBAL_IN_MESSAGE = re.compile(r"\bGLOBAL ([A-Za-z_][\w.]*)")
_DAMAGED = "Is the file complete? Copy or save it again, or leave it out with --pattern."


def read(path: Path, *, trust_pickle: bool = False, header_only: bool = False) -> Content:
    """Reads a checkpoint file.

    Args:
        path: The weights file.
        trust_pickle: Whether a pickle may run code.
        header_only: Whether keys and shapes are enough; the tensors may then be on `meta`.

    Returns:
        Its content; tensors of torch files are mapped where the file allows it.

    Raises:
        UnreadableError: If it cannot be read; the message names the file.
    """
    try:
        if path.stat().st_size == 0:
            raise UnreadableError(f"{path}: the file is empty.", _DAMAGED)
        with path.open("rb"):  # safetensors calls every reason a missing file
            str(path).encode()
    except OSError as error:
        raise _os_error(path, error) from error
    except UnicodeError as error:  # torch and safetensors take no other names
        raise UnreadableError(
            f"{path}: the path is not UTF-8.", "Rename it, or use a UTF-8 locale."
        ) from error
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path, header_only)
    return unwrap(load_torch(path, trust_pickle=trust_pickle), path)


def is_weights_file(path: Path) -> bool:
    """Tells whether a file has the suffix of a checkpoint.

    Args:
        path: Any path.

    Returns:
        True for the suffixes that `read` knows.
    """
    return path.suffix.lower() in _SUFFIXES


def _read_safetensors(path: Path, header_only: bool) -> Content:
    state: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = dict(file.metadata() or {})
            for key in file.keys():  # noqa: SIM118  # not a mapping
                if header_only:
                    shape = file.get_slice(key).get_shape()
                    state[key] = torch.empty(shape, device="meta")
                else:
                    state[key] = file.get_tensor(key)
    except SafetensorError as error:
        raise UnreadableError(
            f"{path}: not a readable safetensors file ({_one_line(error)}).", _DAMAGED
        ) from error
    except OSError as error:
        raise _os_error(path, error) from error
    if not state:
        raise UnreadableError(f"{path}: holds no tensor.", _DAMAGED)
    step, source = step_in(metadata)
    return Content({"": state}, step=step, step_source=source, epoch=epoch_in(metadata))


def load_torch(path: Path, *, trust_pickle: bool = False) -> object:
    """torch.load without running code, mapped where the file allows it.

    Args:
        path: A file of torch.save.
        trust_pickle: Whether a pickle may run code.

    Returns:
        What was saved.

    Raises:
        UnreadableError: If it cannot be read, or needs code and `trust_pickle` is not set.
    """
    is_zip = False
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of legacy storages: nothing the user can do
            # Legacy files refuse mmap.
            return torch.load(
                path, map_location="cpu", weights_only=not trust_pickle, mmap=is_zip or None
            )
    except OSError as error:
        raise _os_error(path, error) from error
    except Exception as error:  # torch.load raises what the pickle machinery happens to raise
        blocked = _blocked_globals(path, error)
        if blocked and not trust_pickle:
            raise UnreadableError(
                f"{path}: the pickle needs code to load: {', '.join(blocked)}.",
                "Convert it where you trust it: torch.save(model.state_dict(), FILE); or leave it"
                " out with --pattern; or, if you trust whoever made the file, pass --trust-pickle,"
                " which may run any code in it.",
            ) from error
        raise UnreadableError(
            f"{path}: not a readable torch file ({_reason(error)}).", _DAMAGED
        ) from error


def _blocked_globals(path: Path, error: Exception) -> list[str]:
    if not isinstance(error, pickle.UnpicklingError):
        return []
    try:
        names = list(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # it reads zip files only, and damaged ones raise anything
        names = []
    # Of a legacy file torch names the first one only.
    return sorted(names)[:8] or _GLOBAL_IN_MESSAGE.findall(str(error))[:1]


def _os_error(path: Path, error: OSError) -> UnreadableError:
    reason = error.strerror or _one_line(error)
    return UnreadableError(
        f"{path}: cannot be read ({reason}).", "Check that it exists and that you may read it."
    )


def _reason(error: Exception) -> str:
    if not isinstance(error, (RuntimeError, EOFError)):
        # torch's own text advises to load with weights_only=False, which would not help here.
        return "its bytes are not those that torch.save writes"
    return _one_line(error)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__


_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
_SHARD_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_FOLDER_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def is_folder_weights(path: Path) -> bool:
    """Tells whether a file is named as the weights in a `checkpoint-N/` folder are.

    Args:
        path: Any path.

    Returns:
        True for model.safetensors and pytorch_model.bin.
    """
    return path.name in _FOLDER_WEIGHTS


def folder_weights(folder: Path) -> Path | None:
    """The one weights file of a Hugging Face `checkpoint-N/` folder.

    Args:
        folder: The checkpoint's folder.

    Returns:
        The file, or None when the folder is no such checkpoint.

    Raises:
        UnreadableError: If its weights are sharded.
    """
    for name in _FOLDER_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    for name in _SHARD_INDEXES:
        index = folder / name
        if index.is_file():
            raise UnreadableError(
                f"{folder}: its weights are sharded over several files, which are not read yet.",
                "Save it again in one file: model.save_pretrained(DIR, max_shard_size='1TB').",
            )
    return None
