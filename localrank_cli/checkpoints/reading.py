"""Reads one checkpoint, whatever it consists of, without running code."""

from dataclasses import dataclass
from pathlib import Path

from localrank_cli.checkpoints.content import Content
from localrank_cli.checkpoints.dcp import dcp_files, read_dcp
from localrank_cli.checkpoints.faults import cannot_read
from localrank_cli.checkpoints.folders import DCP_METADATA
from localrank_cli.checkpoints.formats import read
from localrank_cli.checkpoints.sharded import is_index, read_sharded, shard_files


def read_checkpoint(
    path: Path, *, trust_pickle: bool = False, header_only: bool = False, mapped: bool = True
) -> Content:
    """Reads a checkpoint.

    Args:
        path: A weights file, the index of several, or `.metadata`.
        trust_pickle: Whether a pickle may run code.
        header_only: Whether keys and shapes are enough; the tensors may then be on `meta`.
        mapped: Whether tensors may be mapped. Not for a file that may still be written: a mapped
            file that shrinks kills the process.

    Returns:
        Its content.

    Raises:
        UnreadableError: If it cannot be read; the message names the file.
    """
    if path.name == DCP_METADATA:
        return read_dcp(path, header_only=header_only)
    if is_index(path):
        return read_sharded(path, trust_pickle=trust_pickle, header_only=header_only, mapped=mapped)
    return read(path, trust_pickle=trust_pickle, header_only=header_only, mapped=mapped)


@dataclass(frozen=True)
class Footprint:
    """By what a checkpoint that has not changed is known."""

    size: int  # bytes of all its files
    mtime_ns: int  # of the file that changed last


def footprint(path: Path) -> Footprint:
    """Looks at all files of a checkpoint, and into none but an index.

    Args:
        path: As for `read_checkpoint`.

    Returns:
        Their size and time.

    Raises:
        UnreadableError: If one of them is not there any more.
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
    """All files that a checkpoint consists of.

    Args:
        path: As for `read_checkpoint`.

    Returns:
        The file itself, and after an index or `.metadata` those it names.

    Raises:
        UnreadableError: If the index cannot be read.
    """
    if is_index(path):
        return [path, *shard_files(path)]
    if path.name == DCP_METADATA:
        return [path, *dcp_files(path)]
    return [path]
