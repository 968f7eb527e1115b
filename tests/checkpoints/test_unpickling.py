"""What a pickle may use as keys, and what of a file it may claim."""

import collections
import enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from localrank_cli.checkpoints.dcp import read_metadata
from localrank_cli.checkpoints.formats import read
from localrank_cli.checkpoints.torch_file import load_torch
from localrank_cli.errors import UnreadableError
from tests.checkpoints.test_dcp_metadata import Chunks, dumped, written
from tests.faults.hostile import item, tensor, text, write
from tests.helpers import mlp, weights


class Phase(enum.Enum):
    """Members of it are keys of a dict."""

    A = 1


def optimizer() -> torch.optim.Optimizer:
    """A whole optimizer, with a dict of its parameters."""
    net = mlp(4, 3, 2)
    made = torch.optim.Adam(net.parameters())
    net(torch.ones(2, 4)).sum().backward()
    made.step()
    return made


KEYS: dict[str, Any] = {
    "numbers": {1: 0, 2.5: 0, None: 0, b"x": 0, -1: 0, 2**70: 0},
    "pairs": {(0, "a"): 1, (1, None): 2, (): 3},
    "many pairs": {(x, y): 0 for x in range(100) for y in range(100)},
    "members": {Phase.A: 1, (Phase.A, 2): 2},
    "classes": {nn.Linear: 1, (nn.Linear, nn.ReLU): 2},
    "types": {torch.float32: 1},
    "paths": {Path("x"): 1},
    "sets": {frozenset((1, 2)): 1},
    "a set of pairs": {(1, 2), (3, 4)},
    "an optimizer": optimizer(),
    "counts": collections.Counter("hello"),
    "numbers of numpy": {np.int64(3): 1},
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", KEYS)
def test_keys_of_real_checkpoints(tmp_path: Path, name: str, protocol: int) -> None:
    if name == "sets" and protocol == 2:
        pytest.skip("protocol 2 makes them by a call, and the file is refused as before")
    path = tmp_path / "step_1.pt"
    torch.save({"model": weights(), "x": KEYS[name]}, path, pickle_protocol=protocol)
    assert torch.equal(read(path).states["model"]["0.weight"], weights()["0.weight"])


def test_nested_tuples_are_read_as_values_and_refused_as_keys(tmp_path: Path) -> None:
    path = tmp_path / "step_1.pt"
    loaded: Any
    torch.save({"model": weights(), "x": ((1, (2, 3)), 4)}, path)
    loaded = load_torch(path)
    assert loaded["x"] == ((1, (2, 3)), 4)
    torch.save({"model": weights(), "x": {((1, 2), 3): 4}}, path)
    with pytest.raises(
        UnreadableError, match="a tuple of things other than numbers and strings"
    ) as caught:
        read(path)
    assert "--trust-pickle" in caught.value.advice
    assert read(path, trust_pickle=True).states["model"]  # as the message suggests


def test_a_tensor_holds_only_values_of_the_file(tmp_path: Path) -> None:
    """torch itself adds memory to a storage that is too short, and nothing is written there."""
    sound = item(text("0.weight"), tensor(b"K\x03K\x04\x86", b"K\x04K\x01\x86"))
    path = write(tmp_path, "zip", sound)
    assert torch.equal(read(path).states[""]["0.weight"], weights()["0.weight"])
    one_more = item(text("0.weight"), tensor(b"K\x03K\x04\x86", b"K\x04K\x01\x86", b"K\x01"))
    with pytest.raises(UnreadableError, match="reaches beyond the values that the file keeps"):
        read(write(tmp_path, "zip", one_more))


@pytest.mark.timeout(60)
def test_many_pieces_take_little_time(tmp_path: Path) -> None:
    """20,000 along an axis that is not the first took 6 minutes: each was compared with all.

    6,000 would take 33 s.
    """
    count = 6_000
    chunks: Chunks = {(0, at): (3, 1) for at in range(count)}
    (entry,) = read_metadata(written(tmp_path, torch.Size([3, count]), chunks))
    assert len(entry.pieces) == count


@pytest.mark.long  # that they do not fill it is found by the same sums as above
@pytest.mark.timeout(60)
def test_many_pieces_that_do_not_fill_the_tensor(tmp_path: Path) -> None:
    count = 20_000
    chunks: Chunks = {(0, at): (3, 1) for at in range(count)}
    chunks[0, 7] = (3, 2)
    chunks[0, 9] = (3, 0)
    with pytest.raises(UnreadableError, match="do not make up its shape"):
        read_metadata(written(tmp_path, torch.Size([3, count]), chunks))


@pytest.mark.parametrize("seed", range(40))
def test_pieces_fill_a_tensor_as_counting_says(tmp_path: Path, seed: int) -> None:
    """Random boxes, of which some fill the tensor and some were moved or resized."""
    random = np.random.default_rng(seed)
    size = tuple(int(n) for n in random.integers(1, 5, size=int(random.integers(1, 4))))
    boxes = [((0,) * len(size), size)]
    for _ in range(int(random.integers(0, 6))):  # cut one in two
        offsets, sizes = boxes.pop(int(random.integers(len(boxes))))
        axis = int(random.integers(len(size)))
        at = int(random.integers(0, sizes[axis] + 1))
        first, second = list(sizes), list(sizes)
        first[axis], second[axis] = at, sizes[axis] - at
        moved = list(offsets)
        moved[axis] += at
        boxes += [(offsets, tuple(first)), (tuple(moved), tuple(second))]
    if seed % 2:
        which = int(random.integers(len(boxes)))
        offsets, sizes = boxes[which]
        other = tuple(int(n) for n in random.integers(0, 3, size=len(size)))
        boxes[which] = (other, sizes) if random.random() < 0.5 else (offsets, other)
    chunks = dict(boxes)  # an empty piece may share its place with another
    counts = np.zeros([n + 9 for n in size], dtype=int)
    for offsets, sizes in chunks.items():
        counts[tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))] += 1
    inside = tuple(slice(0, n) for n in size)
    fills = bool((counts[inside] == 1).all()) and counts.sum() == counts[inside].size
    path = written(tmp_path, torch.Size(size), chunks)
    if fills:
        assert len(read_metadata(path)[0].pieces) == len(chunks)
    else:
        with pytest.raises(UnreadableError, match="do not make up its shape"):
            read_metadata(path)


def test_tensors_cannot_share_their_pieces(tmp_path: Path) -> None:
    """A list of pieces is written once and named by every tensor: work for each pair of both."""
    piece = ChunkStorageMetadata(torch.Size([0]), torch.Size([0]))
    shared = TensorStorageMetadata(TensorProperties(), torch.Size([0]), [piece] * 1000)
    place = {MetadataIndex("w"): _StorageInfo("a.distcp", 0, 1)}
    path = dumped(tmp_path, Metadata({f"w{n}": shared for n in range(1000)}, None, place))
    with pytest.raises(UnreadableError, match="more pieces than its 1 places"):
        read_metadata(path)
