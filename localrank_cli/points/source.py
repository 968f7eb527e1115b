"""The source of the data in `--data`: a file, the user's code, or a distribution."""

import contextlib
import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from localrank_cli.errors import DataError, SettingsError, UsageError, cause
from localrank_cli.points.draw import Points, draw, sample
from localrank_cli.points.files import SUFFIXES, file_hash, load_array
from localrank_cli.points.numbers import from_numpy
from localrank_cli.points.rows import Data, check_memory
from localrank_cli.points.shape import reshaped, written
from localrank_cli.seeds import SEED, seeded
from localrank_cli.userimport import ANY_FAULT, CodeSpec, import_object

# The fact that tells one draw of a user's code from another.
VALUES = "data_values_sha256"
_DISTRIBUTION = re.compile(r"^(normal|uniform):(\d+(?:x\d+)*)$")


@dataclass(frozen=True)
class DataSource:
    """`--data` and the options that go with it."""

    text: str  # of --data
    key: str = ""
    scale: float | None = None
    shape: tuple[int, ...] | None = None  # of one point; None: as the data have it
    count: int | None = None  # None: the default number of points
    seed: int = 0
    array: Tensor | None = None  # from Python, instead of a name
    keep: bool = False  # whether all of the data are kept beside the points
    memory: int | None = None  # bytes that the points of a file may take; None: any number

    @property
    def path(self) -> Path | None:
        """The data file, when it is one."""
        return Path(self.text) if Path(self.text).suffix.lower() in SUFFIXES else None

    @property
    def is_drawn(self) -> bool:
        """Whether it is a distribution, which names the shape of a point itself."""
        return _DISTRIBUTION.match(self.text) is not None

    @property
    def code(self) -> CodeSpec | None:
        """The user's code, when it is that."""
        return None if self.path is not None else CodeSpec.parse(self.text)


def check_source(text: str) -> None:
    """Check the form of `--data` without opening a file.

    Raises:
        UsageError: If it has no known form.
    """
    source = DataSource(text)
    match = _DISTRIBUTION.match(text)
    if match is not None:
        if 0 in _shape(match.group(2)):
            raise UsageError(f"--data {text}: a point of that shape has no entries.")
    elif source.path is None and source.code is None:
        raise UsageError(
            f"--data {text}: not a known form.",
            "Known are .safetensors, .npz, .npy and .pt files, file.py:name, normal:3x32x32 and"
            " uniform:784.",
        )


def load_points(source: DataSource) -> tuple[Points, dict[str, object]]:
    """Return the points drawn from the data, and a description for the manifest.

    Raises:
        DataError: If the data cannot be used.
        SettingsError: If an array is named where arrays have no names.
    """
    if source.key and source.path is None:
        raise SettingsError(
            f"--data-key {source.key}: the data have no named arrays.", "Leave it out."
        )
    if source.shape is not None and source.is_drawn:
        kind, lengths = source.text.partition(":")[0], written(source.shape)
        raise SettingsError(
            f"--data-shape {lengths}: --data {source.text} has a shape of its own.",
            f"Give --data {kind}:{lengths} alone.",
        )
    if source.array is not None:
        array = source.array.detach().cpu()
        return _drawn(array, source, "the data"), {"data": "from Python"}
    match = _DISTRIBUTION.match(source.text)
    if match is not None:
        shape = _shape(match.group(2))
        points = sample(match.group(1), shape, source.count, source.seed, source.scale)
        return points, {"data": source.text}
    if source.path is not None:
        loaded, key = load_array(source.path, source.key, memory=source.memory)
        name = f"{source.path}[{key}]" if key else str(source.path)
        described: dict[str, object] = {
            "data": str(source.path.resolve()),
            "data_key": key,
            "data_sha256": file_hash(source.path),
        }
        return _drawn(loaded, source, name), described
    code = source.code
    if code is None:
        raise UsageError(f"--data {source.text}: not a known form.")
    described = {"data": source.text}
    if code.is_file:
        described["data_sha256"] = file_hash(Path(code.place))
    array = _from_code(code)
    described[VALUES] = _values_hash(array)
    return _drawn(array, source, source.text), described


def _values_hash(array: Tensor) -> str:
    """Return a hash of what code returned: it may return something else when it runs again."""
    digest = hashlib.sha256(f"{array.dtype} {tuple(array.shape)}".encode())
    digest.update(array.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _drawn(array: Data, source: DataSource, name: str) -> Points:
    if source.shape is not None:
        array = reshaped(array, source.shape, name)
    if source.path is not None:
        check_memory(array, source.count, source.memory, name)
    points = draw(array, source.count, source.seed, source.scale, name)
    return replace(points, everything=array, scale=source.scale) if source.keep else points


def _from_code(code: CodeSpec) -> Tensor:
    name = f"--data {code.place}:{code.name}"
    # What the code draws, when it is imported and when it is called, is the same at every start.
    with seeded(SEED):
        found: Any = import_object(code, "--data")
    if not isinstance(found, (Tensor, np.ndarray)) and callable(found):
        try:
            with contextlib.chdir("."), seeded(SEED):
                found = found()
        except ANY_FAULT as error:
            raise DataError(
                f"{name} failed: {cause(error)}",
                "It is called without arguments and must return a tensor or an array.",
            ) from error
    if isinstance(found, np.ndarray):
        return from_numpy(found, name)
    if isinstance(found, Tensor):
        return found.detach().cpu()
    raise DataError(
        f"{name} returned a {type(found).__name__}.",
        "A tensor or an array is needed, with the points on its first axis.",
    )


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(length) for length in text.split("x"))
