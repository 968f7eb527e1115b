"""Arrays from data files, without running code."""

import hashlib
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from localrank_cli.archives import fault_of_archive, is_archive
from localrank_cli.checkpoints.frameworks import MAX_REPEATED_BYTES
from localrank_cli.checkpoints.pickles import NO_VALUES, LostTensor, name_of
from localrank_cli.checkpoints.torch_file import load_safely
from localrank_cli.checkpoints.unpickling import MalformedError
from localrank_cli.errors import (
    MORE_MEMORY,
    OUT_OF_MEMORY,
    DataError,
    LocalrankError,
    SettingsError,
    cause,
    is_out_of_memory,
    printable,
    readable,
)
from localrank_cli.points.containers import Npz, Safetensors, TorchArchive, open_npy
from localrank_cli.points.draw import from_numpy
from localrank_cli.points.rows import AT_ONCE, Data, Rows

SUFFIXES = (".safetensors", ".npz", ".npy", ".pt", ".pth")
_DENSE = "Save it dense: x.to_dense()."
_SAVE_VALUES = "Save the tensor after its values have been set."
_ONE_TENSOR = "Save a dict with one tensor for each input, the points on its first axis"
_KNOWN = (OSError, ValueError, SafetensorError, EOFError, RuntimeError, pickle.PickleError)
# Numbers in nested lists, which may repeat others that often.
_MOST_NUMBERS, _OFTEN = 2**22, 10
_DEEPEST = 64  # axes that numpy knows
_ENDLESS = 2**62
DEFAULT_KEYS = ("x", "inputs", "images")


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
    found = load_arrays(path, lambda keys: [choose_key(keys, key, str(path), option)], memory)
    ((chosen, array),) = found.items()
    if key and not chosen:
        refuse_key(key, f"{path} holds one array without a name", option)
    return array, chosen


