"""Arrays from data files, without running code."""

import hashlib
import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from localrank_cli.archives import fault_of_archive, is_archive
from localrank_cli.checkpoints.frameworks import MAX_REPEATED_BYTES
from localrank_cli.checkpoints.pickles import LostTensor, name_of
from localrank_cli.checkpoints.torch_file import load_safely
from localrank_cli.checkpoints.unpickling import MalformedError
from localrank_cli.errors import DataError, LocalrankError, SettingsError, cause, printable
from localrank_cli.points.draw import COMPLEX_DATA

SUFFIXES = (".safetensors", ".npz", ".npy", ".pt", ".pth")
_DENSE = "Save it dense: x.to_dense()."
DEFAULT_KEYS = ("x", "inputs", "images")


def load_array(path: Path, key: str, option: str = "--data-key") -> tuple[Tensor, str]:
    """Return an array from a file, that of the points or of their labels, and its key.

    The first axis is that of the points; the dtype is the array's own. Without a key it is the only
    array, else `x`, `inputs` or `images`. `option` named the key, for messages.

    Raises:
        DataError: If it cannot be read.
        SettingsError: If it is not clear which array is meant.
    """
    found = load_arrays(path, lambda keys: [choose_key(keys, key, str(path), option)])
    ((chosen, array),) = found.items()
    if key and not chosen:
        refuse_key(key, f"{path} holds one array without a name", option)
    return array, chosen


