import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from localrank_cli.errors import DataError, LocalrankError, SettingsError
from localrank_cli.points import containers, files, rows
from localrank_cli.points.files import SUFFIXES, file_hash, load_array
from tests.helpers import Evil

ARRAY = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture(autouse=True, params=["whole", "in parts"])
def _at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is read as a small one is, and as one larger than memory."""
    if request.param == "in parts":
        for module in (containers, files, rows):
            monkeypatch.setattr(module, "AT_ONCE", 0)


def load(path: Path, key: str, option: str = "--data-key") -> tuple[Tensor, str]:
    found, chosen = load_array(path, key, option)
    return found[:], chosen


def save(path: Path, **arrays: Any) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".safetensors":
        save_file({key: torch.as_tensor(value) for key, value in arrays.items()}, path)
    else:
        torch.save({key: torch.as_tensor(value) for key, value in arrays.items()}, path)
    return path


NAMED = pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pt", ".pth"])


@NAMED
def test_the_only_array(tmp_path: Path, suffix: str) -> None:
    tensor, key = load(save(tmp_path / f"a{suffix}", digits=ARRAY), "")
    assert key == "digits"
    assert torch.equal(tensor, torch.from_numpy(ARRAY))


@NAMED
@pytest.mark.parametrize("default", ["x", "inputs", "images"])
def test_the_default_keys(tmp_path: Path, suffix: str, default: str) -> None:
    path = save(tmp_path / f"a{suffix}", **{"a": np.ones(2), default: ARRAY, "y": np.ones(3)})
    tensor, key = load(path, "")
    assert key == default
    assert tensor.shape == (4, 3)


@NAMED
def test_the_first_of_the_default_keys(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a{suffix}", images=np.ones(2), inputs=np.ones(3), x=ARRAY)
    assert load(path, "")[1] == "x"


@NAMED
def test_a_key(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a{suffix}", x=np.ones(2), digits=ARRAY)
    assert load(path, "digits")[0].shape == (4, 3)
    with pytest.raises(SettingsError, match=r"has no array 'nope'") as caught:
        load(path, "nope")
    assert "digits, x" in caught.value.advice


@NAMED
def test_several_arrays_need_a_key(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a{suffix}", train=ARRAY, test=ARRAY + 1)
    with pytest.raises(SettingsError, match="several arrays: test, train") as caught:
        load(path, "")
    assert "--data-key" in caught.value.advice


def test_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ARRAY)
    tensor, key = load(tmp_path / "a.npy", "")
    assert key == ""
    assert torch.equal(tensor, torch.from_numpy(ARRAY))


def test_a_bare_tensor_and_a_list(tmp_path: Path) -> None:
    torch.save(torch.from_numpy(ARRAY), tmp_path / "a.pt")
    assert load(tmp_path / "a.pt", "")[0].shape == (4, 3)
    torch.save([torch.ones(2), torch.from_numpy(ARRAY)], tmp_path / "b.pt")
    assert load(tmp_path / "b.pt", "1")[0].shape == (4, 3)


@pytest.mark.parametrize("label", [2, torch.tensor(2), torch.ones(5)])
def test_a_list_of_pairs(tmp_path: Path, label: object) -> None:
    rows = torch.from_numpy(ARRAY)
    torch.save([(row, label) for row in rows], tmp_path / "a.pt")
    with pytest.raises(SettingsError, match="several arrays: 0, 1"):
        load(tmp_path / "a.pt", "")
    assert torch.equal(load(tmp_path / "a.pt", "0")[0], rows)
    assert len(load(tmp_path / "a.pt", "1")[0]) == len(rows)


def test_a_list_of_pairs_of_one_shape(tmp_path: Path) -> None:
    rows = torch.from_numpy(ARRAY)
    torch.save([(row, row + 1) for row in rows], tmp_path / "a.pt")
    assert torch.equal(load(tmp_path / "a.pt", "1")[0], rows + 1)


def test_a_pair_of_lists(tmp_path: Path) -> None:
    rows = torch.from_numpy(ARRAY)
    torch.save((list(rows), [1] * len(rows)), tmp_path / "a.pt")
    assert torch.equal(load(tmp_path / "a.pt", "0")[0], rows)
    torch.save((list(rows), list(rows + 1)), tmp_path / "a.pt")
    assert torch.equal(load(tmp_path / "a.pt", "0")[0], rows)


def test_a_list_of_points(tmp_path: Path) -> None:
    torch.save(list(torch.from_numpy(ARRAY)), tmp_path / "a.pt")
    with pytest.raises(SettingsError) as caught:
        load(tmp_path / "a.pt", "")
    assert "If each is a point, save them as one array: torch.stack(data)" in caught.value.advice


def test_legacy_torch_files(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"x": torch.from_numpy(ARRAY)}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(load(path, "")[0], torch.from_numpy(ARRAY))


@pytest.mark.parametrize("name", ["a.npy", "a.pt"])
def test_a_key_for_an_array_without_a_name(tmp_path: Path, name: str) -> None:
    if name == "a.npy":
        np.save(tmp_path / name, ARRAY)
    else:
        torch.save(torch.from_numpy(ARRAY), tmp_path / name)
    with pytest.raises(SettingsError, match=r"--data-key x: .* one array without a name"):
        load(tmp_path / name, "x")


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("f2", torch.float16),
        ("f8", torch.float64),
        (">f4", torch.float32),
        ("longdouble", torch.float64),
        ("u1", torch.uint8),
        ("u2", torch.int64),
        ("u8", torch.int64),
        (">i2", torch.int16),
        ("?", torch.bool),
    ],
)
def test_types(tmp_path: Path, dtype: str, expected: torch.dtype) -> None:
    np.save(tmp_path / "a.npy", (ARRAY % 2).astype(dtype))
    tensor, _ = load(tmp_path / "a.npy", "")
    assert tensor.dtype == expected
    assert torch.equal(tensor.double(), torch.from_numpy(ARRAY % 2).double())


@pytest.mark.parametrize("dtype", ["c8", "U3", "S3", "M8[s]"])
def test_types_that_are_no_numbers(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3, dtype=dtype))
    with pytest.raises(DataError, match=r"has dtype"):
        load(tmp_path / "a.npy", "")


def test_integers_too_large(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([2**63], dtype=np.uint64))
    with pytest.raises(DataError, match=r"above 2\^63 - 1"):
        load(tmp_path / "a.npy", "")


def _npy(path: Path, marker: Path) -> None:
    np.save(path, np.array([Evil(marker)], dtype=object), allow_pickle=True)


def _npz(path: Path, marker: Path) -> None:
    np.savez(path, x=np.array([Evil(marker)], dtype=object))


def _torch(path: Path, marker: Path) -> None:
    torch.save({"x": torch.ones(3), "y": Evil(marker)}, path)


def _pickle(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps(Evil(marker)))


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.npy", _npy), ("a.npz", _npz), ("a.pt", _torch), ("a.pth", _pickle), ("b.npy", _pickle)],
)
def test_no_pickle_runs_code(
    tmp_path: Path, name: str, write: Callable[[Path, Path], None]
) -> None:
    marker = tmp_path / "marker"
    write(tmp_path / name, marker)
    with pytest.raises(DataError, match=name) as caught:
        load(tmp_path / name, "")
    assert not marker.exists()
    assert "no pickled objects" in caught.value.advice
    assert "weights_only" not in str(caught.value)


def test_labels_that_cannot_be_read_stay_unread(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=ARRAY, names=np.array(["a", None], dtype=object))
    assert load(tmp_path / "a.npz", "")[0].shape == (4, 3)
    with pytest.raises(DataError, match=r"a\.npz: cannot be read"):
        load(tmp_path / "a.npz", "names")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("part", [0, 5, 0.5])
def test_damaged_files(tmp_path: Path, suffix: str, part: float) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, ARRAY)
    else:
        save(path, x=ARRAY)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data)) if part < 1 else int(part)])
    with pytest.raises(DataError, match=rf"a\{suffix}: cannot be read"):
        load(path, "")


def test_damage_inside_an_npz(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", x=np.zeros(1000))
    data = bytearray(path.read_bytes())
    data[300:600] = b"x" * 300
    path.write_bytes(data)
    with pytest.raises(DataError, match="cannot be read"):
        load(path, "")


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (5, "holds a int"),
        ("text", "holds a str"),
        ({"x": 3}, r"a\.pt\[x\] is a int, not an array"),
        ({}, "holds no array"),
        (torch.ones(3, 3).to_sparse(), "is not a plain tensor"),
        (torch.zeros(1).expand(2**20, 2**20), "claims 4398046511104 bytes, but the file holds 4"),
    ],
)
def test_torch_files_without_arrays(tmp_path: Path, thing: object, message: str) -> None:
    torch.save(thing, tmp_path / "a.pt")
    with pytest.raises(LocalrankError, match=message):
        load(tmp_path / "a.pt", "")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_such_file(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(DataError, match="there is no such data file"):
        load(tmp_path / f"a{suffix}", "")


def test_file_hash(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_hash(tmp_path / "a").startswith("ba7816bf8f01cfea")


def test_no_gradient_is_kept(tmp_path: Path) -> None:
    torch.save(torch.ones(3, requires_grad=True), tmp_path / "a.pt")
    tensor: Tensor = load(tmp_path / "a.pt", "")[0]
    assert not tensor.requires_grad


def test_labels_are_missed_by_their_own_option(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 2)))
    with pytest.raises(SettingsError, match=r"--labels-key y: .* without a name") as caught:
        load(tmp_path / "x.npy", "y", "--labels-key")
    assert caught.value.advice.startswith("Save points and labels in one .npz")
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 2)))
    with pytest.raises(SettingsError, match=r"^--labels-key: .* has no array 'y'"):
        load(tmp_path / "x.npz", "y", "--labels-key")
