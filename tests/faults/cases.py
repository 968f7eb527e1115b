"""All faults of docs/reliability.md: what is corrupted, and the message of the program.

Each is met by a command that resumes from three finished checkpoints, so that it also shows what
is kept of them.
"""

import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.checkpoints.dcp_writer import save_dcp
from tests.faults.hostile import PICKLES, write
from tests.faults.spoiled import (
    as_type,
    safetensors,
    sharded,
    tensor,
    with_two_lists,
    zipped_again,
    zipped_over_one_another,
)
from tests.helpers import Evil, weights

Spoil = Callable[[Path], Sequence[str] | None]


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong."""

    spoil: Spoil  # gets the series' folder; what it returns are further words of the command
    says: str  # a part of the one line
    status: int = 1
    data: str = "normal:4"


def _file(name: str, content: bytes) -> Spoil:
    def spoil(run: Path) -> None:
        (run / name).write_bytes(content)

    return spoil


def _cut(name: str, part: float) -> Spoil:
    """A whole file of that name, cut off."""

    def spoil(run: Path) -> None:
        path = run / name
        if path.suffix == ".safetensors":
            save_file(weights(), path)
        else:
            torch.save(weights(), path, _use_new_zipfile_serialization=path.suffix != ".bin")
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * part)])

    return spoil


def _cut_shard(run: Path) -> None:
    sharded(run)
    shard = run / "step_7-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-5])


def _cut_index(run: Path) -> None:
    index = sharded(run)
    index.write_bytes(index.read_bytes()[:-5])


def _no_shard(run: Path) -> None:
    sharded(run)
    (run / "step_7-00002-of-00002.safetensors").unlink()


def _cut_dcp(name: str) -> Spoil:
    def spoil(run: Path) -> None:
        save_dcp(run / "step_7", weights(seed=7))
        path = run / "step_7" / name
        path.write_bytes(path.read_bytes()[:-900])

    return spoil


def _types(dtype: torch.dtype) -> Spoil:
    return lambda run: save_file(as_type(dtype), run / "step_7.safetensors")


def _repeated(run: Path) -> None:
    torch.save({"0.weight": torch.zeros(1).expand(2**20, 2**20)}, run / "step_7.pt")


def _compressed(run: Path) -> None:
    zipped_again(run / "step_7.pt", weights(seed=7), compressed=True)


def _two_lists(run: Path) -> None:
    with_two_lists(run / "step_7.pt", bytes(2**20))


def _compressed_data(run: Path) -> Sequence[str]:
    zipped_again(run.parent / "x.pt", torch.zeros(2**16, 4), compressed=True)
    return "--data", str(run.parent / "x.pt")


def _link(name: str, to: str) -> Spoil:
    return lambda run: (run / name).symlink_to(to)


def _two_links(run: Path) -> None:
    (run / "step_7").symlink_to("step_8")
    (run / "step_8").symlink_to("step_7")


def _linked_data(run: Path) -> Sequence[str]:
    (run.parent / "x.npy").symlink_to("x.npy")
    return "--data", str(run.parent / "x.npy")


def _pipe(name: str) -> Spoil:
    return lambda run: os.mkfifo(run / name)


def _named(name: str | bytes) -> Spoil:
    def spoil(run: Path) -> None:
        save_file(weights(seed=7), run / "x")
        os.rename(run / "x", os.path.join(os.fsencode(run), os.fsencode(name)))  # noqa: PTH104, PTH118  # Path takes no bytes

    return spoil


def _evil(run: Path) -> None:
    torch.save(Evil(run / "marker"), run / "step_7.pt")


def _hostile(place: str, name: str = "a nested tuple as a key") -> Spoil:
    def spoil(run: Path) -> None:
        write(run, place, PICKLES[name])

    return spoil


def _hostile_data(run: Path) -> Sequence[str]:
    return "--data", str(write(run.parent, "data", PICKLES["a nested tuple as a key"]))


ENDLESS = "one of its tuples repeats others"
HUGE = struct.pack("<Q", 2**60) + b"{}"
NOT_READABLE = "not a readable safetensors file"
NO_FLOATS = "expected floating-point numbers"
LOOP = "cannot be read (Too many levels of symbolic links)"

FAULTS: dict[str, Fault] = {
    "an empty file": Fault(_file("step_7.safetensors", b""), "the file is empty"),
    ".safetensors cut off": Fault(_cut("step_7.safetensors", 0.8), NOT_READABLE),
    ".pt cut off": Fault(_cut("step_7.pt", 0.8), "not a readable torch file"),
    ".pt from torch < 1.6 cut off": Fault(_cut("step_7.bin", 0.8), "not a readable torch file"),
    "a shard cut off": Fault(_cut_shard, NOT_READABLE),
    "an index cut off": Fault(_cut_index, "is not JSON"),
    "a shard missing": Fault(_no_shard, "there is no such file"),
    "the `.metadata` of a DCP folder cut off": Fault(
        _cut_dcp(".metadata"), "not the metadata of torch.distributed.checkpoint"
    ),
    "the data of a DCP folder cut off": Fault(
        _cut_dcp("__0_0.distcp"), "places weights up to byte"
    ),
    "a header that claims 2^60 bytes": Fault(_file("step_7.safetensors", HUGE), NOT_READABLE),
    "a header with a shape of 2^60 values": Fault(
        _file("step_7.safetensors", safetensors({"0.weight": tensor([2**30, 2**30], 0, 2**62)})),
        NOT_READABLE,
    ),
    "a header with a shape that no integer holds": Fault(
        _file("step_7.safetensors", safetensors({"0.weight": tensor([0, 2**62, 8], 0, 0)})),
        NOT_READABLE,
    ),
    "a header of 100,000 brackets": Fault(
        _file("step_7.safetensors", safetensors(b"[" * 100_000)), NOT_READABLE
    ),
    "a header without a tensor": Fault(
        _file("step_7.safetensors", safetensors({"__metadata__": {"step": "7"}})),
        "holds no tensor",
    ),
    "integer weights": Fault(_types(torch.int64), NO_FLOATS),
    "quantized weights (int8)": Fault(_types(torch.int8), NO_FLOATS),
    "boolean weights": Fault(_types(torch.bool), NO_FLOATS),
    "complex weights": Fault(_types(torch.complex64), NO_FLOATS),
    "a `.pt` with compressed entries (a zip bomb)": Fault(
        _compressed, "its entries are compressed, which torch.save never does"
    ),
    "a `.pt` whose entries are larger than the file": Fault(
        lambda run: zipped_over_one_another(run / "step_7.pt"), "not a readable torch file"
    ),
    "a `.pt` with two lists of entries, one for each reader": Fault(
        _two_lists, "not where the file claims"
    ),
    "a `.pt` data file with compressed entries": Fault(
        _compressed_data, "its entries are compressed, which torch.save never does", data=""
    ),
    "a tensor that repeats 4 bytes to 4 TB": Fault(_repeated, "claims 4398046511104 bytes"),
    "a pickle that would run code": Fault(_evil, "the pickle needs code to load"),
    "a `.pt` whose key takes 2^45 steps to hash": Fault(_hostile("zip"), ENDLESS),
    "the same in a `.pt` from torch < 1.6": Fault(_hostile("legacy"), ENDLESS),
    "the same in the `.metadata` of a DCP folder": Fault(_hostile("dcp"), ENDLESS),
    "the same in a `.pt` data file": Fault(_hostile_data, ENDLESS, data=""),
    "a tensor beyond the values that its file keeps": Fault(
        _hostile("zip", "a tensor beyond its storage"), "reaches beyond the values"
    ),
    "a link to itself": Fault(_link("step_7.safetensors", "step_7.safetensors"), LOOP),
    "a link that leads nowhere": Fault(
        _link("step_7.safetensors", "nowhere"), "cannot be read (No such file or directory)"
    ),
    "a data file that is a link to itself": Fault(
        _linked_data, "there is no such data file", data=""
    ),
    "a `localrank.toml` that is a link to itself": Fault(
        _link("localrank.toml", "localrank.toml"), "is not a regular file"
    ),
    "a `localrank.toml` that is not TOML": Fault(
        _file("localrank.toml", b"data = 'x.np"), "cannot be read"
    ),
    "a pipe in place of a checkpoint": Fault(_pipe("step_7.safetensors"), "the file is empty"),
    "a pipe in place of an index": Fault(_pipe("step_7.safetensors.index.json"), "is not a file"),
    "a pipe in place of `localrank.toml`": Fault(_pipe("localrank.toml"), "is not a regular file"),
    "a name that is not UTF-8": Fault(_named(b"step_\xff7.safetensors"), "the path is not UTF-8"),
}

# Unusual but valid: the program continues as with any other checkpoint.
HARMLESS: dict[str, Fault] = {
    "float8 weights": Fault(_types(torch.float8_e4m3fn), "", 0),
    "half-precision weights": Fault(_types(torch.bfloat16), "", 0),
    "a `.pt` packed again without compression": Fault(
        lambda run: zipped_again(run / "step_7.pt", weights(seed=7), compressed=False), "", 0
    ),
    "a name with brackets and spaces": Fault(_named("step_7 [bold] (a).safetensors"), "", 0),
    "a name with a newline": Fault(_named("new\nline_step_7.safetensors"), "", 0),
    "a name with an emoji": Fault(_named("🙂_step_7.safetensors"), "", 0),
    "a name with a terminal control sequence": Fault(_named("\x1b[31m_step_7.safetensors"), "", 0),
    "a folder that is a link to itself": Fault(_link("step_7", "step_7"), "", 0),
    "two folders that are links to each other": Fault(_two_links, "", 0),
    "a folder that is a link to the series": Fault(_link("step_7", "."), "", 0),
}
