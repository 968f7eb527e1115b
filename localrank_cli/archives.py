"""Zip files as torch.save and numpy write them, and files that only look like one.

Readers of zip files disagree about files that contradict themselves: Python's may follow one list
of entries and torch's another. So the list is read here, strictly, and a file that could be read in
two ways is refused.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_MAGIC = b"PK\x03\x04"
_LOCAL = struct.Struct("<4s2xHH16xHH")  # signature, flags, method, lengths of name and extra field
_LISTED = struct.Struct("<4s4xHH4xLLLHHHH6xL")
_END = struct.Struct("<4sHHHHLLH")
_END_64 = struct.Struct("<4sQ4xLLQQQQ")
_LOCATOR = struct.Struct("<4sLQL")
_LONGEST_COMMENT = 2**16 - 1
_ENCRYPTED = 1 | 2**6 | 2**13
_SIZES_AFTER = 2**3
_LONGEST_AFTER = 24  # what may follow an entry: a mark, its checksum and its two sizes
_IN_EXTRA = 2**32 - 1  # says that a number is in the extra field
_ZIP64 = 1  # the extra field with numbers of 64 bits
# torch reads these entries whole; tensors are in others, which are mapped.
_MOST_WHOLE = 2**29
_LONGEST_LIST = 2**27  # a million entries


@dataclass(frozen=True)
class Entry:
    """A file in an archive."""

    name: str
    is_stored: bool  # without compression
    offset: int  # of its bytes in the archive
    packed: int  # bytes in the archive
    size: int  # bytes after unpacking, as the archive claims


@dataclass(frozen=True)
class _Listed:
    """An entry of the list at the end of an archive."""

    name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    header: int  # offset of what precedes its bytes


def is_archive(path: Path) -> bool:
    """Return whether a file is a zip archive by its first bytes, as torch.load decides."""
    with path.open("rb") as file:
        return file.read(4) == _MAGIC


def fault_of_archive(path: Path) -> str:
    """Return why a zip file must not be given to torch.load, as part of a sentence; else "".

    torch never compresses. Of a compressed entry a mapped file would give the packed bytes as if
    they were the weights, and a small file could unpack to any size.
    """
    try:
        entries = read_entries(path)
    except ValueError as error:
        return f"its list of entries is damaged: {error}"
    if not all(entry.is_stored for entry in entries):
        return "its entries are compressed, which torch.save never does"
    if any(entry.size != entry.packed for entry in entries):
        return "its list of entries is damaged: an entry has two sizes"
    if len({entry.name.lower() for entry in entries}) < len(entries):  # torch ignores case
        return "its list of entries is damaged: two entries have the same name"
    for entry in entries:
        _, _, name = entry.name.partition("/")
        if entry.size > _MOST_WHOLE and not name.startswith("data/"):
            return f"its entry {name!r} has {entry.size} bytes, expected at most {_MOST_WHOLE}"
    return ""


def read_entries(path: Path) -> list[Entry]:
    """Return the entries of a zip file, in the order of its list.

    Raises:
        ValueError: If the list contradicts itself, the file, or what precedes an entry.
    """
    with path.open("rb") as file:
        start, end, count = _directory(file)
        file.seek(start)
        listed = list(_parse(file.read(end - start)))
        if len(listed) != count:
            raise ValueError(f"it holds {len(listed)} entries and claims {count}")
        entries = [_located(file, one, start) for one in listed]
        places = sorted(zip(listed, entries, strict=True), key=lambda place: place[0].header)
        ends = [one.header for one, _ in places[1:]] + [start]
        for (one, entry), end in zip(places, ends, strict=True):
            _check_end(file, one, entry, end)
    return entries


# What precedes the bytes of an entry is shorter, as torch writes it; and what follows them.
_BEFORE, _AFTER = 2**12, 2**8


def outline(file: BinaryIO, least: int) -> list[tuple[int, int]]:
    """Return the parts of a zip file (first byte, one past the last) without large tensors.

    They are all but the inner bytes of tensors that torch.save wrote with `least` bytes or more. A
    file with only these, and holes between them, is read by `read_entries` as the whole is.

    Raises:
        ValueError: If its list of entries is damaged.
    """
    start, end, _ = _directory(file)
    file.seek(start)
    listed = sorted(_parse(file.read(end - start)), key=lambda one: one.header)
    ends = [one.header for one in listed[1:]] + [start]
    parts, at = [], 0
    for one, following in zip(listed, ends, strict=True):
        first, last = one.header + _BEFORE, following - _AFTER
        if b"/data/" in one.name and last - first >= least and first > at:
            parts.append((at, first))
            at = last
    return [*parts, (at, file.seek(0, os.SEEK_END))]


def _check_end(file: BinaryIO, listed: _Listed, entry: Entry, end: int) -> None:
    """Check that an entry's bytes end where what follows begins, as far as both can say.

    Otherwise a small file could hold a large one many times; or, by another length of the extra
    field before them, the weights would be read some bytes beside where they are.
    """
    file.seek(entry.offset + entry.packed)
    left = end - file.tell()
    if left < 0:
        raise ValueError("two entries share bytes")
    head = b"PK\x07\x08" + struct.pack("<L", listed.crc)
    known = {head + struct.pack("<QQ", entry.packed, entry.size)}
    if max(entry.packed, entry.size) <= _IN_EXTRA:
        known.add(head + struct.pack("<LL", entry.packed, entry.size))
    if not listed.flags & _SIZES_AFTER:
        known = {b""}
    if file.read(min(left, _LONGEST_AFTER + 1)) not in known:
        raise ValueError("an entry is followed by bytes that belong to no entry")


def _directory(file: BinaryIO) -> tuple[int, int, int]:
    """Return where the list of entries begins and ends, and how many it claims to have."""
    size = file.seek(0, os.SEEK_END)
    tail_at = max(0, size - _END.size - _LONGEST_COMMENT)
    file.seek(tail_at)
    tail = file.read()
    found = tail.rfind(b"PK\x05\x06")
    if found < 0 or len(tail) - found < _END.size:
        raise ValueError("the file does not end as a zip file does")
    end = tail_at + found
    _, *numbers, _ = _END.unpack_from(tail, found)
    at = max(0, end - _LOCATOR.size)
    file.seek(at)
    mark, _, end_64, _ = _LOCATOR.unpack(file.read(_LOCATOR.size))
    if mark == b"PK\x06\x07":
        end = at - _END_64.size
        if end < 0 or end_64 != end:
            raise ValueError("its end is not where it claims to be")
        short = numbers
        numbers = _end_of_64_bits(file, end)
        if any(n not in {one, _IN_EXTRA, 2**16 - 1} for one, n in zip(numbers, short, strict=True)):
            raise ValueError("it has two ends that differ")
    disk, first_disk, here, count, length, start = numbers
    if disk or first_disk or here != count:
        raise ValueError("it is one of several parts")
    if start + length != end:
        raise ValueError("it is not where the file claims")
    if length > _LONGEST_LIST:
        raise ValueError(f"it has {length} bytes, expected at most {_LONGEST_LIST}")
    return start, end, count


def _end_of_64_bits(file: BinaryIO, at: int) -> list[int]:
    file.seek(at)
    mark, more, *numbers = _END_64.unpack(file.read(_END_64.size))
    if mark != b"PK\x06\x06" or more != _END_64.size - 12:
        raise ValueError("its end is not where it claims to be")
    return numbers


def _parse(data: bytes) -> Iterator[_Listed]:
    at = 0
    while at < len(data):
        if len(data) - at < _LISTED.size:
            raise ValueError("an entry is cut off")
        mark, flags, method, crc, packed, size, *lengths, disk, header = _LISTED.unpack_from(
            data, at
        )
        at += _LISTED.size
        texts = []
        for length in lengths:
            texts.append(data[at : at + length])
            at += length
        if mark != b"PK\x01\x02" or at > len(data) or disk:
            raise ValueError("an entry is not one of a zip file")
        name, extra, _ = texts
        yield _Listed(name, flags, method, crc, *_numbers_of_64_bits(extra, size, packed, header))


def _numbers_of_64_bits(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """Return packed size, size and offset of an entry, those that are in the extra field too."""
    numbers = [size, packed, header]
    if _IN_EXTRA not in numbers:
        return packed, size, header
    fields: list[bytes] = []
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == _ZIP64:
            fields.append(extra[4 : 4 + length])
        extra = extra[4 + length :]
    needed = numbers.count(_IN_EXTRA)
    if len(fields) != 1 or len(fields[0]) < 8 * needed:
        raise ValueError("an entry does not say how large it is")
    large = iter(struct.unpack_from(f"<{needed}Q", fields[0]))
    size, packed, header = (next(large) if n == _IN_EXTRA else n for n in numbers)
    return packed, size, header


def _located(file: BinaryIO, listed: _Listed, end: int) -> Entry:
    """Return an entry that agrees with what precedes its bytes; the list is at `end`."""
    file.seek(min(listed.header, end))
    start = file.read(_LOCAL.size)
    if len(start) < _LOCAL.size:
        raise ValueError("an entry lies outside the file")
    mark, flags, method, n_name, n_extra = _LOCAL.unpack(start)
    if mark != _MAGIC or method != listed.method or file.read(n_name) != listed.name:
        raise ValueError("an entry differs from what precedes its bytes")
    if (flags | listed.flags) & _ENCRYPTED:
        raise ValueError("an entry is encrypted")
    offset = listed.header + _LOCAL.size + n_name + n_extra
    if offset + listed.packed > end:
        raise ValueError("its entries are larger than the file")
    name = listed.name.decode("utf-8", "backslashreplace")
    return Entry(name, method == 0, offset, listed.packed, listed.size)
