"""Ways to corrupt a file."""

import io
import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers import weights


def safetensors(header: bytes | Mapping[str, Any], body: bytes = b"", length: int = -1) -> bytes:
    """A safetensors file with a header of one's own, and its length as one claims it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length < 0 else length) + text + body


def tensor(shape: list[int], *offsets: int) -> dict[str, Any]:
    """The header's entry for a float32 tensor."""
    return {"dtype": "F32", "shape": shape, "data_offsets": list(offsets)}


def zipped_again(path: Path, thing: object, *, compressed: bool) -> None:
    """What torch.save writes, packed again by a zip program."""
    saved = io.BytesIO()
    torch.save(thing, saved)
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(saved) as whole, zipfile.ZipFile(path, "w", method) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))


def zipped_over_one_another(path: Path) -> None:
    """A zip file whose list claims more bytes than there are, without compression."""
    torch.save(weights(), path)
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(data)


def with_two_lists(path: Path, large: bytes) -> None:
    """A zip file in which Python finds one list of entries and torch another, with a large pickle.

    Each is sound: Python takes the list before the end, torch the place that the end claims.
    """
    saved = io.BytesIO()
    torch.save(weights(), saved)
    first, second = io.BytesIO(), io.BytesIO()
    with (
        zipfile.ZipFile(saved) as whole,
        zipfile.ZipFile(first, "w") as packed,
        zipfile.ZipFile(second, "w") as plain,
    ):
        for name in whole.namelist():
            plain.writestr(name, whole.read(name))
            if name.endswith("data.pkl"):
                packed.writestr(name, large, zipfile.ZIP_DEFLATED)
            else:
                packed.writestr(name, whole.read(name))
    hidden, shown = first.getvalue(), bytearray(second.getvalue())
    end = shown.rindex(b"PK\x05\x06")
    hidden_end = hidden.rindex(b"PK\x05\x06")
    place = hidden.index(b"PK\x01\x02")
    # As long as Python's, since the end names one length for both.
    assert hidden_end - place == end - shown.index(b"PK\x01\x02")
    shown[end + 16 : end + 20] = struct.pack("<L", place)
    path.write_bytes(hidden[:hidden_end] + shown)


def as_type(dtype: torch.dtype) -> dict[str, Tensor]:
    """The network's weights in another type."""
    return {key: value.to(dtype) for key, value in weights(seed=7).items()}


def sharded(folder: Path, name: str = "step_7") -> Path:
    """Two files and their index."""
    state = weights(seed=7)
    halves = dict(list(state.items())[:2]), dict(list(state.items())[2:])
    places: dict[str, str] = {}
    for number, half in enumerate(halves, 1):
        shard = f"{name}-0000{number}-of-00002.safetensors"
        save_file(half, folder / shard)
        places |= dict.fromkeys(half, shard)
    index = folder / f"{name}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index
