"""Tolerances: the value above which a singular value counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from localrank_cli.errors import SettingsError

EPS_FLOAT32 = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Tolerance:
    """An absolute or a relative tolerance; tol = max(atol, rtol * sigma_1)."""

    atol: float = 0.0
    rtol: float | None = 0.0  # None: "eps", max(n_out, n_in) * eps(float32)

    # Where values are counted, in units of tol: at tol, and on both sides of it for `near_tol`.
    COUNTED_AT: ClassVar[tuple[float, float, float]] = (1.0, 0.99, 1.01)

    @property
    def label(self) -> str:
        """The label in the table: `atol=0.01`, `rtol=0.001`, `rtol=eps`."""
        if self.rtol is None:
            return "rtol=eps"
        if self.rtol:
            return f"rtol={self.rtol:.9g}"
        return f"atol={self.atol:.9g}"

    @classmethod
    def of_label(cls, label: str) -> "Tolerance":
        """Return the tolerance of a label.

        Raises:
            ValueError: If it is not such a label.
        """
        kind, _, number = label.partition("=")
        if kind == "rtol":
            return cls(rtol=None if number == "eps" else float(number))
        if kind == "atol":
            return cls(atol=float(number))
        raise ValueError(label)

    def relative(self, n_out: int, n_in: int) -> float:
        """Return rtol, the factor of sigma_1, as a number.

        `eps` is the rule of numpy and torch as applied to a float32 matrix.
        """
        return max(n_out, n_in) * EPS_FLOAT32 if self.rtol is None else self.rtol

    def threshold(self, spectral_norm: Tensor, n_out: int, n_in: int) -> Tensor:
        """Return tol at each point, of sigma_1 with shape (points,), float64."""
        return thresholds([self], spectral_norm, (n_out, n_in)).squeeze(1)


def thresholds(
    tolerances: Sequence[Tolerance], spectral_norm: Tensor, shape: tuple[int, int]
) -> Tensor:
    """Return tol = max(atol, rtol * sigma_1), (points, tolerances), float64.

    sigma_1 has shape (points,), float64; `shape` is n_out and n_in of the Jacobian.
    """
    pairs = [[one.relative(*shape), one.atol] for one in tolerances]
    relative, absolute = torch.tensor(pairs, dtype=torch.float64, device=spectral_norm.device).T
    return torch.maximum(relative * spectral_norm.unsqueeze(1), absolute)


def check_rounding(
    tolerances: Sequence[Tolerance], layer: str, shape: tuple[int, int], *, low: bool
) -> None:
    """Refuse a relative tolerance under the rounding of the method.

    `shape` is n_out and n_in of the Jacobian; `low` says that it holds float32 values.

    Raises:
        SettingsError: If one is too small.
    """
    least = max(shape) * torch.finfo(torch.float32 if low else torch.float64).eps
    for tolerance in tolerances:
        if 0 < tolerance.relative(*shape) < least:
            raise SettingsError(
                f"--{tolerance.label.replace('=', ' ')} is below the rounding error of the method"
                f" for layer {layer!r} ({shape[0]} x {shape[1]}): {least:.2g}.",
                "Below it every count is noise; --rtol eps is the smallest that is meaningful"
                " for weights stored in float32.",
            )
