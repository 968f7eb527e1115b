"""Digits from archives and original files, and the errors for other files."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from localrank_cli.errors import DataError, SettingsError
from localrank_cli.experiments.digits import read_digits

Array = npt.NDArray[Any]


@pytest.fixture
def digits() -> tuple[Array, Array]:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (12, 28, 28), dtype=np.uint8)
    return images, np.arange(12, dtype=np.uint8) % 10


def idx(array: Array) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("names", [("images", "labels"), ("x_train", "y_train")])
def test_archives(tmp_path: Path, digits: tuple[Array, Array], names: tuple[str, str]) -> None:
    arrays: Any = dict(zip(names, digits, strict=True))
    np.savez(tmp_path / "d.npz", **arrays)
    images, labels = read_digits(tmp_path / "d.npz", 12)
    np.testing.assert_array_equal(images, digits[0])
    np.testing.assert_array_equal(labels, digits[1])


@pytest.mark.parametrize("packed", ["neither", "both", "images", "labels"])
def test_original_files(tmp_path: Path, digits: tuple[Array, Array], packed: str) -> None:
    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
    for name, array in zip(names, digits, strict=True):
        zipped = packed == "both" or packed in name
        path = tmp_path / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    given = tmp_path / (names[0] + (".gz" if packed in {"both", "images"} else ""))
    images, labels = read_digits(given, 12)
    np.testing.assert_array_equal(images, digits[0])
    np.testing.assert_array_equal(labels, digits[1])


def test_a_missing_file_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no such file.*train-images-idx3-ubyte"):
        read_digits(tmp_path / "none.npz", 1)


def test_too_few(tmp_path: Path, digits: tuple[Array, Array]) -> None:
    np.savez(tmp_path / "d.npz", images=digits[0], labels=digits[1])
    with pytest.raises(DataError, match=r"at least 10,000 digits.*\(12, 28, 28\)"):
        read_digits(tmp_path / "d.npz", 10_000)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(3)}, "no arrays images and labels"),
        ({"images": np.zeros((2, 28, 28)), "labels": np.zeros(2)}, "got float64"),
        ({"images": np.zeros((2, 5), np.uint8), "labels": np.zeros(2)}, r"got uint8 \(2, 5\)"),
        (
            {"images": np.zeros((2, 28, 28), np.uint8), "labels": np.array([1, 10])},
            "labels other than 0 to 9",
        ),
        (
            {"images": np.zeros((2, 28, 28), np.uint8), "labels": np.array([{}, {}])},
            "cannot be read",
        ),
    ],
)
def test_other_archives(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_digits(tmp_path / "d.npz", 2)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("digits.bin", b"\0" * 20, "neither an .npz archive nor"),
        ("train-images-idx3-ubyte", b"\0" * 20, "its labels, train-labels-idx1-ubyte, are not"),
    ],
)
def test_other_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_digits(tmp_path / name, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"\1\0\0\0", "not an idx file of bytes"),
        (idx(np.zeros((2, 28, 28), np.uint8))[:-1], "is incomplete"),
        (gzip.compress(b"x" * 100)[:-9], "cannot be read"),
    ],
    ids=["empty", "no idx", "cut off", "gzip cut off"],
)
def test_damaged_original_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(2, np.uint8)))
    with pytest.raises(DataError, match=message):
        read_digits(tmp_path / "train-images-idx3-ubyte", 2)
