"""Reads folders of torch.distributed.checkpoint, without a process group and without its code."""

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from localrank_cli.checkpoints.containers import find_states
from localrank_cli.checkpoints.content import Content, State
from localrank_cli.checkpoints.dcp_metadata import Entry, Piece, check_files, read_metadata
from localrank_cli.checkpoints.faults import DAMAGED, cannot_read
from localrank_cli.checkpoints.frameworks import COUNTERS, PLACES, progress
from localrank_cli.errors import UnreadableError, cause

# What stands beside the weights in one dict.
_NOT_WEIGHTS = frozenset((
    "optim", "optimizer", "optimizers", "optim_state", "optimizer_states", "lr_scheduler",
    "lr_schedulers", "scheduler", "dataloader", "train_state", "rng", "rng_state", "rng_states",
    "trainer", "scaler", "loops", "callbacks",
))  # fmt: skip
_MOST_SCALAR = 2**20  # bytes in which a step or an epoch is saved; 1261 in torch 2.13


def read_dcp(path: Path, *, header_only: bool = False) -> Content:
    """Reads the weights that a folder of torch.distributed.checkpoint holds.

    Args:
        path: Its `.metadata`.
        header_only: Whether keys and shapes are enough; the tensors are then on `meta`.

    Returns:
        Its state dicts, by their place in the dict that was saved; "" for what lay at its top.

    Raises:
        UnreadableError: If it is damaged or incomplete, or holds no weights.
    """
    entries = read_metadata(path)
    leaves = {
        id(tensor): (tensor, entry) for tensor, entry in map(_on_meta, entries) if entry.dtype
    }
    states, averaged = _states(leaves)
    if not states:
        names = ", ".join(repr(entry.name) for entry in entries[:8])
        raise UnreadableError(
            f"{path}: no weights found; its entries are {names or 'none'}.",
            "Known places are the top level, model and state_dict; leave it out with --pattern.",
        )
    facts = _facts(path, entries)
    needed = [leaves[id(tensor)][1] for state in states.values() for tensor in state.values()]
    check_files(path, needed)
    for entry in needed:
        _check_kept(path, entry)
    step, source, epoch = progress(facts)
    if not header_only:
        states = {
            container: {
                key: _read_tensor(path, leaves[id(tensor)][1]) for key, tensor in state.items()
            }
            for container, state in states.items()
        }
    return Content(states, step, source, epoch, averaged)


def dcp_files(path: Path) -> list[Path]:
    """The files that hold a checkpoint's tensors.

    Args:
        path: Its `.metadata`.

    Returns:
        Their paths, each once.

    Raises:
        UnreadableError: If the metadata are damaged.
    """
    names = dict.fromkeys(piece.file for entry in read_metadata(path) for piece in entry.pieces)
    return [path.parent / name for name in names]


def _on_meta(entry: Entry) -> tuple[Tensor, Entry]:
    return torch.empty(entry.size, dtype=entry.dtype, device="meta"), entry


def _states(leaves: Mapping[int, tuple[Tensor, Entry]]) -> tuple[dict[str, State], frozenset[str]]:
    tree: dict[str, Any] = {}
    top: dict[str, Tensor] = {}
    for tensor, entry in leaves.values():
        first, *rest = entry.path
        if not rest:
            top[first] = tensor
        elif first not in _NOT_WEIGHTS:
            place = tree
            for part in entry.path[:-1]:
                inner = place.setdefault(part, {})
                # A value and a dict under one name: what is deeper is no part of a state dict.
                place = inner if isinstance(inner, dict) else {}
            place[entry.path[-1]] = tensor
    states, averaged = find_states(tree)
    if states:
        return states, averaged
    bare = {
        key: tensor
        for key, tensor in top.items()
        if key not in COUNTERS and key.split(".", 1)[0] not in _NOT_WEIGHTS
    }
    return ({"": bare} if bare else {}), frozenset()


def _facts(path: Path, entries: Sequence[Entry]) -> dict[str, Any]:
    """The few numbers that tell how far the training was; each is read from its place."""
    facts: dict[str, Any] = {}
    places = [(), *PLACES]
    for entry in entries:
        *parents, name = entry.path
        scalar = all(size == 1 for size in entry.size) and len(entry.pieces) == 1
        if name not in COUNTERS or tuple(parents) not in places or not scalar:
            continue
        value = _read_scalar(path.parent, entry.pieces[0])
        inner = facts
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = value
    return facts


def _read_scalar(folder: Path, piece: Piece) -> object:
    try:
        return _load(_bytes(folder, piece)) if piece.length <= _MOST_SCALAR else None
    except Exception:  # no number, or what only code could read: then it tells no step
        return None


def _read_tensor(path: Path, entry: Entry) -> Tensor:
    whole = torch.empty(entry.size, dtype=entry.dtype)
    for piece in entry.pieces:
        part = _read_piece(path, entry, piece)
        place = whole
        for axis, (start, length) in enumerate(zip(piece.offsets, piece.sizes, strict=True)):
            place = place.narrow(axis, start, length)
        place.copy_(part)
    return whole


def _check_kept(path: Path, entry: Entry) -> None:
    assert entry.dtype is not None
    count, stored = 1, sum(piece.length for piece in entry.pieces)
    for size in entry.size:
        count *= size
    if count * entry.dtype.itemsize > stored:
        raise UnreadableError(
            f"{path}: {entry.name} has {count} values of {entry.dtype}, and its files"
            f" keep {stored} bytes for it.",
            DAMAGED,
        )


def _read_piece(path: Path, entry: Entry, piece: Piece) -> Tensor:
    file = path.parent / piece.file
    try:
        loaded = _load(_bytes(path.parent, piece))
    except OSError as error:
        raise cannot_read(file, error) from error
    except Exception as error:  # torch.load raises what the pickle machinery happens to raise
        raise UnreadableError(
            f"{file}: {entry.name} is not readable at byte {piece.start} ({cause(error)[:80]}).",
            DAMAGED,
        ) from error
    if (
        not isinstance(loaded, Tensor)
        or tuple(loaded.shape) != piece.sizes
        or loaded.dtype != entry.dtype
        or loaded.layout != torch.strided
        or loaded.is_meta
    ):
        raise UnreadableError(
            f"{file}: {entry.name} at byte {piece.start} is not the {entry.dtype} of"
            f" shape {list(piece.sizes)} that {path.name} says.",
            DAMAGED,
        )
    return loaded


def _bytes(folder: Path, piece: Piece) -> io.BytesIO:
    with (folder / piece.file).open("rb") as file:
        file.seek(piece.start)
        return io.BytesIO(file.read(piece.length))


def _load(stream: io.BytesIO) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of legacy storages: nothing the user can do
        return torch.load(stream, map_location="cpu", weights_only=True)
