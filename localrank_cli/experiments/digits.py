"""The digits of MNIST from a file of the user's: an .npz archive, or the original idx files."""

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
    " the original file train-images-idx3-ubyte, packed with gzip or not, with its labels beside"
    " it; both are on the pages of the MNIST database and of most libraries' data sets."
)


def read_digits(path: Path, least: int) -> tuple[Array, Array]:
    """Reads digits and labels.

    Args:
        path: The archive, or the file of the images.
        least: How many are needed.

    Returns:
        Images, uint8 (N, 28, 28), and labels, uint8 (N,).

    Raises:
        SettingsError: If there is no such file.
        DataError: If it does not hold enough digits.
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
        raise DataError(f"--mnist {path}: labels other than 0 to 9.", WHERE)
    return images, labels.astype(np.uint8)


def _archive(path: Path) -> tuple[Array, Array]:
    with np.load(path, allow_pickle=False) as file:
        for images, labels in _NAMES:
            if {images, labels} <= set(file.files):
                return file[images], file[labels]
        held = ", ".join(file.files) or "none"
    raise ValueError(f"no arrays images and labels, or x_train and y_train, among its own: {held}")


def _original(path: Path) -> tuple[Array, Array]:
    if "images-idx3" not in path.name:
        raise ValueError("neither an .npz archive nor a file named ...-images-idx3-ubyte")
    beside = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    if not beside.is_file():
        other = beside.with_suffix("") if beside.suffix == ".gz" else Path(f"{beside}.gz")
        if not other.is_file():
            raise ValueError(f"its labels, {beside.name}, are not beside it")
        beside = other
    return _idx(path), _idx(beside)


def _idx(path: Path) -> Array:
    """Reads the format of the original files: type, number of axes, lengths, bytes."""
    content = path.read_bytes()
    if content.startswith(_GZIP):
        content = gzip.decompress(content)
    zeros, kind, axes = struct.unpack_from(">HBB", content)
    if zeros != 0 or kind != _IDX_BYTES:
        raise ValueError(f"{path.name} is no idx file of bytes")
    shape = struct.unpack_from(f">{axes}I", content, 4)
    data = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
    if data.size != np.prod(shape):
        raise ValueError(f"{path.name} is not complete")
    return data.reshape(shape)