def load_arrays(path: Path, choose: Callable[[list[str]], Sequence[str]]) -> dict[str, Tensor]:
    """Return the arrays of a file that `choose` picks among their names, which are sorted.

    An array without a name is returned under "".

    Raises:
        DataError: If they cannot be read.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such data file.", "Check --data.")
    try:
        with ExitStack() as stack:
            loaded = _load(path, stack)
            if isinstance(loaded, Tensor):
                return {"": loaded}
            # An .npz reads an array when it is indexed, so labels are not read.
            chosen = choose(sorted(map(str, loaded)))
            return {name: _tensor(loaded[name], path, name) for name in chosen}
    except LocalrankError:
        raise
    except (OSError, ValueError, SafetensorError, EOFError, RuntimeError, pickle.PickleError) as e:
        raise DataError(
            f"{path}: cannot be read ({_reason(e)}).",
            "Supported: .safetensors, .npz, .npy and .pt with plain arrays; no pickled objects.",
        ) from e
    except Exception as e:  # zipfile and zlib raise errors of their own for damaged files
        raise DataError(
            f"{path}: cannot be read ({type(e).__name__}).", "Is the file complete?"
        ) from e


def refuse_key(key: str, reason: str, option: str = "--data-key") -> NoReturn:
    """Refuse the name of an array where arrays have no names.

    Raises:
        SettingsError: Always.
    """
    advice = (
        "Leave it out."
        if option == "--data-key"
        else "Save points and labels in one .npz, .safetensors or .pt file, each under a name."
    )
    raise SettingsError(f"{option} {key}: {reason}.", advice)


def from_numpy(array: "np.ndarray[Any, Any]", where: str) -> Tensor:
    """Return an array as a tensor; unsigned integers as int64, extended precision as float64.

    Raises:
        DataError: If it does not hold real numbers.
    """
    if array.dtype.kind not in "fiub":
        advice = COMPLEX_DATA if array.dtype.kind == "c" else "Real numbers are needed."
        raise DataError(f"{where} has dtype {array.dtype}.", advice)
    kind, size = array.dtype.kind, array.dtype.itemsize
    if array.size and kind == "u" and size == 8 and array.max() > np.iinfo(np.int64).max:
        raise DataError(f"{where} has integers above 2^63 - 1.", "Save it as floating point.")
    if (kind == "f" and size > 8) or (kind == "u" and size > 1):
        array = array.astype(np.float64 if kind == "f" else np.int64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def named_arrays(found: Any, place: str) -> dict[str, Tensor] | None:
    """Return the arrays of a dict, a batch of a tokenizer, a data set or a list of dicts.

    None for anything else.

    Raises:
        DataError: If a value is no array, or those of points have different shapes.
    """
    if hasattr(found, "column_names") and not isinstance(found, Mapping):
        found = found[:]  # of the library datasets
    if isinstance(found, (list, tuple)) and found and all(isinstance(p, Mapping) for p in found):
        if len({frozenset(map(str, one)) for one in found}) > 1:
            raise DataError(
                f"{place}: its points have different keys.", "Give each point the same inputs."
            )
        found = {key: [one[key] for one in found] for key in found[0]}
    if not isinstance(found, Mapping):
        return None
    return {str(key): _array(value, f"{place}[{key}]") for key, value in found.items()}


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load(path: Path, stack: ExitStack) -> Tensor | Mapping[str, Any]:
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return load_file(path)
    if suffix in (".npy", ".npz"):
        stream = stack.enter_context(path.open("rb"))
        file: Any = np.load(stream, allow_pickle=False)
        if isinstance(file, np.ndarray):
            return _tensor(file, path, "")
        members: Mapping[str, Any] = stack.enter_context(file)
        return members
    fault = fault_of_archive(path) if is_archive(path) else ""
    if fault:
        raise ValueError(fault)
    loaded = load_safely(path)
    if isinstance(loaded, (Tensor, LostTensor)):
        return _tensor(loaded, path, "")
    if isinstance(loaded, (tuple, list)):
        by_index = {str(index): value for index, value in enumerate(loaded)}
        return named_arrays(loaded, str(path)) or by_index
    if isinstance(loaded, Mapping):
        return {str(name): value for name, value in loaded.items()}
    raise ValueError(f"holds a {name_of(loaded)}, not tensors")


def _reason(error: Exception) -> str:
    if isinstance(error, MalformedError):
        return str(error)
    if isinstance(error, pickle.PickleError):
        return "it holds more than tensors, or is not a torch file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{cause(error)}"


def choose_key(keys: Sequence[str], key: str, path: str, option: str) -> str:
    """Return the array that is named, or meant where none is; `path` is for messages.

    Raises:
        SettingsError: If there is none, or it is not clear which.
    """
    names = ", ".join(keys) or "none"
    if key:
        if key not in keys:
            raise SettingsError(f"{option}: {path} has no array {key!r}.", f"Its arrays: {names}.")
        return key
    if len(keys) == 1:
        return keys[0]
    for default in DEFAULT_KEYS:
        if default in keys:
            return default
    if not keys:
        raise DataError(f"{path} holds no array.", "Check --data.")
    raise SettingsError(
        f"{path} holds several arrays: {names}.", "Choose one with --data-key NAME."
    )


def _array(value: Any, place: str) -> Tensor:
    try:
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
            return torch.stack(list(value)).detach().cpu()
        if isinstance(value, (list, tuple)):
            value = np.asarray(value)
        if isinstance(value, np.ndarray):
            return from_numpy(value, place)
        return torch.as_tensor(value).detach().cpu()
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(
            f"{place}: is no array of one shape for every point.",
            "Pad the points to one length, with an attention_mask that says which positions count.",
        ) from error


def _tensor(value: object, path: Path, key: str) -> Tensor:
    where = f"{path}[{key}]" if key else str(path)
    if isinstance(value, np.ndarray):
        return from_numpy(value, where)
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_quantized or value.is_nested:
            raise DataError(f"{where} is not a plain tensor.", _DENSE)
        held = value.untyped_storage().nbytes()
        if value.nbytes > max(held, MAX_REPEATED_BYTES):
            raise DataError(
                f"{where} claims {value.nbytes} bytes, and the file keeps {held} for it.",
                "Save the data again.",
            )
        return value.detach()
    if isinstance(value, LostTensor):
        raise DataError(f"{where} is not a plain tensor: {printable(value.reason)}.", _DENSE)
    if isinstance(value, list):
        return _array(value, where)
    raise DataError(f"{where} is a {printable(name_of(value))}, not an array.", "Check --data-key.")
