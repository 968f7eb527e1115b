import io
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from localrank_cli.archives import fault_of_archive, is_archive, read_entries
from localrank_cli.checkpoints.reading import read_checkpoint
from localrank_cli.errors import LocalrankError
from tests.faults.spoiled import with_two_lists, zipped_again, zipped_over_one_another
from tests.helpers import weights

LISTED, END = b"PK\x01\x02", b"PK\x05\x06"


@pytest.mark.parametrize("compressed", [False, True])
def test_only_compressed_entries_are_a_fault(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "x.pt"
    zipped_again(path, weights(), compressed=compressed)
    assert is_archive(path)
    assert ("compressed" in fault_of_archive(path)) is compressed


def test_files_of_torch_have_no_fault(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "x.pt")
    assert fault_of_archive(tmp_path / "x.pt") == ""


def test_files_that_are_not_zip_archives(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    assert not is_archive(tmp_path / "x.pt")


def test_entries_larger_than_the_file(tmp_path: Path) -> None:
    zipped_over_one_another(tmp_path / "x.pt")
    assert "larger than the file" in fault_of_archive(tmp_path / "x.pt")


def test_a_list_of_entries_cut_off(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:-30])
    assert "damaged" in fault_of_archive(tmp_path / "x.pt")


def test_entries_are_where_torch_finds_them(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "x.pt")
    reader: Any = torch._C.PyTorchFileReader(str(tmp_path / "x.pt"))
    found = {entry.name.partition("/")[2]: entry for entry in read_entries(tmp_path / "x.pt")}
    assert set(found) == set(reader.get_all_records())
    for name, entry in found.items():
        assert entry.offset == reader.get_record_offset(name)
        assert entry.size == len(reader.get_record(name))


@pytest.mark.parametrize("zip64", [False, True])
def test_entries_are_where_python_finds_them(tmp_path: Path, zip64: bool) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = b"by hand"
        with archive.open("a/data/0", "w", force_zip64=zip64) as file:
            file.write(b"0" * 1000)
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        (one,) = archive.infolist()
    (entry,) = read_entries(tmp_path / "x.zip")
    assert (entry.name, entry.is_stored, entry.packed, entry.size) == (
        "a/data/0", False, one.compress_size, 1000,
    )  # fmt: skip


def test_a_list_with_places_beyond_4_gib(tmp_path: Path) -> None:
    """Sparse: the bytes are never written."""
    path = tmp_path / "x.pt"
    with path.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        with archive.open("x/data/0", "w", force_zip64=True):
            pass
        start = file.tell()
        size = 5 * 2**30
        archive.infolist()[0].file_size = archive.infolist()[0].compress_size = size
        file.seek(start + size)
        archive.start_dir = file.tell()
        archive.writestr("x/data/1", b"12")
    assert fault_of_archive(path) == ""
    one, other = read_entries(path)
    assert (one.offset, one.size) == (start, size)
    assert other.offset > size
    assert other.size == 2


@pytest.mark.parametrize("shift", [-16, -12, -8, -4, -1, 1, 4, 8, 12, 16, 64])
def test_weights_beside_where_they_are(tmp_path: Path, shift: int) -> None:
    """The length of the field before an entry's bytes says where they begin, to torch as well."""
    path = tmp_path / "x.pt"
    torch.save(weights(*[4] * 9), path)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        headers = [one.header_offset for one in archive.infolist() if "/data/" in one.filename]
    fields = [(struct.unpack_from("<H", data, header + 28)[0], header + 28) for header in headers]
    length, at = max(fields)
    assert length >= 16
    struct.pack_into("<H", data, at, length + shift)
    path.write_bytes(data)
    assert "damaged: " in fault_of_archive(path)


@pytest.mark.parametrize("checksums", [True, False])
def test_files_of_torch_without_checksums(
    tmp_path: Path, checksums: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(checksums)
    monkeypatch.setattr(torch.serialization, "get_crc32_options", lambda: checksums)
    try:
        torch.save(weights() | {"empty": torch.zeros(0)}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert fault_of_archive(tmp_path / "x.pt") == ""


class _Pipe(io.RawIOBase):
    """A file that cannot be sought in: sizes follow the bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._file.write(data)


@pytest.mark.parametrize("zip64", [False, True])
def test_a_file_that_was_written_through_a_pipe(tmp_path: Path, zip64: bool) -> None:
    with (
        (tmp_path / "x.zip").open("wb") as file,
        zipfile.ZipFile(_Pipe(file), "w") as archive,
    ):
        for number in range(2):
            with archive.open(f"x/data/{number}", "w", force_zip64=zip64) as part:
                part.write(b"12345678")
    assert [one.size for one in read_entries(tmp_path / "x.zip")] == [8, 8]


def test_two_lists_of_entries(tmp_path: Path) -> None:
    """Python reads the one, where all is well, and torch the other."""
    with_two_lists(tmp_path / "x.pt", bytes(2**20))
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        assert {one.compress_type for one in archive.infolist()} == {zipfile.ZIP_STORED}
    reader = torch._C.PyTorchFileReader(str(tmp_path / "x.pt"))
    assert len(reader.get_record("data.pkl")) == 2**20
    assert "not where the file claims" in fault_of_archive(tmp_path / "x.pt")


def test_two_entries_with_one_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"1")
        archive.writestr("x/DATA.pkl", b"2")
    assert "the same name" in fault_of_archive(tmp_path / "x.pt")


def test_a_pickle_larger_than_any_is(tmp_path: Path) -> None:
    with (tmp_path / "x.pt").open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        with archive.open("x/data.pkl", "w", force_zip64=True):
            pass
        size = 2**30
        archive.infolist()[0].file_size = archive.infolist()[0].compress_size = size
        file.seek(size, os.SEEK_CUR)
        archive.start_dir = file.tell()
        archive.comment = b"x"  # the list is written again
    assert "'data.pkl' has 1073741824 bytes" in fault_of_archive(tmp_path / "x.pt")


def put(mark: bytes, at: int, form: str, *values: int) -> Callable[[bytes], bytes]:
    """Bytes with other numbers at a place after the last mark."""

    def change(data: bytes) -> bytes:
        place = data.rindex(mark) + at
        new = struct.pack(form, *values)
        return data[:place] + new + data[place + len(new) :]

    return change


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "bytes before it": lambda data: data[:4] + b"x" * 9 + data,
    "part of a disk": put(END, 4, "<H", 1),
    "another count": put(END, 8, "<HH", 2, 2),
    "two counts": put(END, 8, "<H", 2),
    "a longer list": put(END, 12, "<L", 2**30),
    "a list elsewhere": put(END, 16, "<L", 30),
    "no entry": put(LISTED, 0, "<L", 0),
    "another method": put(LISTED, 10, "<H", 8),
    "encrypted": put(LISTED, 8, "<H", 1),
    "packed larger": put(LISTED, 20, "<L", 2**31),
    "unpacked larger": put(LISTED, 24, "<L", 2**31),
    "sizes elsewhere": put(LISTED, 20, "<LL", 2**32 - 1, 2**32 - 1),
    "a longer name": put(LISTED, 28, "<H", 2**15),
    "a longer extra field": put(LISTED, 30, "<H", 2**15),
    "a longer comment": put(LISTED, 32, "<H", 2**15),
    "another disk": put(LISTED, 34, "<H", 1),
    "the first entry's bytes": put(LISTED, 42, "<L", 0),
    "bytes beyond the list": put(LISTED, 42, "<L", 2**31),
    "another name": put(LISTED, 46, "<L", 0),
    "another method before its bytes": put(b"PK\x03\x04", 8, "<H", 8),
    "a longer name before its bytes": put(b"PK\x03\x04", 26, "<H", 2**15),
    "a longer extra field before its bytes": put(b"PK\x03\x04", 28, "<H", 2**15),
    "an end with 64 bits elsewhere": lambda data: data.replace(
        END, struct.pack("<LLQL", 0x07064B50, 0, 1, 1) + END
    ),
    "no end with 64 bits": lambda data: data.replace(
        END, struct.pack("<LLQL", 0x07064B50, 0, data.rindex(END) - 56, 1) + END
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_list_that_contradicts_the_file(tmp_path: Path, what: str) -> None:
    torch.save(weights(), tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(CHANGES[what]((tmp_path / "x.pt").read_bytes()))
    assert fault_of_archive(tmp_path / "x.pt")


@pytest.mark.parametrize("byte", [0, pytest.param(1, marks=pytest.mark.long), 255])
def test_any_other_byte_in_the_lists(tmp_path: Path, byte: int) -> None:
    """What is not refused is read as it was: no field is followed that another contradicts."""
    path, expected = tmp_path / "x.pt", weights()
    torch.save(expected, path)
    whole = path.read_bytes()
    start, last = whole.index(LISTED), whole.rindex(END) + 22
    for place in (*range(30), *range(start, last)):
        path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
        try:
            found = read_checkpoint(path).states[""]
        except LocalrankError:
            continue
        assert found.keys() == expected.keys(), place
        assert all(torch.equal(found[key], expected[key]) for key in found), place
