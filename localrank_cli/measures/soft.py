"""Measures without a threshold: soft ranks, norms, Gaussian information."""

import torch
from torch import Tensor


def effective_rank(values: Tensor) -> Tensor:
    """exp(H(q)) with q_i = sigma_i / sum sigma (Roy & Vetterli 2007, Def. 1); 0 for J = 0.

    Args:
        values: Singular values, shape (points, r), float64, descending.

    Returns:
        Shape (points,).
    """
    scaled = _scaled(values)
    shares = scaled / scaled.sum(dim=1, keepdim=True).clamp(min=1)
    entropy = torch.special.entr(shares).sum(dim=1)
    return torch.where(values[:, 0] > 0, entropy.exp(), 0)


def stable_rank(values: Tensor) -> Tensor:
    """Sum of sigma_i^2 / sigma_1^2 (Rudelson & Vershynin 2007); 0 for J = 0.

    Args:
        values: Singular values, shape (points, r), float64, descending.

    Returns:
        Shape (points,).
    """
    return _scaled(values).square().sum(dim=1)


def participation_ratio(values: Tensor) -> Tensor:
    """(sum sigma_i^2)^2 / sum sigma_i^4 (Gao et al. 2017); 0 for J = 0.

    Args:
        values: Singular values, shape (points, r), float64, descending.

    Returns:
        Shape (points,).
    """
    squares = _scaled(values).square()
    return squares.sum(dim=1).square() / squares.square().sum(dim=1).clamp(min=1)


def spectral_norm(values: Tensor) -> Tensor:
    """sigma_1.

    Args:
        values: Singular values, shape (points, r), float64, descending.

    Returns:
        Shape (points,).
    """
    return values[:, 0]


def jacobian_norm(values: Tensor) -> Tensor:
    """The Frobenius norm (sum sigma_i^2)^(1/2).

    Args:
        values: Singular values, shape (points, r), float64, descending.

    Returns:
        Shape (points,).
    """
    return values[:, 0] * _scaled(values).square().sum(dim=1).sqrt()


def gaussian_information(values: Tensor, noise: float) -> Tensor:
    """1/2 sum log(1 + sigma_i^2 / s^2) in nats.

    It is I(x; J x + s e) for x ~ N(0, I) and e ~ N(0, I): the layer linearised at the point.
    It is no bound on the network's own I(X; T).

    Args:
        values: Singular values, shape (points, r), float64, descending.
        noise: s, positive.

    Returns:
        Shape (points,).
    """
    ratio = values / noise
    # log1p(r^2) = 2 log(r) + log1p(r^-2) keeps r = 1e200 finite.
    large = 2 * ratio.clamp(min=1).log() + ratio.clamp(min=1).pow(-2).log1p()
    small = ratio.clamp(max=1).square().log1p()
    return 0.5 * torch.where(ratio > 1, large, small).sum(dim=1)


def _scaled(values: Tensor) -> Tensor:
    """sigma_i / sigma_1, so that squares neither overflow nor vanish; 0 for J = 0."""
    first = values[:, :1]
    return torch.where(first > 0, values / torch.where(first > 0, first, 1), 0)
