"""Weights sharded over several files, listed in an index (`*.safetensors.index.json`)."""

import json
import re
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from torch import Tensor

from localrank_cli.checkpoints.content import DAMAGED, Content, State, cannot_read, printable_name
from localrank_cli.checkpoints.formats import read
from localrank_cli.checkpoints.safetensors_file import read_tensors
from localrank_cli.errors import UnreadableError, cause
from localrank_cli.files import open_regular

INDEX_SUFFIXES = (".safetensors.index.json", ".bin.index.json")
_MAX_BYTES = 256 * 2**20  # published ones have up to 20 MiB
_SHARD = re.compile(r"[-_.]?\d+-of-\d+$")


def is_index(path: Path) -> bool:
    """Return whether a file is the index of sharded weights."""
    return index_suffix(path.name) != ""


def index_suffix(name: str) -> str:
    """Return the suffix that makes a file an index; empty for other files."""
    lower = name.lower()
    found = next((s for s in INDEX_SUFFIXES if lower.endswith(s)), "")
    return name[-len(found) :] if found else ""


def is_shard(stem: str) -> bool:
    """Return whether a name without suffix is that of a shard, such as model-00001-of-00002."""
    return _SHARD.search(stem) is not None


def read_sharded(
    index: Path, *, trust_pickle: bool = False, header_only: bool = False, mapped: bool = True
) -> Content:
    """Return all tensors that an index names, as one state dict in the order of the index.

    The options are those of `read_checkpoint`.

    Raises:
        UnreadableError: If the index or a shard cannot be read, or a shard lacks a tensor that the
            index places in it.
    """
    metadata, places = _parse(index)
    shards: dict[str, list[str]] = {}
    for key, name in places.items():
        shards.setdefault(name, []).append(key)
    found: dict[str, Tensor] = {}
    for name, keys in shards.items():
        shard = index.parent / name
        size_of_part(shard, index.name, f"{printable_name(keys[0])}{_more(keys)}")
        state = _read_shard(
            keys, shard, trust_pickle=trust_pickle, header_only=header_only, mapped=mapped
        )
        found |= _complete(state, keys, shard, index.name)
    state = {key: found[key] for key in places}
    return Content.of_state(state, metadata)


def shard_files(index: Path) -> list[Path]:
    """Return the paths of the files that an index names, each once.

    Raises:
        UnreadableError: If the index cannot be read.
    """
    _, places = _parse(index)
    return [index.parent / name for name in dict.fromkeys(places.values())]


def _read_shard(
    keys: list[str], shard: Path, *, trust_pickle: bool, header_only: bool, mapped: bool
) -> State:
    if shard.suffix.lower() == ".safetensors" and (mapped or header_only):
        content = read_tensors(shard, keys, header_only=header_only)
    else:
        content = read(shard, trust_pickle=trust_pickle, header_only=header_only, mapped=mapped)
    return content.states.get("", {})


def _complete(state: State, keys: list[str], shard: Path, index: str) -> State:
    absent = [key for key in keys if key not in state]
    if absent:
        raise UnreadableError(
            f"{shard}: does not hold {printable_name(absent[0])}{_more(absent)}, which {index}"
            " places there.",
            "The index and the files belong to different checkpoints: copy the checkpoint again, or"
            " save it again.",
        )
    return {key: state[key] for key in keys}


def _parse(index: Path) -> tuple[Mapping[str, Any], dict[str, str]]:
    try:
        status = index.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a FIFO would never end
            raise UnreadableError(f"{index}: is not a file.", DAMAGED)
        if status.st_size > _MAX_BYTES:
            raise UnreadableError(
                f"{index}: has {status.st_size} bytes; an index has at most {_MAX_BYTES}.", DAMAGED
            )
        with open_regular(index) as file:
            loaded = json.loads(file.read().decode("utf-8"))
    except OSError as error:
        raise cannot_read(index, error) from error
    except (ValueError, RecursionError) as error:  # invalid UTF-8, invalid JSON, nested too deeply
        raise UnreadableError(f"{index}: is not JSON ({cause(error)}).", DAMAGED) from error
    places = loaded.get("weight_map") if isinstance(loaded, dict) else None
    fine = isinstance(places, dict) and all(isinstance(name, str) for name in places.values())
    if not fine or not places:
        raise UnreadableError(f"{index}: has no table 'weight_map' of names and files.", DAMAGED)
    for name in places.values():
        check_inside(index, name)
    metadata = loaded.get("metadata")
    return metadata if isinstance(metadata, dict) else {}, places


def check_inside(index: Path, name: str) -> None:
    """Refuse a file's name that leads out of the checkpoint's folder.

    Only the name as written counts: in the Hub's cache each file is a link that leads out.

    Raises:
        UnreadableError: If the name is absolute or goes up.
    """
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    leads_out = posix.is_absolute() or windows.drive or windows.root or ".." in windows.parts
    if not name or leads_out or not name.isprintable():
        raise UnreadableError(
            f"{index}: names the file {name!r}, which is not in its folder.",
            "A checkpoint's files must be in its folder: do not use this one, or save it again.",
        )


def size_of_part(file: Path, index: object, contents: str) -> int:
    """Return the size in bytes of a file that an index names.

    Raises:
        UnreadableError: If it is missing or cannot be read.
    """
    try:
        return file.stat().st_size
    except FileNotFoundError as error:
        raise UnreadableError(
            f"{file}: there is no such file, but {index} says that it holds {contents}.",
            "Copy the whole checkpoint again, or leave it out with --pattern.",
        ) from error
    except OSError as error:
        raise cannot_read(file, error) from error


def _more(keys: list[str]) -> str:
    return f" and {len(keys) - 1} more" if len(keys) > 1 else ""
