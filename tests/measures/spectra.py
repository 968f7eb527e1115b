"""Spectra made by hand."""

import torch

from localrank_cli.spectrum.layer import LayerSpectrum
from localrank_cli.spectrum.svd import rounding
from tests.naive import Array


def spectrum_of(
    values: Array | list[list[float]], n_out: int | None = None, n_in: int | None = None
) -> LayerSpectrum:
    """A layer's spectrum with these singular values and the rounding of a float64 SVD.

    Args:
        values: Shape (points, r), descending; NaN: a failed point.
        n_out: Rows; r by default.
        n_in: Columns; r by default.

    Returns:
        The spectrum.
    """
    tensor = torch.as_tensor(values, dtype=torch.float64)
    n_out, n_in = n_out or tensor.shape[1], n_in or tensor.shape[1]
    off = rounding(tensor[:, 0], max(n_out, n_in), torch.float64)
    return LayerSpectrum("fc", "Linear", n_out, n_in, tensor, off, "exact")
