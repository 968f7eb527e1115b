"""Read one checkpoint in any format, and compare two."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from localrank_cli.checkpoints.content import Content, State, cannot_read
from localrank_cli.checkpoints.dcp import dcp_files, read_dcp
from localrank_cli.checkpoints.folders import DCP_METADATA
from localrank_cli.checkpoints.formats import read
from localrank_cli.checkpoints.frameworks import EMA_KEYS
from localrank_cli.checkpoints.series import CheckpointFile
from localrank_cli.checkpoints.sharded import is_index, read_sharded, shard_files
from localrank_cli.checkpoints.weights import EMA, RAW, Sets, choose, part_at
from localrank_cli.errors import UnreadableError


def read_checkpoint(
    path: Path, *, trust_pickle: bool = False, header_only: bool = False, mapped: bool = True
) -> Content:
    """Return the content of a checkpoint, read without running code.

    Args:
        path: A weights file, the index of several, or `.metadata`.
        trust_pickle: Whether a pickle may run code.
        header_only: Whether keys and shapes are enough; the tensors may then be on `meta`.
        mapped: Whether tensors may be mapped. Not for a file that may still be written: a mapped
            file that shrinks kills the process.

    Raises:
        UnreadableError: If it cannot be read; the message names the file.
    """
    if path.name == DCP_METADATA:
        return read_dcp(path, header_only=header_only)
    if is_index(path):
        return read_sharded(path, trust_pickle=trust_pickle, header_only=header_only, mapped=mapped)
    return read(path, trust_pickle=trust_pickle, header_only=header_only, mapped=mapped)


def read_file(
    file: CheckpointFile,
    *,
    trust_pickle: bool = False,
    header_only: bool = False,
    mapped: bool = True,
) -> Content:
    """Return the content of a checkpoint of a series, in memory or by `read_checkpoint`.

    What is on another machine is fetched.
    """
    if file.held is not None:
        return file.held
    how = partial(
        read_checkpoint, trust_pickle=trust_pickle, header_only=header_only, mapped=mapped
    )
    if file.source is None:
        return how(file.path)
    try:
        if header_only:
            return how(file.source.header())
        file.source.fetch()
        return how(file.path)
    except UnreadableError as error:
        raise file.source.explained(error) from error


def sets_of(content: Content) -> Sets:
    """Return the sets of weights that a checkpoint holds."""
    return Sets(tuple(content.states), content.averaged, content.others)


def with_part(content: Content, weights: str) -> Content:
    """Return a content with one more set where `--weights` names a prefix within one (`student`).

    `ema` names those under which averages are found in other files (`ema_model.*`).
    """
    if weights == RAW or weights in content.states or (weights == EMA and content.averaged):
        return content
    places = EMA_KEYS if weights == EMA else (weights,)
    found = {
        place: part for place in places if (part := part_at(content.states, place)) is not None
    }
    averaged = content.averaged | (set(found) if weights == EMA else set())
    return replace(content, states={**content.states, **found}, averaged=averaged)


@dataclass(frozen=True)
class Footprint:
    """What shows whether a checkpoint has changed."""

    size: int  # bytes of all its files
    mtime_ns: int  # of the file that changed last
    pin: str = ""  # the versions of its files, if they are on another machine


def footprint_of(file: CheckpointFile) -> Footprint:
    """Return the size and time of a checkpoint of a series.

    Weights in memory have no time, nor those on another machine.

    Raises:
        UnreadableError: If one of its files is gone.
    """
    if file.source is not None:
        return Footprint(file.source.size, 0, _pin_of(file.source.versions))
    if file.held is None:
        return footprint(file.path)
    tensors = (one for state in file.held.states.values() for one in state.values())
    return Footprint(sum(one.nbytes for one in tensors), 0)


def _pin_of(versions: Sequence[str]) -> str:
    """Return the version of one file; of several a hash of theirs."""
    if len(versions) < 2:
        return "".join(versions)
    return hashlib.sha256("\n".join(versions).encode()).hexdigest()


def footprint(path: Path) -> Footprint:
    """Return size and time of all files of a checkpoint, opening none but an index.

    Raises:
        UnreadableError: If one of them is gone.
    """
    size, mtime = 0, 0
    for file in files_of(path):
        try:
            stat = file.stat()
        except OSError as error:
            raise cannot_read(file, error) from error
        size, mtime = size + stat.st_size, max(mtime, stat.st_mtime_ns)
    return Footprint(size, mtime)


def files_of(path: Path) -> list[Path]:
    """Return the file itself and, for an index or `.metadata`, the files that it names.

    Raises:
        UnreadableError: If the index cannot be read.
    """
    if is_index(path):
        return [path, *shard_files(path)]
    if path.name == DCP_METADATA:
        return [path, *dcp_files(path)]
    return [path]


class Twins:
    """Compare checkpoints by the tensors that `--weights` names.

    The second checkpoint of the last comparison is cached.
    """

    def __init__(self, weights: str, trust_pickle: bool) -> None:
        self._weights = weights
        self._trust_pickle = trust_pickle
        self._last: tuple[Path, State] | None = None

    def same(self, first: Path, second: Path) -> bool:
        """Return whether two checkpoints are one file (a link), or hold equal tensors and names.

        Raises:
            UnreadableError: If one cannot be read.
        """
        try:
            if first.samefile(second):
                return True
        except OSError as error:
            raise cannot_read(Path(error.filename or second), error) from error
        if self._last is None or self._last[0] != second:
            self._last = (second, self._state(second))
        return _equal(self._state(first), self._last[1])

    def _state(self, path: Path) -> State:
        content = read_checkpoint(path, trust_pickle=self._trust_pickle)
        content = with_part(content, self._weights)
        keys = choose(sets_of(content), self._weights, str(path))
        state = content.states[keys[0]]
        if not keys[0]:  # what is beside other sets may be statistics of the data
            keys = tuple(key for key in content.states if key not in content.averaged)
        elif keys[0] not in content.others:
            return state
        # It is not known yet which of several networks is the model's, so all must be equal.
        if len(keys) == 1:
            return state
        return {f"{key}.{name}": v for key in keys for name, v in content.states[key].items()}


def _equal(left: State, right: State) -> bool:
    if left.keys() != right.keys():
        return False
    # The smallest tensors first: if they differ, the larger tensors of mapped files are not read.
    for key in sorted(left, key=lambda name: left[name].numel()):
        one, other = left[key], right[key]
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        equal = (one == other) | ((one != one) & (other != other))  # noqa: PLR0124  # NaN in any dtype
        if not bool(torch.all(equal)):
            return False
    return True
