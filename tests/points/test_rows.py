"""Large arrays stay in their file, whatever its format and the order of its axes."""

import os
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from localrank_cli.errors import DataError
from localrank_cli.points import containers, draw, files, rows
from localrank_cli.points.draw import first_of_permutation
from localrank_cli.points.files import load_array
from localrank_cli.points.rows import Rows, chunks, whole
from localrank_cli.points.source import DataSource, load_points
from tests.cli.program import run_python
from tests.faults import hostile
from tests.faults.spoiled import safetensors

X = torch.arange(5 * 3 * 4, dtype=torch.float32).reshape(5, 3, 4) - 7


@pytest.fixture
def _in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (containers, files, rows):
        monkeypatch.setattr(module, "AT_ONCE", 100)


def _torch(thing: object) -> Callable[[Path], None]:
    return lambda path: torch.save(thing, path)


WRITERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "npy": ("x.npy", lambda path: np.save(path, X.numpy())),
    "npy in Fortran order": ("x.npy", lambda path: np.save(path, np.asfortranarray(X.numpy()))),
    "npz": ("x.npz", lambda path: np.savez(path, x=X.numpy())),
    "npz in Fortran order": (
        "x.npz", lambda path: np.savez(path, x=np.asfortranarray(X.numpy())),
    ),
    "npz, packed": ("x.npz", lambda path: np.savez_compressed(path, x=X.numpy())),
    "safetensors": ("x.safetensors", lambda path: save_file({"a": X[:1].clone(), "x": X}, path)),
    "pt": ("x.pt", _torch({"x": X, "y": torch.zeros(5)})),
    "pt, a view": ("x.pt", _torch(torch.stack([X, X + 1])[0])),
    "pt, columns of a matrix": ("x.pt", _torch(torch.cat([X, X], dim=2)[:, :, 4:])),
    "pt, moved axes": ("x.pt", _torch(X.permute(2, 1, 0).contiguous().permute(2, 1, 0))),
    "pt, a list": ("x.pt", _torch([X])),
    "pt, half": ("x.pt", _torch(X.half())),
    "pt, negative": ("x.pt", _torch(torch._neg_view(-X))),
}  # fmt: skip


