"""One process at a time for one output file."""

import fcntl
import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from localrank_cli.errors import OutputError
from localrank_cli.results.write import cannot_write, file_server_time
from localrank_cli.validation import loads

_BEAT = 10.0  # seconds between heartbeats, where there is no flock
_STALE = 6 * _BEAT
_WATCHED = 2.5  # heartbeats


def lock_path(target: Path) -> Path:
    """Return the path of a table's lock: `ranks.csv.lock` for `ranks.csv`."""
    return target.with_name(target.name + ".lock")


class OutputLock:
    """The lock of a table: `FILE.lock` held with flock, which dies with its process.

    Where the file system has no flock, the file itself is the lock: it is created exclusively and
    written every 10 seconds. One that was not written for a minute, by the clock of the file
    server, and is not written while we watch it, is a dead process's.

    Raises:
        OutputError: If another process holds it, or it cannot be created.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._path = lock_path(target)
        self._stop = threading.Event()
        self._beating: threading.Thread | None = None
        try:
            self._descriptor = self._take()
        except OSError as error:
            raise cannot_write(target, error) from error
        with suppress(OSError):  # a full disk; the owner's name is for messages only
            os.ftruncate(self._descriptor, 0)
            self._say_who()

    def _take(self) -> int:
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _read(descriptor)
                os.close(descriptor)
                raise self._refusal(holder) from None
            except OSError:  # no flock here (some network file systems)
                os.close(descriptor)
                return self._take_by_creation()
            # Its last holder may have removed it between open and flock.
            with suppress(FileNotFoundError):  # removed: create it again
                if os.path.samestat(os.fstat(descriptor), self._path.stat()):
                    return descriptor
            os.close(descriptor)

    def _take_by_creation(self) -> int:
        # Another name, as the file that was opened for flock exists already.
        self._path.unlink(missing_ok=True)
        self._path = self._path.with_name(self._path.name + "ed")
        with suppress(FileNotFoundError):  # nobody holds it
            if self._is_dead():
                self._path.unlink()
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            raise self._refusal(self._path.read_text(errors="replace")) from None
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()
        return descriptor

    def _is_dead(self) -> bool:
        """Return whether the file is the lock of a dead process."""
        before = _written_at(self._path)
        # Not the time of this host: a clock may be minutes off.
        if file_server_time(self._path.parent) - before <= _STALE:
            return False
        # Some file systems (Lustre) date a file by the clock of the host that writes it.
        time.sleep(_WATCHED * _BEAT)
        return _written_at(self._path) == before

    def _beat(self) -> None:
        while not self._stop.wait(_BEAT):
            with suppress(OSError):  # a later beat may succeed
                self._say_who()

    def _say_who(self) -> None:
        owner = {"pid": os.getpid(), "host": socket.gethostname()}
        os.pwrite(self._descriptor, f"{json.dumps(owner)}\n".encode(), 0)
        os.utime(self._descriptor)

    def _refusal(self, holder: str) -> OutputError:
        try:
            owner: Any = loads(holder)
            who = f"process {int(owner['pid'])} on {owner['host']}"
        except (ValueError, KeyError, TypeError):
            who = "another process"
        return OutputError(
            f"{self._target}: {who} is writing it.",
            "Wait for it, stop it, or give another name with -o.",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._beating is not None:  # it writes to the descriptor
            self._beating.join()
        # Removed while it is held, so that no other process's new lock is removed.
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def _written_at(path: Path) -> float:
    # Opening a file asks the server; stat alone may answer from a cache.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)


def _read(descriptor: int) -> str:
    with suppress(OSError):  # the owner's name is for messages only
        return os.pread(descriptor, 4096, 0).decode(errors="replace")
    return ""
