"""The digits of MNIST from a user's file: an .npz archive, or the original idx files."""

import gzip
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from localrank_cli.errors import DataError, SettingsError, one_line

Array = npt.NDArray[Any]

_NAMES = (("images", "labels"), ("x_train", "y_train"))
_GZIP = b"\x1f\x8b"
_IDX_BYTES = 0x08  # the type code of unsigned bytes
WHERE = (
    "Give an .npz archive with images (N, 28, 28) and labels (N,), such as Keras's mnist.npz, or"
    " the original train-images-idx3-ubyte, gzipped or not, with the file of labels in the same"
    " folder; both can be downloaded from the MNIST database and with most libraries."
)


def read_digits(path: Path, least: int) -> tuple[Array, Array]:
    """Read images, uint8 (N, 28, 28), and labels, uint8 (N,): at least `least` of them.

    Raises:
        SettingsError: If the file does not exist.
        DataError: If it cannot be read, or does not hold enough digits.
    """
    if not path.is_file():
        raise SettingsError(f"--mnist {path}: there is no such file.", WHERE)
    try:
        images, labels = _archive(path) if zipfile.is_zipfile(path) else _original(path)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, struct.error) as error:
        reason = one_line(error)
        raise DataError(f"--mnist {path}: cannot be read ({reason}).", WHERE) from error
    good = images.ndim == 3 and images.shape[1:] == (28, 28) and images.dtype == np.uint8
    if not good or labels.shape != images.shape[:1] or len(labels) < least:
        raise DataError(
            f"--mnist {path}: expected at least {least:,} digits, uint8 (N, 28, 28), with as many"
            f" labels; got {images.dtype} {images.shape} and labels {labels.shape}.",
            WHERE,
        )
    if not np.isin(labels, np.arange(10)).all():
        raise DataError(f"--mnist {path}: has labels other than 0 to 9.", WHERE)
    return images, labels.astype(np.uint8)


def _archive(path: Path) -> tuple[Array, Array]:
    with np.load(path, allow_pickle=False) as file:
        for images, labels in _NAMES:
            if {images, labels} <= set(file.files):
                return file[images], file[labels]
        held = ", ".join(file.files) or "none"
    raise ValueError(f"no arrays images and labels, or x_train and y_train; it has: {held}")


def _original(path: Path) -> tuple[Array, Array]:
    if "images-idx3" not in path.name:
        raise ValueError("neither an .npz archive nor a file named ...-images-idx3-ubyte")
    beside = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    if not beside.is_file():
        other = beside.with_suffix("") if beside.suffix == ".gz" else Path(f"{beside}.gz")
        if not other.is_file():
            raise ValueError(f"its labels, {beside.name}, are not in the same folder")
        beside = other
    return _idx(path), _idx(beside)


def _idx(path: Path) -> Array:
    """Read an original file: type, number of axes, lengths, bytes."""
    content = path.read_bytes()
    if content.startswith(_GZIP):
        content = gzip.decompress(content)
    zeros, kind, axes = struct.unpack_from(">HBB", content)
    if zeros != 0 or kind != _IDX_BYTES:
        raise ValueError(f"{path.name} is not an idx file of bytes")
    shape = struct.unpack_from(f">{axes}I", content, 4)
    data = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
    if data.size != np.prod(shape):
        raise ValueError(f"{path.name} is incomplete")
    return data.reshape(shape)