@pytest.mark.usefixtures("_in_parts")
@pytest.mark.parametrize("what", WRITERS)
def test_rows_are_those_of_the_array(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, write = WRITERS[what]
    write(tmp_path / name)
    monkeypatch.setattr(rows, "_IN_VAIN", 0)
    found, _ = load_array(tmp_path / name, "")
    assert isinstance(found, Rows) or "negative" in what
    assert found.shape == X.shape
    assert torch.equal(found[:].float(), X)
    assert torch.equal(found[1:3].float(), X[1:3])
    assert torch.equal(found[torch.tensor([0, 2, 4])].float(), X[[0, 2, 4]])
    assert torch.equal(found[0:1].float(), X[:1])  # again from the start
    parts = list(chunks(found))
    assert len(parts) > 1
    assert torch.equal(torch.cat([part for _, part in parts]).float(), X)
    assert [float(part[0, 0, 0]) for _, part in parts] == [X[at, 0, 0] for at, _ in parts]


@pytest.mark.parametrize("what", WRITERS)
def test_the_points_and_the_manifest_are_the_same(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, write = WRITERS[what]
    write(tmp_path / name)
    source = DataSource(str(tmp_path / name), count=3, shape=(12,), scale=0.5, keep=True)
    points, facts = load_points(source)
    for module in (containers, files, rows):
        monkeypatch.setattr(module, "AT_ONCE", 0)
    again, same = load_points(source)
    assert (same, again.indices, again.n_data) == (facts, points.indices, points.n_data)
    assert torch.equal(again.tensor, points.tensor)
    assert again.everything is not None
    assert torch.equal(again.everything[:].float(), X.reshape(5, 12))


@pytest.mark.parametrize("total", [1, 2, 64, 1000, 2**20, 2**20 + 1, 10**7])
def test_points_are_those_of_a_whole_permutation(
    total: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draw, "_PERMUTED", 0)
    count = min(64, total)
    found = first_of_permutation(total, count, torch.Generator().manual_seed(3))
    expected = torch.randperm(total, generator=torch.Generator().manual_seed(3))[:count]
    assert torch.equal(found, expected)


def test_points_of_more_rows_than_memory_could_permute() -> None:
    found = first_of_permutation(2**40, 64, torch.Generator().manual_seed(3))
    assert len(set(found.tolist())) == 64
    assert 2**38 < int(found.max()) < 2**40


PEAK = """
import resource, sys
from localrank_cli.points.source import DataSource, load_points
points, _ = load_points(DataSource(sys.argv[1]))
assert points.tensor.shape == (64, 256)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_a_large_file_takes_little_memory(tmp_path: Path, suffix: str) -> None:
    """Sparse: its bytes are never written."""
    peaks = []
    for count in (2**10, 2**20):
        path = tmp_path / f"x{count}{suffix}"
        np.save(tmp_path / "x.npy", np.zeros((1, 256), dtype=np.float32))
        if suffix == ".npy":
            head = (tmp_path / "x.npy").read_bytes()[:128]
            head = head.replace(b"(1, 256), }" + b" " * 8, f"({count}, 256), }}".encode().ljust(19))
        else:
            entry = {"dtype": "F32", "shape": [count, 256], "data_offsets": [0, count * 1024]}
            head = safetensors({"x": entry})
        path.write_bytes(head)
        os.truncate(path, len(head) + count * 1024)
        peaks.append(int(run_python("-c", PEAK, path)))
    # MiB. The file has 1024 of them; a chunk, its copy and its sum have 16 each.
    assert peaks[1] < peaks[0] + 200


def test_points_that_do_not_fit(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((100, 1000)))
    source = DataSource(str(tmp_path / "x.npy"), count=50, memory=100_000)
    with pytest.raises(DataError, match=r"50 points of 1000 entries need 391 KiB") as caught:
        load_points(source)
    assert "the budget is 97.7 KiB" in caught.value.what
    assert caught.value.advice == "Ask for at most --points 12, or give more with --memory."
    assert len(load_points(replace(source, count=12))[0].indices) == 12
    with pytest.raises(DataError, match="Give more with --memory"):
        load_points(replace(source, memory=7000))


@pytest.mark.usefixtures("_in_parts")
def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.zeros(1000, dtype=np.int8))
    found, _ = load_array(tmp_path / "y.npy", "")
    with pytest.raises(DataError, match=r"y: 1000 entries need 7\.81 KiB, but the budget is"):
        whole(found, 7999, "y")
    assert whole(found, 8000, "y").shape == (1000,)


@pytest.mark.usefixtures("_in_parts")
def test_an_array_that_can_only_be_read_whole(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", x=np.asfortranarray(X.numpy()))
    with pytest.raises(DataError, match="can only be read as a whole, which needs"):
        load_array(tmp_path / "x.npz", "", memory=200)
    assert torch.equal(load_array(tmp_path / "x.npz", "", memory=300)[0][:], X)


@pytest.mark.usefixtures("_in_parts")
@pytest.mark.parametrize("compressed", [False, True])
def test_damage_is_found_before_a_row_is_used(tmp_path: Path, compressed: bool) -> None:
    """Integers: no other check reads them all."""
    save = np.savez_compressed if compressed else np.savez
    save(tmp_path / "x.npz", x=np.arange(1000))
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(DataError, match="cannot be read"):
        load_array(tmp_path / "x.npz", "")


@pytest.mark.parametrize("in_parts", [False, True])
def test_a_tensor_that_claims_more_than_its_file_keeps(
    tmp_path: Path, in_parts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_parts:
        monkeypatch.setattr(files, "AT_ONCE", 0)
    torch.save(torch.zeros(1).expand(10**6, 10**6), tmp_path / "x.pt")
    with pytest.raises(DataError, match="claims 4000000000000 bytes, but the file holds 4"):
        load_array(tmp_path / "x.pt", "")


def test_values_that_were_never_there(tmp_path: Path) -> None:
    torch.save(torch.zeros(3, 4, device="meta"), tmp_path / "x.pt")
    with pytest.raises(DataError, match="no values: it was saved from the meta device"):
        load_array(tmp_path / "x.pt", "")


def test_a_file_that_is_cut_off_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "AT_ONCE", 0)
    np.save(tmp_path / "x.npy", X.numpy())
    found, _ = load_array(tmp_path / "x.npy", "")
    os.truncate(tmp_path / "x.npy", 140)
    with pytest.raises(EOFError):
        found[:]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_unpacks_any_size_at_once(tmp_path: Path, method: int) -> None:
    np.save(tmp_path / "x.npy", X.numpy())
    with zipfile.ZipFile(tmp_path / "x.npz", "w", method) as archive:
        archive.write(tmp_path / "x.npy", "x.npy")
    with pytest.raises(DataError, match="compressed as numpy never does"):
        load_array(tmp_path / "x.npz", "")


def test_a_header_that_unpacks_to_any_size(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x02\x00" + struct.pack("<L", 2**27) + bytes(2**22))
    with pytest.raises(DataError, match="its header claims 134217728 bytes"):
        load_array(tmp_path / "x.npz", "")


@pytest.mark.usefixtures("_in_parts")
def test_lists_are_read_whole_within_the_memory(tmp_path: Path) -> None:
    torch.save({"x": list(X), "y": X[0].tolist()}, tmp_path / "x.pt")
    assert torch.equal(load_array(tmp_path / "x.pt", "x")[0][:], X)
    assert torch.equal(load_array(tmp_path / "x.pt", "y")[0][:], X[0])
    with pytest.raises(DataError, match="can only be read as a whole, which needs") as caught:
        load_array(tmp_path / "x.pt", "x", memory=200)
    assert caught.value.advice.startswith("Save a dict with one tensor for each input")


@pytest.mark.usefixtures("_in_parts")
@pytest.mark.parametrize("name", ["a nested tuple as a key", "a tensor beyond its storage"])
def test_a_hostile_pickle_is_screened(tmp_path: Path, name: str) -> None:
    path = hostile.write(tmp_path, "data", hostile.PICKLES[name])
    assert path.stat().st_size > 100
    with pytest.raises(DataError, match=r"repeats others|reaches beyond the values"):
        load_array(path, "")


def test_lists_that_repeat_a_few_values_without_end(tmp_path: Path) -> None:
    nested: list[object] = [1.0, 2.0]
    empty: list[object] = []
    for _ in range(30):
        nested, empty = [nested, nested], [empty, empty]
    itself: list[object] = []
    itself.append(itself)
    for thing in (nested, empty, itself, [torch.zeros(2**20)] * 10**5):
        torch.save({"x": thing}, tmp_path / "x.pt")
        with pytest.raises(DataError, match="repeat a few values or tensors many times"):
            load_array(tmp_path / "x.pt", "")
