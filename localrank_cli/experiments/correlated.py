"""Jointly Gaussian X and Y in R^10 with known canonical correlations, X not white, Y white."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.float64]

N = 10
CRITICAL = (1.25, 2.0, 4.0, 8.0, 16.0)  # beta_i of the bottleneck between them
RHO = np.array(CRITICAL) ** -0.5


@dataclass(frozen=True)
class Pairs:
    """Draws (x, y): x = A u with u ~ N(0, I), y a rotation of variables correlated with u."""

    mixing: Tensor  # A, (10, 10): rotations and scales from 1/2 to 2
    rotation: Tensor  # (10, 10)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws fresh pairs.

        Args:
            count: How many.
            generator: Of the draw.

        Returns:
            x and y, each (count, 10), y white.
        """
        u, v = (torch.randn(count, N, generator=generator) for _ in range(2))
        rho = _all_rho().float()
        y = rho * u + (1 - rho.square()).sqrt() * v
        return u @ self.mixing.mT, y @ self.rotation.mT

    def moments(self) -> tuple[Array, Array]:
        """Computes Sigma_x and Sigma_xy.

        Returns:
            Each (10, 10), float64; Sigma_y is the identity.
        """
        mixing = self.mixing.double()
        cov_xy = mixing * _all_rho() @ self.rotation.double().mT
        return (mixing @ mixing.mT).numpy(), cov_xy.numpy()


def _all_rho() -> Tensor:
    return torch.nn.functional.pad(torch.from_numpy(RHO), (0, N - len(RHO)))


def pairs(generator: torch.Generator) -> Pairs:
    """Makes a joint distribution.

    Args:
        generator: Of its directions.

    Returns:
        The distribution.
    """

    def rotation() -> Tensor:
        found: Tensor = torch.linalg.qr(torch.randn(N, N, generator=generator)).Q
        return found

    return Pairs(rotation() * torch.linspace(0.5, 2, N) @ rotation(), rotation())
