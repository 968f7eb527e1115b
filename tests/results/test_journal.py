import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localrank_cli.errors import OutputError
from localrank_cli.results.journal import Journal, journal_path, read_line

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


KIND = "note"  # of which a journal knows nothing: what is in it is not looked at


def head(name: str) -> dict[str, object]:
    return {"kind": KIND, "run": "r", "checkpoint": name, "step": 1}


def filled(path: Path, names: str = "abc") -> Path:
    with Journal(path) as journal:
        for name in names:
            journal.append(head(name), {"value": name * 50})
    return path


def held(path: Path) -> dict[str, object]:
    with Journal(path) as journal:
        return {
            entry.head["checkpoint"]: journal.body(entry)["value"]
            for entry in journal.entries(KIND)
        }


@settings(max_examples=50)
@given(st.lists(st.tuples(st.text(max_size=5), ANYTHING), max_size=5))
def test_what_is_appended_comes_back(
    tmp_path_factory: pytest.TempPathFactory, records: list[tuple[str, object]]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "a.csv.journal"
    with Journal(path) as journal:
        for name, value in records:
            journal.append(head(name), value)
    with Journal(path) as journal:
        found = {e.head["checkpoint"]: journal.body(e) for e in journal.entries(KIND)}
    assert found == dict(records)


def test_every_line_is_json_with_its_checksum(tmp_path: Path) -> None:
    for line in filled(tmp_path / "j").read_text().splitlines():
        assert list(json.loads(line)) == ["crc32", "head", "body"]


def test_a_later_record_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.append(head("a"), 1)
        journal.append(head("b"), 2)
        journal.append(head("a"), 3)
        assert [journal.body(entry) for entry in journal.entries(KIND)] == [3, 2]


def test_a_tail_torn_at_any_byte_is_cut(tmp_path: Path) -> None:
    whole = filled(tmp_path / "whole").read_bytes()
    lines = whole.splitlines(keepends=True)
    for length in range(len(whole)):
        path = tmp_path / "torn"
        path.write_bytes(whole[:length])
        kept = 0
        while kept < len(lines) and len(b"".join(lines[: kept + 1])) <= length:
            kept += 1
        expected = {name: name * 50 for name in "abc"[: max(0, kept - 1)]}  # the first is the head
        assert held(path) == expected
        with Journal(path) as journal:
            journal.append(head("z"), {"value": "new"})
        assert held(path) == expected | {"z": "new"}
        path.unlink()


def test_a_changed_byte_is_never_read_as_a_record(tmp_path: Path) -> None:
    whole = bytearray(filled(tmp_path / "whole").read_bytes())
    first = whole.index(b"\n") + 1
    last = whole.rindex(b"\n", 0, len(whole) - 1) + 1
    for place in range(first, len(whole), 7):
        path = tmp_path / "changed"
        path.write_bytes(bytes(whole[:place]) + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        if place < last:
            with pytest.raises(OutputError, match=r"line \d is damaged"):
                held(path)
        else:
            assert set(held(path)) == {"a", "b"}


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "j").write_text("run,step\n1,2\n3,4\n")
    with pytest.raises(OutputError, match="is damaged"):
        Journal(tmp_path / "j")
    assert (tmp_path / "j").read_text() == "run,step\n1,2\n3,4\n"


def test_another_version_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.append({"kind": "journal", "format": 99}, {})
    with pytest.raises(OutputError, match="not a journal of this version"):
        Journal(tmp_path / "j")


def test_a_full_disk_takes_nothing_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = filled(tmp_path / "j")

    def half(descriptor: int, data: bytes, offset: int) -> int:
        real(descriptor, data[: len(data) // 2], offset)
        raise OSError(28, "No space left on device")

    real = os.pwrite
    with Journal(path) as journal:
        monkeypatch.setattr("localrank_cli.results.journal.os.pwrite", half)
        with pytest.raises(OutputError, match="No space left on device"):
            journal.append(head("d"), {"value": "lost"})
        monkeypatch.undo()
    assert set(held(path)) == {"a", "b", "c"}


def test_its_name(tmp_path: Path) -> None:
    assert journal_path(tmp_path / "ranks.csv") == tmp_path / "ranks.csv.journal"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("read_only", [False, True])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, read_only: bool) -> None:
    os.mkfifo(tmp_path / "j")
    with pytest.raises(OutputError, match="is not a regular file"):
        Journal(tmp_path / "j", read_only=read_only)


def test_records_are_found_by_their_kind(tmp_path: Path) -> None:
    with Journal(filled(tmp_path / "j")) as journal:
        journal.append({"kind": "other", "run": "r"}, 1)
        assert [entry.head["kind"] for entry in journal.entries("other")] == ["other"]
        assert len(journal.entries(KIND)) == 3
        assert journal.entries("shard") == []


def test_lines_of_another_journal(tmp_path: Path) -> None:
    source = filled(tmp_path / "j")
    with Journal(source, read_only=True) as journal:
        entries = journal.entries(KIND)
    with Journal(tmp_path / "copy") as journal:
        for entry in entries:
            journal.copy(entry.head, read_line(source, entry))
        journal.sync()
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()


def test_a_journal_that_changed_since_it_was_looked_at(tmp_path: Path) -> None:
    path = filled(tmp_path / "j")
    with Journal(path, read_only=True) as journal:
        first, second, _ = journal.entries(KIND)
    for offset in (second.offset, second.offset + 1):  # another record, and none
        with pytest.raises(OutputError, match="changed while it was in use"):
            read_line(path, replace(first, offset=offset))
    path.unlink()
    with pytest.raises(OutputError, match="changed while it was in use"):
        read_line(path, first)
