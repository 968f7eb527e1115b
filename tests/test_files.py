"""What is no regular file is refused, and not waited for."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from localrank_cli.checkpoints.dcp import read_metadata
from localrank_cli.errors import UnreadableError
from localrank_cli.files import open_regular
from localrank_cli.results.manifest import read_manifest
from localrank_cli.results.plan_file import read_plan_file


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


NOT_REGULAR: dict[str, Callable[[Path], None]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a socket": _socket,
    "a folder": Path.mkdir,
}
pytestmark = [
    pytest.mark.timeout(60),  # they would wait for ever
    pytest.mark.parametrize("make", NOT_REGULAR.values(), ids=NOT_REGULAR),
]


def test_it_is_not_opened(
    tmp_path: Path, make: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    make(Path("x"))
    with pytest.raises(OSError, match=r"Not a regular file|No such device|Is a directory"):
        open_regular(Path("x"))


def test_readers_refuse_it(
    tmp_path: Path, make: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("plan.json"))
    with pytest.raises(
        UnreadableError, match=r"plan\.json: (cannot be read|is not a regular file)"
    ):
        read_plan_file(Path("plan.json"))
    make(Path(".metadata"))
    with pytest.raises(UnreadableError, match=r"\.metadata: cannot be read"):
        read_metadata(Path(".metadata"))
    make(Path("ranks.csv.json"))
    assert read_manifest(Path("ranks.csv")) is None
