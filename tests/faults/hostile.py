"""Pickles written by hand that ask for work or memory without end, and the files they come in."""

import io
import json
import pickletools
import resource
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from localrank_cli.checkpoints.reading import read_checkpoint
from localrank_cli.errors import LocalrankError, printable
from localrank_cli.points import files
from localrank_cli.points.files import load_array
from tests.checkpoints.dcp_writer import save_dcp
from tests.helpers import weights


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return b"\x8b" + struct.pack("<I", size) + value.to_bytes(size, "little", signed=True)


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def put(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    return b"j" + struct.pack("<I", index)


def item(key: bytes, value: bytes = b"K\x01") -> bytes:
    """A dict of one item."""
    return b"}" + key + value + b"s"


def call(function: bytes, *args: bytes) -> bytes:
    return function + b"(" + b"".join(args) + b"tR"


def many(values: Iterator[bytes] | list[bytes], end: bytes, begin: bytes = b"") -> bytes:
    return begin + b"(" + b"".join(values) + end


def doubled(depth: int, made: bytes = b"\x86", first: bytes = b")") -> bytes:
    """What holds itself twice, so many levels deep."""
    return first + (b"2" + made) * depth


def lists(depth: int, wrap: Callable[[bytes], bytes]) -> bytes:
    """Containers that hold the one before twice."""
    body = b"]" + put(0)
    for level in range(depth):
        body += b"0" + wrap(get(level)) + put(level + 1)
    return body


def wide(count: int, levels: int, first: bytes) -> bytes:
    """Dicts that hold the one before many times, so many levels deep."""
    body = first + put(0)
    for level in range(levels):
        items = b"".join(text(f"k{index}") + get(level) for index in range(count))
        body += b"0}(" + items + b"u" + put(level + 1)
    return body


TWICE = doubled(45)
LISTS = lists(45, lambda one: b"](" + one + one + b"e")
DICTS = lists(45, lambda one: b"}(" + text("a") + one + text("b") + one + b"u")
STATES = lists(45, lambda one: b"}(" + text("model") + one + text("x.y") + one + b"u")
ORDERED = name("collections", "OrderedDict")
INERT = name("a.b", "C")
LARGE = many([b"K\x01"] * 100_000, b"t")
STORAGE = (
    b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x0ctQ"
)


def tensor(size: bytes, stride: bytes, offset: bytes = b"K\x00") -> bytes:
    hooks = ORDERED + b")R"
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    return call(rebuild, STORAGE, offset, size, stride, b"\x89", hooks)


def storage(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"tQ"


def _colliding(count: int) -> Iterator[bytes]:
    return (number((2**61 - 1) * index) + b"N" for index in range(1, count))


def _pairs(count: int) -> Iterator[bytes]:
    """Keys (a, b) of small numbers with one hash: xxHash takes the parts one after the other."""
    mask, first, second = 2**64 - 1, 11400714785074694791, 14029467366897019727

    def after(lane: int) -> int:
        acc = (2870177450012600261 + (lane * second & mask)) & mask
        acc = ((acc << 31) | (acc >> 33)) & mask
        return acc * first & mask

    inverse = pow(second, -1, 2**64)
    found, lane = 0, 1
    while found < count:
        lane += 1
        other = (2**40 - after(lane)) * inverse & mask
        other -= 2**64 if other >> 63 else 0
        if abs(other) < 2**61 - 1:
            found += 1
            yield number(lane) + number(other) + b"\x86N"


PICKLES: dict[str, bytes] = {
    # Keys
    "a nested tuple as a key": item(TWICE),
    "a tuple of tuples as a key": item(b")\x85"),
    "a nested tuple as a key of many": many([TWICE + b"N"], b"u", b"}"),
    "a nested tuple as a key of protocol 0": b"(" + TWICE + b"Nd",
    "a nested tuple in a set": many([TWICE], b"\x90", b"\x8f"),
    "a nested tuple in a frozenset": many([TWICE], b"\x91"),
    "a nested tuple in set()": call(name("builtins", "set"), b"](" + TWICE + b"e"),
    "a nested tuple in frozenset()": call(name("__builtin__", "frozenset"), TWICE + b"\x85"),
    "a nested tuple in OrderedDict()": call(ORDERED, b"](](" + TWICE + b"Nee"),
    "pairs in OrderedDict()": call(ORDERED, TWICE),
    "a nested tuple in Counter()": call(name("collections", "Counter"), b"](" + TWICE + b"e"),
    "a nested tuple in dict()": call(name("builtins", "dict"), b"](" + TWICE + b"N\x86e"),
    "a nested tuple as a key of an object": INERT + b")R" + TWICE + b"Ns",
    "a nested tuple in a key of its own": item(TWICE + b"\x85"),
    "a nested tuple of shapes": item(
        b")" + put(0) + b"".join(call(name("torch", "Size"), b"](" + get(i) + get(i) + b"e")
        + put(i + 1) + b"0" for i in range(45)) + get(45)
    ),
    "frozensets in frozensets as keys": item(
        b"(\x91" + b"".join(b"2(" + b"K\x01" + b"\x910\x85" for _ in range(3))
    ),
    "a nested tuple through a parameter": item(
        call(name("torch._utils", "_rebuild_parameter"), TWICE, b"\x88", b"}")
    ),
    "a tuple of many as a key, often": b"}" + LARGE + put(0)
    + b"0" + (get(0) + b"Ns") * 20_000,
    "an integer of a megabyte as a key, often": b"}" + number(1 << (8 << 20)) + put(0)
    + b"0" + (get(0) + b"Ns") * 20_000,
    "integers with one hash": many(_colliding(50_000), b"u", b"}"),
    "integers with one hash, one by one": b"}"
    + b"".join(pair + b"s" for pair in _colliding(50_000)),
    "integers with one hash in a set": many(
        [number((2**61 - 1) * index) for index in range(50_000)], b"\x90", b"\x8f"
    ),
    "pairs with one hash": many(_pairs(50_000), b"u", b"}"),
    "a list as a key": item(b"]"),
    "a tensor as a key, and its number": item(tensor(b"K\x01\x85", b"K\x01\x85")),
    # Values that are compared, printed or walked
    "a nested tuple": TWICE,
    "nested lists": LISTS,
    "nested dicts": DICTS,
    "nested state dicts": STATES,
    "nested tuples under step": item(text("step"), TWICE),
    "nested lists under step": item(text("step"), LISTS),
    "nested lists under epoch": item(text("epoch"), LISTS),
    "nested lists as the version of Lightning": item(text("pytorch-lightning_version"), LISTS),
    "nested lists under state_dict": item(text("state_dict"), LISTS),
    "nested dicts under callbacks": item(text("callbacks"), DICTS),
    "dicts that repeat another a hundred times each": wide(100, 6, b"}"),
    "dicts that repeat weights": wide(
        100, 6, item(text("a.weight"), tensor(b"K\x03K\x04\x86", b"K\x04K\x01\x86"))
    ),
    "callbacks that repeat dicts": item(text("callbacks"), wide(100, 5, b"}")),
    "lists that repeat another": lists(6, lambda one: b"](" + one * 100 + b"e"),
    "nested lists in a module": INERT + b")R" + item(text("_modules"), LISTS) + b"b",
    "an integer of 300,000 digits": b"I" + b"9" * 300_000 + b"\n",
    "a long integer of 300,000 digits": b"L" + b"9" * 300_000 + b"L\n",
    "an integer of many digits under step": item(
        text("step"), number(10**100_000)
    ),
    "a list many deep": b"]" * 300_000 + b"a" * 299_999,
    "a tuple many deep": b")" + b"\x85" * 300_000,
    "a dict many deep": (b"}" + text("a")) * 200_000 + b"}" + b"s" * 200_000,
    "many marks": b"(" * 300_000 + b"t" * 300_000,
    "a list in itself": b"]" + put(0) + get(0) + b"a",
    "a dict in itself": b"}" + put(0) + text("model") + get(0) + b"s",
    "many copies": b"]" + b"2" * 300_000,
    # Memory
    "a place of 2^31 for what is shared": b"}" + put(2**31 - 1),
    "a place of 2^32 - 1 for what is shared": b"}" + put(2**32 - 1),
    "a place of 10^18 for what is shared": b"}p1000000000000000000\n",
    "a negative place": b"}p-1\n",
    "a frame of 2^62 bytes": b"\x95" + struct.pack("<Q", 2**62) + b"}",
    "a frame of 2^34 bytes": b"\x95" + struct.pack("<Q", 2**34) + b"}",
    "bytes of 2^62": b"\x8e" + struct.pack("<Q", 2**62),
    "bytes of 2^34": b"\x8e" + struct.pack("<Q", 2**34),
    "a text of 2^34": b"\x8d" + struct.pack("<Q", 2**34),
    "bytes of 2^32 - 1": b"B" + struct.pack("<I", 2**32 - 1),
    "a text of 2^32 - 1": b"X" + struct.pack("<I", 2**32 - 1),
    "a bytearray of 2^34": b"\x96" + struct.pack("<Q", 2**34),
    "a bytearray of 2^62": b"\x96" + struct.pack("<Q", 2**62),
    "a number of 2^31 bytes": b"\x8b" + struct.pack("<i", 2**31 - 1),
    "a number of -1 bytes": b"\x8b" + struct.pack("<i", -1),
    "a string of -1 bytes": b"T" + struct.pack("<i", -1),
    "a list copied often": b"]" + LARGE + put(0) + b"a"
    + b"".join(call(name("builtins", "list"), get(0)) + b"a" for _ in range(5_000)),
    "a set copied often": b"]" + LARGE + put(0) + b"a"
    + b"".join(call(name("builtins", "set"), get(0)) + b"a" for _ in range(5_000)),
    "arguments copied often": b"]" + LARGE + put(0) + b"a" + (INERT + get(0) + b"Ra") * 5_000,
    "arguments of new objects copied often": b"]" + LARGE + put(0) + b"a"
    + (INERT + get(0) + b"\x81a") * 5_000,
    "a text encoded often": b"]" + text("a" * 300_000) + put(0) + b"a"
    + b"".join(call(name("_codecs", "encode"), get(0), text("latin1")) + b"a"
               for _ in range(5_000)),
    "a long name used often": b"]" + text("a" * 300_000) + put(0) + b"a"
    + (get(0) + get(0) + b"\x93a") * 5_000,
    # Tensors and storages
    "a nested tuple as the kind of a storage": storage(
        TWICE, name("torch", "FloatStorage"), text("0"), text("cpu"), b"K\x01"
    ),
    "nested lists as the kind of a storage": storage(
        LISTS, name("torch", "FloatStorage"), text("0"), text("cpu"), b"K\x01"
    ),
    "a nested tuple as the key of a storage": storage(
        text("storage"), name("torch", "FloatStorage"), TWICE, text("cpu"), b"K\x01"
    ),
    "nested lists as the device of a storage": storage(
        text("storage"), name("torch", "FloatStorage"), text("0"), LISTS, b"K\x01"
    ),
    "a storage of 2^60 values": storage(
        text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), number(2**60)
    ),
    "a storage of 2^33 values": storage(
        text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), number(2**33)
    ),
    "a storage of -1 values": storage(
        text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), number(-1)
    ),
    "a storage on another device": storage(
        text("storage"), name("torch", "FloatStorage"), text("0"), text("x" * 100), b"K\x0c"
    ),
    "a storage that is a list": b"]Q",
    "a storage by a text": b"Pstorage\n",
    "a module with its source": storage(text("module"), INERT, text("a.py"), text("x\n" * 99)),
    "a tensor beyond its storage": item(
        text("0.weight"), tensor(number(2**34) + b"\x85", b"K\x01\x85")
    ),
    "a tensor of negative strides": item(
        text("0.weight"), tensor(b"K\x02\x85", number(-1) + b"\x85")
    ),
    "a tensor of nested sizes": item(text("0.weight"), tensor(TWICE, TWICE)),
    "a tensor of list sizes": item(text("0.weight"), tensor(LISTS, LISTS)),
    "a tensor that repeats a value": item(
        text("0.weight"),
        tensor(number(2**20) + number(2**20) + b"\x86", b"K\x00K\x00\x86"),
    ),
    "adding to a tensor": tensor(number(2**15) + number(2**17) + b"\x86", b"K\x00K\x00\x86")
    + b"(K\x01\x90",
    "an item of a tensor": tensor(b"K\x01\x85", b"K\x01\x85") + b"K\x00K\x01s",
    "a state for a tensor": tensor(b"K\x01\x85", b"K\x01\x85") + b"K\x01\x85b",
    "appending to a tensor": tensor(b"K\x01\x85", b"K\x01\x85") + b"K\x01a",
    # Calls and opcodes
    "an extension": b"\x82\x01",
    "an extension of four bytes": b"\x84\xff\xff\xff\x7f",
    "a call of a number": b"K\x01)R",
    "a call with a list": INERT + b"]R",
    "an object of a number": b"K\x01)\x81",
    "a state for a number": b"K\x01}b",
    "an old instance": b"(ia.b\nC\n",
    "an old object": b"(" + INERT + b"o",
    "buffers from outside": b"\x97",
    "a read-only buffer": b"B\x01\x00\x00\x00a\x98",
    "protocol 255": b"\x80\xff}",
    "nothing": b"",
    "an empty stack": b"0",
    "an unknown opcode": b"\xff",
    "a name of no module": b"c\n\n",
    "half a surrogate": item(b"X\x03\x00\x00\x00\xed\xa0\x80"),
    "Latin letters that are no UTF-8": item(b"X\x01\x00\x00\x00\xff"),
}  # fmt: skip