def load_arrays(
    path: Path, choose: Callable[[list[str]], Sequence[str]], memory: int | None = None
) -> dict[str, Data]:
    """Return the arrays of a file that `choose` picks among their names, which are sorted.

    An array without a name is returned under "". A large one stays in the file; `memory` limits the
    bytes of one that cannot (None: any).

    Raises:
        DataError: If they cannot be read.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such data file.", "Check --data.")
    try:
        loaded = _load(path, memory)
        if not isinstance(loaded.content, Mapping):
            return {"": _member(loaded, path, "", memory)}
        # An .npz opens an array when it is indexed, so labels are not read.
        chosen = choose(sorted(map(str, loaded.content)))
        return {name: _member(loaded, path, name, memory) for name in chosen}
    except LocalrankError:
        raise
    except Exception as error:
        raise _cannot_read(path, error) from error


def _cannot_read(path: Path, error: Exception) -> DataError:
    if is_out_of_memory(error):
        return DataError(f"{path}: cannot be read ({OUT_OF_MEMORY}).", MORE_MEMORY)
    if isinstance(error, _KNOWN):
        return DataError(
            f"{path}: cannot be read ({_reason(error)}).",
            "Supported: .safetensors, .npz, .npy and .pt with plain arrays; no pickled objects.",
        )
    # zipfile, zlib and numpy raise errors of their own for damaged files.
    return DataError(f"{path}: cannot be read ({type(error).__name__}).", "Is the file complete?")


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


def named_arrays(found: Any, place: str) -> dict[str, Tensor] | None:
    """Return the arrays of a dict, a batch of a tokenizer, a data set, or a list of dicts or pairs.

    None for anything else.

    Raises:
        DataError: If a value is no array, or those of points have different shapes.
    """
    if hasattr(found, "column_names") and not isinstance(found, Mapping):
        found = found[:]  # of the library datasets
    if _are_points(found):
        if len({frozenset(map(str, one)) for one in found}) > 1:
            raise DataError(
                f"{place}: its points have different keys.", "Give each point the same inputs."
            )
        found = {key: [one[key] for one in found] for key in found[0]}
    elif _are_pairs(found):
        found = {index: [one[index] for one in found] for index in range(len(found[0]))}
    if not isinstance(found, Mapping):
        return None
    return {str(key): _array(value, f"{place}[{key}]") for key, value in found.items()}


def _are_points(found: object) -> bool:
    """Return whether something is a list with a dict of inputs for each point."""
    return (
        isinstance(found, (list, tuple))
        and bool(found)
        and all(isinstance(one, Mapping) for one in found)
    )


def _are_pairs(found: object) -> bool:
    """Return whether something is a list with a tuple for each point: (input, label).

    A pair of lists, of all inputs and all labels, is none.
    """
    if not isinstance(found, (list, tuple)) or len(found) < 2:
        return False
    if not all(isinstance(one, (list, tuple)) and len(one) == len(found[0]) > 1 for one in found):
        return False
    first, second, *_ = found[0]
    same = isinstance(second, Tensor) and isinstance(first, Tensor) and first.shape == second.shape
    is_array = all(isinstance(one[0], (Tensor, np.ndarray)) for one in found)
    return is_array and (not same or len(found) > len(found[0]) == 2)  # a pair


def which_key(keys: Sequence[str]) -> str:
    """Return the advice to choose one of several arrays."""
    if sorted(keys) == ["0", "1"]:
        return "Choose one with --data-key NAME: --data-key 0 if these are inputs and labels"
    if len(keys) > 2 and all(key.isdecimal() for key in keys):  # more than a pair
        stack = "If each is a point, save them as one array: torch.stack(data)."
        return f"{stack} Else choose one with --data-key NAME"
    return "Choose one with --data-key NAME"


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
    if archive is None or not archive.is_native:
        return _load_whole(path, memory, "Save it again with the torch of this machine")
    content = archive.load()
    if _are_points(content) or _are_pairs(content):
        return _load_whole(path, memory, _ONE_TENSOR)
    return _Loaded(_named(content, path), archive)


def _load_whole(path: Path, memory: int | None, advice: str, *, mapped: bool = False) -> _Loaded:
    size = path.stat().st_size
    if memory is not None and size > max(memory, AT_ONCE):
        raise DataError(
            f"{path}: can only be read as a whole, which needs {readable(size)}; the budget is"
            f" {readable(memory)}.",
            f"{advice}, or give more with --memory.",
        )
    return _Loaded(_named(load_safely(path, mapped=mapped), path))


def _named(loaded: object, path: Path) -> object:
    if isinstance(loaded, (tuple, list)):
        by_index = {str(index): value for index, value in enumerate(loaded)}
        return named_arrays(loaded, str(path)) or by_index
    if isinstance(loaded, Mapping):
        return {str(name): value for name, value in loaded.items()}
    if isinstance(loaded, (Tensor, LostTensor)):
        return loaded
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
    raise SettingsError(f"{path} holds several arrays: {names}.", f"{which_key(keys)}.")


def _array(value: Any, place: str) -> Tensor:
    if isinstance(value, (list, tuple)):
        _check_repeated(value, place)
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
            f"{place}: is not an array with the same shape for every point.",
            "Pad the points to one length, with an attention_mask that says which positions count.",
        ) from error


def _check_repeated(value: Sequence[Any], place: str) -> None:
    """Check that nested lists, or a list of tensors, do not become much more than they hold.

    Raises:
        DataError: If they do: a file of a kilobyte can describe an array of any size.
    """
    tensors = [one for one in value if isinstance(one, Tensor)]
    held = {id(one.untyped_storage()): one.untyped_storage().nbytes() for one in tensors}
    lists: dict[int, tuple[int, int]] = {}
    numbers = _count(value, lists)
    is_repeated = numbers > max(_MOST_NUMBERS, _OFTEN * sum(size + 1 for size, _ in lists.values()))
    claimed = sum(one.numel() * one.itemsize for one in tensors)
    if is_repeated or claimed > max(sum(held.values()), MAX_REPEATED_BYTES):
        raise DataError(
            f"{place}: its lists repeat a few values or tensors many times.",
            "Save it as one tensor: torch.as_tensor(x), or torch.stack(x).",
        )


def _count(value: Sequence[Any], lists: dict[int, tuple[int, int]], depth: int = 0) -> int:
    """Return how many values and lists nested lists hold, each as often as it is met.

    `lists` receives the length of each list and its result.
    """
    if depth > _DEEPEST:
        return _ENDLESS
    if id(value) not in lists:
        lists[id(value)] = len(value), _ENDLESS  # if it is met within itself
        met = 1 + sum(
            _count(one, lists, depth + 1) if isinstance(one, (list, tuple)) else 1 for one in value
        )
        lists[id(value)] = len(value), min(met, _ENDLESS)
    return lists[id(value)][1]


def _member(loaded: _Loaded, path: Path, key: str, memory: int | None) -> Data:
    where = f"{path}[{key}]" if key else str(path)
    value: object = loaded.content[key] if isinstance(loaded.content, Mapping) else loaded.content
    if isinstance(value, Rows):
        return value
    if isinstance(value, np.ndarray):
        return from_numpy(value, where)
    if isinstance(value, Tensor):
        _check_plain(value, where)
        rows = loaded.archive.rows(value) if loaded.archive is not None else None
        if rows is not None:
            return rows
    if isinstance(value, LostTensor) and value.reason == NO_VALUES:
        raise DataError(f"{where} has no values: it was saved from the meta device.", _SAVE_VALUES)
    if isinstance(value, LostTensor):
        raise DataError(f"{where} is not a plain tensor: {printable(value.reason)}.", _DENSE)
    if not isinstance(value, (Tensor, list)):
        raise DataError(
            f"{where} is a {printable(name_of(value))}, not an array.", "Check --data-key."
        )
    if loaded.archive is not None and loaded.archive.holds_tensors:  # else nothing is on `meta`
        return _member(_mapped(value, path, memory), path, key, memory)
    if isinstance(value, Tensor):
        return value.detach().resolve_conj().resolve_neg()
    return _array(value, where)


def _mapped(value: "Tensor | list[object]", path: Path, memory: int | None) -> _Loaded:
    """Return the content of a file of which a value is needed that is not in it as it is."""
    advice = _ONE_TENSOR
    if isinstance(value, Tensor):
        advice = "Save the tensor as a copy, x.clone()"
        if value.nbytes <= AT_ONCE:
            memory = None
    return _load_whole(path, memory, advice, mapped=True)


def _check_plain(value: Tensor, where: str) -> None:
    if value.layout != torch.strided or value.is_quantized or value.is_nested:
        raise DataError(f"{where} is not a plain tensor.", _DENSE)
    claimed, held = value.numel() * value.itemsize, value.untyped_storage().nbytes()
    if claimed > max(held, MAX_REPEATED_BYTES):
        raise DataError(
            f"{where} claims {claimed} bytes, but the file holds {held} for it.",
            "Save it with each value once, or as a copy: x.clone().",
        )
