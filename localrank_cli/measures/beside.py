"""Measures of a layer's outputs over samples and of its weight, beside those of its Jacobians."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from localrank_cli.layers.kinds import is_transposed_linear
from localrank_cli.measures.table import (
    effective_rank,
    participation_ratio,
    spectral_norm,
    stable_rank,
)

# Entries of a sample above which the matrix of products of samples replaces that of the samples.
MOST_ENTRIES = 16_384
# A value above this share of what the samples allow is limited by them rather than by the network.
CEILING_SHARE = 0.99

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_MATRIX = 2  # axes


@dataclass(frozen=True)
class OutputRanks:
    """Soft ranks of a layer's outputs.

    Args:
        effective_rank: Of the singular values of the centred matrix of samples.
        participation_ratio: Of their squares, the eigenvalues of the covariance up to a factor.
        n_samples: N.
        ceiling: min(N, d), for samples of d entries; centring takes one more of N.
    """

    effective_rank: float
    participation_ratio: float
    n_samples: int
    ceiling: int

    @property
    def at_ceiling(self) -> tuple[str, ...]:
        """The measures that the samples limit, or that have no room to grow."""
        most = CEILING_SHARE * min(self.ceiling, self.n_samples - 1)
        names = ("effective_rank", "participation_ratio")
        return tuple(name for name in names if getattr(self, name) >= most > 0)


@dataclass(frozen=True)
class WeightRanks:
    """Soft ranks and norm of a weight as a matrix, whose smaller side is `ceiling`."""

    effective_rank: float
    stable_rank: float
    spectral_norm: float
    ceiling: int


def output_ranks(samples: Tensor, epsilon: float) -> OutputRanks:
    """Measure finite samples of a layer's output, (N, d) float64, at least 2.

    `epsilon` is the relative rounding of the samples.
    """
    values = _centred_values(samples, epsilon)[None]
    return OutputRanks(
        float(effective_rank(values, 1.0)),
        float(participation_ratio(values, 1.0)),
        samples.shape[0],
        min(samples.shape),
    )


def sample_bytes(n_samples: int, n_entries: int) -> int:
    """Return the bytes that the samples take while they are collected and measured."""
    if n_entries > MOST_ENTRIES:
        # Chunks, and all of them in one; then the products and what their eigenvalues take.
        return 8 * (3 * n_samples * n_entries + 3 * min(n_samples, n_entries) ** 2)
    return 8 * (4 * n_samples * n_entries + 2 * min(n_samples, n_entries) ** 2)


def _centred_values(samples: Tensor, epsilon: float) -> Tensor:
    """Return the singular values of the centred samples over their largest entry.

    Values under the rounding of the method or of the samples are 0.
    """
    largest = samples.abs().max()
    if largest == 0:
        return torch.zeros(1, dtype=samples.dtype)
    scaled = samples / largest  # no square overflows or vanishes
    length = torch.linalg.vector_norm(scaled)
    scaled -= scaled.mean(dim=0, keepdim=True)
    if samples.shape[1] > MOST_ENTRIES:
        wide = samples.shape[0] <= samples.shape[1]
        products = scaled @ scaled.mT if wide else scaled.mT @ scaled
        powers = torch.linalg.eigvalsh(products).flip(0)
        floor = len(powers) * torch.finfo(powers.dtype).eps * powers[0]
        values = torch.where(powers > floor, powers, 0.0).sqrt()
    else:
        values = torch.linalg.svdvals(scaled)
    # The rounding of the SVD is relative to the largest value. That of samples and their mean is
    # relative to each entry, so that of the whole matrix is relative to the length of all entries.
    rounding = max(samples.shape) * torch.finfo(values.dtype).eps * values[0]
    return torch.where(values > torch.maximum(rounding, 4 * epsilon * length), values, 0.0)


def weight_ranks(matrix: Tensor) -> WeightRanks:
    """Measure a finite weight as a matrix."""
    largest = matrix.abs().max().to(torch.float64)
    exact = matrix.to(torch.complex128 if matrix.is_complex() else torch.float64)
    values = torch.linalg.svdvals(exact / largest if largest > 0 else exact).cpu()[None]
    floor = max(matrix.shape) * torch.finfo(torch.float64).eps * values[:, :1]
    values = torch.where(values > floor, values, 0.0)
    return WeightRanks(
        float(effective_rank(values, 1.0)),
        float(stable_rank(values, 1.0)),
        float(spectral_norm(values, 1.0)) * float(largest),
        min(matrix.shape),
    )


def weight_bytes(matrix: Tensor) -> int:
    """Return the bytes that the singular values of a weight take."""
    return 8 * (1 + matrix.is_complex()) * (3 * matrix.numel() + 2 * min(matrix.shape) ** 2)


def weight_matrix(module: nn.Module) -> Tensor | str:
    """Return a layer's weight as a matrix, or why it has none.

    Convolutions have one row for each output channel, and columns for the input channels and the
    places of the kernel; of bilinear layers the columns are pairs of inputs.
    """
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return "no tensor named weight"
    weight = weight.detach()
    if weight.layout != torch.strided or not (weight.is_floating_point() or weight.is_complex()):
        return "a weight that is not dense real numbers"
    if weight.dim() < _MATRIX or weight.numel() == 0:
        return f"a weight of shape {' x '.join(map(str, weight.shape))}, no matrix"
    if is_transposed_linear(module):
        return weight.mT
    if isinstance(module, _TRANSPOSED):
        # (in, out / groups, k, k) with the input channels of one group after another.
        grouped = weight.reshape(module.groups, -1, *weight.shape[1:]).transpose(1, 2)
        return grouped.flatten(0, 1).flatten(1)
    return weight.flatten(1)
