"""Numbers of numpy as tensors."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from localrank_cli.errors import DataError

COMPLEX_DATA = (
    "Save their real and imaginary parts as real numbers (torch.view_as_real adds an axis for them)"
    " and join them in the model's forward pass (torch.view_as_complex)."
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