def _in_zip(path: Path, body: bytes) -> None:
    buffer = io.BytesIO()
    torch.save(weights(), buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for entry in old.namelist():
            new.writestr(entry, body if entry.endswith("data.pkl") else old.read(entry))


def _legacy_parts() -> list[bytes]:
    """The pickles of a legacy file: number, version, machine, content, keys of the storages."""
    head = io.BytesIO()
    torch.save({}, head, _use_new_zipfile_serialization=False)
    head.seek(0)
    parts = []
    for _ in range(5):
        start = head.tell()
        for _ in pickletools.genops(head):
            pass
        parts.append(head.getvalue()[start : head.tell()])
    return parts


def _in_legacy(which: int) -> Callable[[Path, bytes], None]:
    def write(path: Path, body: bytes) -> None:
        parts = _legacy_parts()
        parts[which] = body
        path.write_bytes(b"".join(parts) + bytes(100))

    return write


@cache
def _dcp() -> tuple[bytes, bytes]:
    """The metadata and the data of a sound checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        save_dcp(Path(folder, "a"), {"model": weights(), "step": 7})
        found = Path(folder, "a/.metadata").read_bytes(), Path(folder, "a/__0_0.distcp")
        return found[0], found[1].read_bytes()


def _in_metadata(path: Path, body: bytes) -> None:
    path.write_bytes(body)
    (path.parent / "__0_0.distcp").write_bytes(_dcp()[1])


def _alone(path: Path, body: bytes) -> None:
    path.write_bytes(body)


# File name -> how a pickle gets into it.
PLACES: dict[str, tuple[str, Callable[[Path, bytes], None]]] = {
    "zip": ("step_7.pt", _in_zip),
    "legacy": ("step_7.bin", _in_legacy(3)),
    "legacy version": ("step_7.bin", _in_legacy(1)),
    "legacy keys": ("step_7.bin", _in_legacy(4)),
    "plain": ("step_7.ckpt", _alone),
    "dcp": ("step_7/.metadata", _in_metadata),
    "data": ("x.pt", _in_zip),
    "data by rows": ("rows.pt", _in_zip),
}


def write(folder: Path, place: str, body: bytes, protocol: int = 4) -> Path:
    """Writes a file that holds a pickle, and returns it."""
    file, into = PLACES[place]
    (folder / file).parent.mkdir(exist_ok=True)
    path = folder / file
    into(path, body if body[:1] == b"\x80" else b"\x80" + bytes([protocol]) + body + b".")
    return path


def mutations(data: bytes) -> Iterator[tuple[str, bytes]]:
    """A pickle with each opcode replaced by others, left out, or given twice."""
    places = [position for _, _, position in pickletools.genops(data) if position is not None]
    for start, end in zip(places, [*places[1:], len(data)], strict=True):
        whole = data[start:end]
        yield f"without {start}", data[:start] + data[end:]
        yield f"twice {start}", data[:end] + whole + data[end:]
        for other in b")](}0tQRbsue\x81\x85\x86\x87\x90\x91\x93Nq":
            yield f"{start} as {other:#x}", data[:start] + bytes([other]) + data[start + 1 :]


def read(path: Path) -> str:
    """Reads a file as the program does, and returns the error."""
    try:
        if path.name in {"x.pt", "rows.pt"}:
            with pytest.MonkeyPatch.context() as patch:
                if path.name == "rows.pt":  # as a file that is too large to be read whole
                    patch.setattr(files, "AT_ONCE", 0)
                load_array(path, "")
        else:
            read_checkpoint(path)
    except LocalrankError as error:
        return printable(str(error))
    return ""


def bodies(place: str) -> Iterator[tuple[str, bytes]]:
    """All pickles above, or each mutation of a sound one."""
    if not place.startswith("mutated "):
        yield from PICKLES.items()
        return
    sound = _dcp()[0]
    if place != "mutated dcp":
        buffer = io.BytesIO()
        torch.save({"model": weights(), "step": 7, "args": {1, 2}}, buffer)
        with zipfile.ZipFile(buffer) as archive:
            sound = archive.read(next(n for n in archive.namelist() if "data.pkl" in n))
    yield from mutations(sound)


def main(place: str) -> None:
    """Reads every pickle in one place within a limit of memory, and prints a line for each."""
    limit = 8 << 30  # of addresses, of which torch takes some
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for case, body in bodies(place):
        with tempfile.TemporaryDirectory() as folder:
            path = write(Path(folder), place.removeprefix("mutated "), body)
            sys.stdout.write(f"{json.dumps(case)}: ")
            sys.stdout.flush()
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            started = time.process_time()
            error = read(path)
            seconds = time.process_time() - started
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
            sys.stdout.write(f"{json.dumps([error.replace(folder, ''), seconds, grown])}\n")


if __name__ == "__main__":
    main(sys.argv[1])
