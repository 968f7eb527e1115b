"""Check the values of the data, and draw points from them, the same ones at every checkpoint."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from localrank_cli.errors import DataError
from localrank_cli.points.defaults import DEFAULT_POINTS
from localrank_cli.points.rows import Data, chunks

if TYPE_CHECKING:
    from localrank_cli.points.inputs import Inputs

COMPLEX_DATA = (
    "Save their real and imaginary parts as real numbers (torch.view_as_real adds an axis for them)"
    " and join them in the model's forward pass (torch.view_as_complex)."
)
_PERMUTED = 2**20  # entries that are shuffled as a whole, 8 bytes each


@dataclass(frozen=True)
class Points:
    """The drawn points."""

    tensor: Tensor  # (points, ...), float64 or int64, CPU
    indices: tuple[int, ...]  # into the data's first axis, sorted
    n_data: int | None  # entries of the data's first axis; None for a distribution
    notes: tuple[str, ...] = ()
    everything: Data | None = None  # all of the data as stored, if requested
    scale: float | None = None  # of `everything`
    inputs: "Inputs | None" = None  # of which each row consists, where the network takes several
    spread: float | None = None  # standard deviation of independent entries, where it is known


def draw(data: Data, wanted: int | None, seed: int, scale: float | None, name: str) -> Points:
    """Return `wanted` points (None: the default number, or all if fewer) drawn without replacement.

    The data may have any real dtype and have the points on the first axis; indices are sorted. The
    points are float64, or int64 for integer data without a scale (`--data-scale`).

    Raises:
        DataError: If there are too few, or a value is not finite.
    """
    if data.ndim == 0 or data.shape[0] == 0 or data.numel() == 0:
        raise DataError(f"{name}: holds no points (shape {tuple(data.shape)}).", "Check --data.")
    if data.is_complex():
        raise DataError(f"{name}: complex data are not supported.", COMPLEX_DATA)
    check_dtype(data, name)
    _check_finite(data, name)
    total = data.shape[0]
    notes: list[str] = []
    count = DEFAULT_POINTS if wanted is None else wanted
    if total < count:
        if wanted is not None:
            raise DataError(
                f"{name}: {wanted} points were asked for, but there are {total}.",
                f"Ask for at most --points {total}.",
            )
        notes.append(f"{name} holds {total} points, fewer than {count}: all are used")
        count = total
    generator = torch.Generator("cpu").manual_seed(seed)
    indices = first_of_permutation(total, count, generator).sort().values
    chosen = data[indices]
    if scale is not None:
        chosen = chosen.to(torch.float64) * scale
        if not torch.isfinite(chosen).all():
            raise DataError(
                f"{name}: multiplied by {scale:g}, some values are not finite.",
                "Check --data-scale.",
            )
    elif chosen.is_floating_point():
        chosen = chosen.to(torch.float64)
    else:
        chosen = integers(chosen, name)
    return Points(chosen, tuple(indices.tolist()), total, tuple(notes))


def first_of_permutation(total: int, count: int, generator: torch.Generator) -> Tensor:
    """Return what `torch.randperm(total)[:count]` returns, without the memory for all of it.

    From 2^32 / 20 entries on, torch shuffles in another way, which needs all of them; the result is
    then another one.
    """
    if total <= _PERMUTED:
        return torch.randperm(total, generator=generator, device="cpu")[:count]
    moved: dict[int, int] = {}  # the places that no longer hold their own number
    for index in range(count):
        # One number of the generator for each place, as torch draws them.
        step = torch.randint(0, total - index, (1,), generator=generator, device="cpu")
        other = index + int(step)
        moved[index], moved[other] = moved.get(other, other), moved.get(index, index)
    return torch.tensor([moved[index] for index in range(count)], dtype=torch.int64)


def integers(values: Tensor, name: str) -> Tensor:
    """Return integers as int64.

    Raises:
        DataError: If one is too large.
    """
    found = values.to(torch.int64)
    if values.dtype == torch.uint64 and bool((found < 0).any()):
        raise DataError(f"{name} has integers above 2^63 - 1.", "Save it as floating point.")
    return found


def sample(
    kind: str, shape: tuple[int, ...], wanted: int | None, seed: int, scale: float | None = None
) -> Points:
    """Return points of a given shape from a known distribution, float64.

    `kind` is `normal`, N(0, 1) entries, or `uniform`, entries in [0, 1); `wanted` is None for the
    default number.

    Raises:
        DataError: If they do not fit into memory.
    """
    count = DEFAULT_POINTS if wanted is None else wanted
    generator = torch.Generator("cpu").manual_seed(seed)
    make = torch.randn if kind == "normal" else torch.rand
    try:
        tensor = make((count, *shape), generator=generator, dtype=torch.float64, device="cpu")
    except (RuntimeError, TypeError, MemoryError) as error:  # TypeError: beyond 64 bits
        raise DataError(
            f"--data {kind}:{'x'.join(map(str, shape))}: {count} such points do not fit into"
            " memory.",
            "Ask for fewer --points or a smaller shape.",
        ) from error
    factor = 1.0 if scale is None else scale
    return Points(
        tensor if scale is None else tensor * scale,
        tuple(range(count)),
        None,
        # The variance of a uniform entry in [0, 1) is 1/12.
        spread=abs(factor) * (1.0 if kind == "normal" else 12**-0.5),
    )


def from_numpy(array: "np.ndarray[Any, Any]", where: str) -> Tensor:
    """Return an array as a tensor; unsigned integers as int64, extended precision as float64.

    Raises:
        DataError: If it does not hold real numbers.
    """
    if array.dtype.kind not in "fiub":
        advice = COMPLEX_DATA if array.dtype.kind == "c" else "Real numbers are needed."
        raise DataError(f"{where} has dtype {array.dtype}.", advice)
    kind, size = array.dtype.kind, array.dtype.itemsize
    if array.size and kind == "u" and size == 8 and array.max() > np.iinfo(np.int64).max:
        raise DataError(f"{where} has integers above 2^63 - 1.", "Save it as floating point.")
    if (kind == "f" and size > 8) or (kind == "u" and size > 1):
        array = array.astype(np.float64 if kind == "f" else np.int64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def check_dtype(data: Data, name: str) -> None:
    """Refuse what only hardware or packing knows: numbers of 4 bits, untyped bits.

    Raises:
        DataError: If the data are such.
    """
    try:
        data[:1].to(torch.float64)
    except (RuntimeError, NotImplementedError) as error:
        raise DataError(
            f"{name} has dtype {data.dtype}.", "Save it as torch.float32, or as integers."
        ) from error


def _check_finite(data: Data, name: str) -> None:
    if not data.is_floating_point():
        return
    for start, chunk in chunks(data):
        rows = chunk.reshape(chunk.shape[0], -1)
        if rows.dtype.itemsize == 1:  # float8 has no operations
            rows = rows.to(torch.float32)
        # A finite sum has finite terms, and takes a twentieth of the time.
        if bool(torch.isfinite(rows.sum())):
            continue
        if bool(torch.isfinite(rows).all()):
            continue
        first = int((~torch.isfinite(rows)).any(dim=1).nonzero()[0])
        value = next(v for v in rows[first].tolist() if v - v != 0)
        raise DataError(
            f"{name}: point {start + first} has the value {value}.",
            "Remove or fix the points with NaN or infinite values.",
        )
