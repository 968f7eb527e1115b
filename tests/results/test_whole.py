from pathlib import Path

import pytest

from localrank_cli.errors import OutputError
from localrank_cli.results.write import cannot_write, check_replaceable, write_bytes
from tests.helpers import entries


def test_a_file_appears_and_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "a.png"
    for content in (b"one", b"two"):
        check_replaceable(target)
        write_bytes(target, content)
        assert target.read_bytes() == content
    assert entries(tmp_path) == ["a.png"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_bytes(b"old")
    (tmp_path / "link.png").symlink_to("real.png")
    write_bytes(tmp_path / "link.png", b"new")
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "real.png").read_bytes() == b"new"


def test_what_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"old")

    def fail(self: Path, to: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OutputError, match=r"a\.png: cannot be written \(No space left"):
        write_bytes(target, b"new")
    assert target.read_bytes() == b"old"
    assert entries(tmp_path) == ["a.png"]


def test_what_cannot_be_replaced_is_known_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OutputError, match="is not a file"):
        check_replaceable(tmp_path / "a.png")
    with pytest.raises(OutputError, match="No such file or directory") as caught:
        check_replaceable(tmp_path / "nope/a.png")
    assert "Make the folder" in caught.value.advice
    refused = cannot_write(tmp_path / "a.png", FileNotFoundError(2, "No such file or directory"))
    assert refused.advice.startswith("Choose another place")


def test_a_folder_that_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write anywhere, so the answer of the system is set here.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(OutputError, match="Permission denied"):
        check_replaceable(tmp_path / "a.png")
