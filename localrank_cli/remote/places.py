"""The files of this process that are on other machines, by their places on this one."""

import atexit
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from localrank_cli.checkpoints.series import Series
from localrank_cli.errors import LocalrankError, Note, UsageError
from localrank_cli.remote.address import Address, FileAddress, HubAddress, address_of
from localrank_cli.remote.filesystem import FileSystem
from localrank_cli.remote.hub import Hub
from localrank_cli.remote.mirror import Mirror
from localrank_cli.remote.private import Private
from localrank_cli.remote.shelf import Shelf


@dataclass(frozen=True)
class Where:
    """Where downloads go."""

    folder: Path | None = None  # None: under the system's folder of caches
    keeps: bool = False  # whether they stay for later runs


_mirrors: dict[str, Mirror] = {}  # by repository or protocol
_open: dict[Address, Path] = {}
_shelf = [Shelf()]  # one, until `release`


def local(paths: Iterable[Path], where: Where, note: Note) -> list[Path]:
    """Return paths with each address replaced by the path that it has here.

    What an address names is listed once, until `release`, so that a run sees one state of it.

    Raises:
        LocalrankError: If an address cannot be read, or what it names.
    """
    given = [(path, address_of(path)) for path in paths]
    repositories: dict[str, HubAddress] = {}
    for _, address in given:
        if isinstance(address, HubAddress):
            _refuse_two(repositories.setdefault(address.repository, address), address)
    return [path if address is None else _opened(address, where, note) for path, address in given]


def _refuse_two(first: HubAddress, second: HubAddress) -> None:
    if first == second:
        return
    advice = "Analyze one after the other."
    if not first.folder and not second.folder:
        every = ",".join((*first.revisions, *second.revisions)) or "main"
        advice = f"Name it once: hf://{first.repository}@{every}."
    raise UsageError(f"{second}: the repository is named twice, also as {first}.", advice)


def attached(series: Series) -> Series:
    """Return a series with where its checkpoints come from, if that is another machine."""
    mirror = _mirror_of(series.folder)
    return series if mirror is None else mirror.attach(series)


def brought(path: Path) -> None:
    """Bring a whole file, such as data, if it is on another machine.

    Raises:
        UnreadableError: If it cannot be read.
    """
    mirror = _mirror_of(path)
    if mirror is not None:
        mirror.bring_file(path)


def shown(text: str) -> str:
    """Return a text with addresses in place of the paths that stand for them here."""
    for mirror in _mirrors.values():
        text = mirror.shown(text)
    return text


@contextmanager
def addressed() -> Iterator[None]:
    """Name addresses, and not the paths that stand for them, in the errors of a block.

    Raises:
        LocalrankError: The error, with other words.
    """
    try:
        yield
    except LocalrankError as error:
        what, advice = shown(error.what), shown(error.advice)
        if (what, advice) == (error.what, error.advice):
            raise
        raise type(error)(what, advice) from error


def is_remote(path: Path) -> bool:
    """Return whether a path of the command line is an address."""
    return address_of(path) is not None


@contextmanager
def downloads() -> Iterator[None]:
    """Remove at the end what was downloaded, so that a later call lists addresses anew."""
    try:
        yield
    finally:
        release()


def release() -> None:
    """Forget what was listed, and remove what was downloaded and is not to be kept."""
    is_busy = _shelf[0].is_busy
    for mirror in _mirrors.values():
        if not mirror.private.keeps:
            mirror.private.remove()
            # A download that nothing waits for may bring back what it needs.
            if not is_busy:
                atexit.unregister(mirror.private.remove)
    _mirrors.clear()
    _open.clear()
    _shelf[0] = Shelf()


def _mirror_of(path: Path) -> Mirror | None:
    return next((one for one in _mirrors.values() if path.is_relative_to(one.folder)), None)


def _opened(address: Address, where: Where, note: Note) -> Path:
    if address not in _open:
        is_hub = isinstance(address, HubAddress)
        key = address.repository if isinstance(address, HubAddress) else address.protocol
        mirror = _mirrors.get(f"{is_hub} {key}")
        if mirror is None:
            mirror = _mirror_at(address, where)
            _mirrors[f"{is_hub} {key}"] = mirror
        _open[address] = mirror.open(address, note)
    return _open[address]


def _mirror_at(address: Address, where: Where) -> Mirror:
    store = (
        FileSystem(address)
        if isinstance(address, FileAddress)
        else Hub(address.repository, str(address))
    )
    private = Private.make(str(address), where.folder, keeps=where.keeps)
    if not where.keeps:
        atexit.register(private.remove)
    return Mirror(store, private, _shelf[0])
