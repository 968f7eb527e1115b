"""Tolerances that mean nothing for a layer are refused."""

from collections.abc import Sequence

import torch

from localrank_cli.errors import SettingsError
from localrank_cli.spectrum.tolerance import Tolerance


def check_rounding(
    tolerances: Sequence[Tolerance], layer: str, shape: tuple[int, int], *, low: bool
) -> None:
    """Refuses a relative tolerance under the rounding of the method.

    Args:
        tolerances: What was asked for.
        layer: For the message.
        shape: n_out and n_in.
        low: Whether the Jacobian holds float32 values.

    Raises:
        SettingsError: If one is too small.
    """
    least = max(shape) * torch.finfo(torch.float32 if low else torch.float64).eps
    for tolerance in tolerances:
        if 0 < tolerance.relative(*shape) < least:
            raise SettingsError(
                f"--{tolerance.label.replace('=', ' ')} is under the rounding of the method"
                f" for layer {layer!r} ({shape[0]} x {shape[1]}): {least:.2g}.",
                "Below it every count is noise; --rtol eps is the least that is meaningful"
                " for weights stored in float32.",
            )
