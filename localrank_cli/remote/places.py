"""The series of this process that are on other machines, by their folder on this one."""

import atexit
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from localrank_cli.checkpoints.series import Series
from localrank_cli.errors import LocalrankError, UsageError
from localrank_cli.remote.address import HubAddress, address_of
from localrank_cli.remote.hub import Hub
from localrank_cli.remote.private import Private
from localrank_cli.remote.series import RemoteSeries


@dataclass(frozen=True)
class Where:
    """Where downloads go."""

    folder: Path | None = None  # None: under the system's folder of caches
    keeps: bool = False  # whether they stay for later runs


_open: dict[HubAddress, RemoteSeries] = {}


def local(paths: Iterable[Path], where: Where) -> list[Path]:
    """Return paths with each address replaced by the folder that its series has here.

    The revisions are listed once in a process, so that a run sees one state of them.

    Raises:
        LocalrankError: If an address cannot be read, or what it names.
    """
    given = [(path, address_of(path)) for path in paths]
    repositories: dict[str, HubAddress] = {}
    for _, address in given:
        if address is not None:
            other = repositories.setdefault(address.repository, address)
            if other != address:
                raise UsageError(
                    f"{address}: the repository is named twice, as {other} too.",
                    f"Name it once: hf://{address.repository}"
                    f"@{','.join((*other.revisions, *address.revisions)) or 'main'}.",
                )
    return [path if address is None else _opened(address, where).folder for path, address in given]


def attached(series: Series) -> Series:
    """Return a series with where its checkpoints come from, if that is another machine."""
    for remote in _open.values():
        if remote.folder == series.folder:
            return remote.attach(series)
    return series


@contextmanager
def addressed() -> Iterator[None]:
    """Name addresses, and not the folders that stand for them, in the errors of a block.

    Raises:
        LocalrankError: The error, with other words.
    """
    try:
        yield
    except LocalrankError as error:
        what, advice = (_addressed(text) for text in (error.what, error.advice))
        if (what, advice) == (error.what, error.advice):
            raise
        raise type(error)(what, advice) from error


def _addressed(text: str) -> str:
    for remote in _open.values():
        text = text.replace(str(remote.folder), remote.address)
    return text


def is_remote(path: Path) -> bool:
    """Return whether a path of the command line is an address."""
    return address_of(path) is not None


def _opened(address: HubAddress, where: Where) -> RemoteSeries:
    found = _open.get(address)
    if found is None:
        store = Hub(address.repository, str(address))
        private = Private.make(str(address), where.folder, keeps=where.keeps)
        if not where.keeps:
            atexit.register(private.remove)
        found = RemoteSeries(store, address.repository, str(address), private)
        found.open(address.revisions)
        _open[address] = found
    return found
