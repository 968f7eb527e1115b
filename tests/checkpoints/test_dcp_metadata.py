"""Metadata that torch's own classes make, and that say what cannot be."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from localrank_cli.checkpoints.dcp import Entry, Piece, check_files, read_metadata
from localrank_cli.errors import UnreadableError

Chunks = dict[tuple[int, ...], tuple[int, ...]]  # offsets -> sizes


def written(folder: Path, size: Any, chunks: Chunks, storage: Any = ("a.distcp", 0, 10)) -> Path:
    parts = [ChunkStorageMetadata(torch.Size(o), torch.Size(s)) for o, s in chunks.items()]
    tensor = TensorStorageMetadata(TensorProperties(torch.float32), size, parts)
    places = {MetadataIndex("w", offsets): _StorageInfo(*storage) for offsets in chunks}
    return dumped(folder, Metadata({"w": tensor}, {"w": ("model", "w")}, places))


def dumped(folder: Path, thing: object) -> Path:
    path = folder / ".metadata"
    path.write_bytes(pickle.dumps(thing))
    return path


def test_entries(tmp_path: Path) -> None:
    path = written(tmp_path, torch.Size([4, 2]), {(0, 0): (3, 2), (3, 0): (1, 2)})
    pieces = (Piece("a.distcp", 0, 10, (0, 0), (3, 2)), Piece("a.distcp", 0, 10, (3, 0), (1, 2)))
    assert read_metadata(path) == [Entry(("model", "w"), pieces, torch.float32, (4, 2))]


def test_values_that_are_no_tensor(tmp_path: Path) -> None:
    place = {MetadataIndex("step"): _StorageInfo("a.distcp", 5, 7)}
    found = read_metadata(dumped(tmp_path, Metadata({"step": BytesStorageMetadata()}, None, place)))
    assert found == [Entry(("step",), (Piece("a.distcp", 5, 7),))]


@pytest.mark.parametrize(
    ("size", "chunks"),
    [
        ((4,), {(0,): (3,)}),  # a gap at the end
        ((4,), {(0,): (2,), (1,): (2,)}),  # as many values, and they overlap
        ((4,), {(0,): (2,), (3,): (2,)}),  # beyond the end
        ((2, 2), {(0, 0): (2, 1), (1, 0): (1, 2)}),
        ((4,), {(0, 0): (4, 1)}),
        ((4,), {}),
        ((2**40, 2**40), {(0, 0): (2**40, 2**40)}),
        ((2**70,), {(0,): (2**70,)}),
        (("4",), {(0,): (4,)}),
        (4, {(0,): (4,)}),
        (None, {(0,): (4,)}),
    ],
)
def test_pieces_that_do_not_make_up_a_tensor(tmp_path: Path, size: Any, chunks: Chunks) -> None:
    try:
        path = written(tmp_path, size, chunks)
    except (TypeError, OverflowError, RuntimeError):
        pytest.skip("torch itself does not write it")
    with pytest.raises(UnreadableError, match=r"\.metadata: not the metadata of torch"):
        read_metadata(path)


def test_an_empty_tensor(tmp_path: Path) -> None:
    path = written(tmp_path, torch.Size([0, 3]), {(0, 0): (0, 3)})
    assert read_metadata(path)[0].size == (0, 3)


@pytest.mark.parametrize(
    "storage",
    [
        ("a.distcp", -1, 10),
        ("a.distcp", 0, 2**63),
        ("a.distcp", 0.5, 10),
        (7, 0, 10),
        ("a.distcp", 0, 10, ["zstd"]),
    ],
)
def test_places_that_are_none(tmp_path: Path, storage: Any) -> None:
    path = written(tmp_path, torch.Size([4]), {(0,): (4,)}, storage)
    with pytest.raises(UnreadableError, match=r"\.metadata: not the metadata of torch"):
        read_metadata(path)


@pytest.mark.parametrize("name", ["../a.distcp", "/etc/passwd", "..\\a", "", "a\n.distcp"])
def test_files_outside_the_folder(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, torch.Size([4]), {(0,): (4,)}, (name, 0, 10))
    with pytest.raises(UnreadableError, match="which is not in its folder"):
        read_metadata(path)


@pytest.mark.parametrize(
    "thing",
    [
        7,
        {"state_dict_metadata": {}},
        Metadata(None, None, None),  # type: ignore[arg-type]  # malformed on purpose
        Metadata({"w": 3}, None, {MetadataIndex("w"): 7}),  # type: ignore[dict-item]  # malformed on purpose
        Metadata({}, None, {"w": 7}),
        Metadata({"w": BytesStorageMetadata()}, {"w": 7}, {MetadataIndex("w"): 7}),
        Metadata({"w": BytesStorageMetadata()}, {"w": ((1,),)}, {MetadataIndex("w"): 7}),
        Metadata({}, None, {MetadataIndex(("w",)): 7}),  # type: ignore[arg-type]  # malformed on purpose
    ],
)
def test_other_things(tmp_path: Path, thing: Any) -> None:
    with pytest.raises(UnreadableError, match=r"\.metadata: not the metadata of torch"):
        read_metadata(dumped(tmp_path, thing))


def test_files_are_checked(tmp_path: Path) -> None:
    path = written(tmp_path, torch.Size([4]), {(0,): (4,)})
    entries = read_metadata(path)
    with pytest.raises(UnreadableError, match=r"a\.distcp: there is no such file"):
        check_files(path, entries)
    (tmp_path / "a.distcp").write_bytes(b"x" * 9)
    with pytest.raises(UnreadableError, match=r"a\.distcp: has 9 bytes, but .* up to byte 10"):
        check_files(path, entries)
    (tmp_path / "a.distcp").write_bytes(b"x" * 10)
    check_files(path, entries)
