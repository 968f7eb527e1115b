"""What is no regular file is refused, and not waited for."""

import os
import resource
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from localrank_cli.checkpoints.dcp import read_metadata
from localrank_cli.errors import DataError, OutputError, SettingsError, UnreadableError
from localrank_cli.files import open_regular
from localrank_cli.options.folder import read_folder_settings
from localrank_cli.results.journal import Journal, read_heads
from localrank_cli.results.manifest import read_manifest
from localrank_cli.results.plan_file import read_plan_file
from localrank_cli.results.read import read_table


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


NOT_REGULAR: dict[str, Callable[[Path], None]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a socket": _socket,
    "a folder": Path.mkdir,
}
pytestmark = pytest.mark.timeout(60)  # they would wait forever
each = pytest.mark.parametrize("make", NOT_REGULAR.values(), ids=NOT_REGULAR)


@each
def test_it_is_not_opened(
    tmp_path: Path, make: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    make(Path("x"))
    with pytest.raises(OSError, match=r"Not a regular file|No such device|Is a directory"):
        open_regular(Path("x"))


@each
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


@pytest.mark.parametrize("size", [3 * 2**30, 2**42], ids=["3 GiB", "4 TiB"])
def test_a_hole_is_not_read_into_memory(tmp_path: Path, size: int) -> None:
    """A file with a hole takes no room on the disk; zeros are no content of any of these."""
    names = ("localrank.toml", "plan.json", "a.csv", "a.csv.json", "a.csv.journal", "a.jsonl")
    for name in names:
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SettingsError, match=rf"localrank\.toml: cannot be read \({size} bytes"):
        read_folder_settings(tmp_path)
    with pytest.raises(UnreadableError, match=rf"plan\.json: cannot be read \({size} bytes"):
        read_plan_file(tmp_path / "plan.json")
    for name in ("a.csv", "a.jsonl"):
        with pytest.raises(DataError, match=r"is not a table \(a line has over 16,777,216 letters"):
            read_table(tmp_path / name)
    assert read_manifest(tmp_path / "a.csv") is None
    with pytest.raises(OutputError, match=r"a\.csv\.journal: line 1 is damaged"):
        Journal(tmp_path / "a.csv.journal")
    assert read_heads(tmp_path / "a.csv.journal", 0) == ([], 0)
    if sys.platform == "linux":  # in KiB; a tenth of the smaller hole
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 2**10
