"""The information bottleneck of jointly Gaussian variables, in closed form.

With canonical correlations rho_i between X and Y, the bottleneck min I(X;T) - beta I(T;Y) is
solved by noisy projections onto canonical directions (Chechik, Globerson, Tishby & Weiss, JMLR 6,
2005); direction i enters at the critical value beta_i = 1 / rho_i^2. Their formulas use the
eigenvalues lambda_i = 1 - rho_i^2 of Sigma_x|y Sigma_x^-1.

The variational bottleneck (Alemi et al. 2017) with Y whitened, a linear decoder of variance 1, the
prior N(0, I) and diagonal noise in T has the same critical values but different information.
Component by component, for t = a u + s e and the decoder w t of y = rho u + ..., the loss
(1 - 2 w rho a + w^2 (a^2 + s^2)) / 2 + (a^2 + s^2 - 1 - log s^2) / (2 beta) is stationary at
s^2 = beta_i / beta, a^2 = 1 - s^2, w = rho a. All information is in nats.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Information:
    """A point of the information plane, in nats."""

    xt: float  # I(X;T)
    ty: float  # I(T;Y)


def canonical_correlations(cov_x: Array, cov_xy: Array, cov_y: Array) -> Array:
    """Compute the canonical correlations: singular values of L_x^-1 Sigma_xy L_y^-T.

    Args:
        cov_x: Sigma_x = L_x L_x^T, shape (n, n), positive definite.
        cov_xy: Sigma_xy, shape (n, m).
        cov_y: Sigma_y = L_y L_y^T, shape (m, m), positive definite.

    Returns:
        rho, shape (min(n, m),), descending, in [0, 1].
    """
    left = np.linalg.solve(np.linalg.cholesky(cov_x), cov_xy)
    whitened = np.linalg.solve(np.linalg.cholesky(cov_y), left.T)
    return np.clip(np.linalg.svd(whitened, compute_uv=False), 0, 1)


def critical_betas(rho: Array) -> Array:
    """Return beta_i = 1 / rho_i^2, at which direction i enters; infinite if rho_i is 0."""
    rho = np.asarray(rho, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return 1 / rho**2


def active(rho: Array, beta: float) -> int:
    """Return #{i: beta > beta_i}: the rank of the optimal projection at beta."""
    return int((beta > critical_betas(rho)).sum())


def optimal_information(rho: Array, beta: float) -> Information:
    """Compute the information of the Gaussian bottleneck at beta.

    Args:
        rho: Canonical correlations, descending, below 1.
        beta: Weight of I(T;Y).

    Returns:
        I(X;T) = 1/2 sum log((beta - 1) rho_i^2 / (1 - rho_i^2)) over the active directions, and
        I(T;Y) = I(X;T) - 1/2 sum log(beta rho_i^2).
    """
    squares = np.asarray(rho, dtype=np.float64)[: active(rho, beta)] ** 2
    xt = 0.5 * float(np.log((beta - 1) * squares / (1 - squares)).sum())
    return Information(xt, xt - 0.5 * float(np.log(beta * squares).sum()))


def optimal_curve(rho: Array, xt: float) -> float:
    """Compute the largest possible I(T;Y) for a given I(X;T).

    Args:
        rho: Canonical correlations, descending, below 1.
        xt: I(X;T) in nats.

    Returns:
        I(T;Y) in nats: the information curve at I(X;T).

    Raises:
        ValueError: If `xt` is negative or not finite.
    """
    if not 0 <= xt < np.inf:
        raise ValueError(f"I(X;T) = {xt} is not finite and non-negative")
    squares = np.asarray(rho, dtype=np.float64) ** 2
    squares = squares[squares > 0]
    for count in range(squares.size, 0, -1):
        used = squares[:count]
        # (beta - 1)^count prod(rho^2 / (1 - rho^2)) = exp(2 I(X;T)), solved for beta.
        beta = 1 + np.exp((2 * xt - np.log(used / (1 - used)).sum()) / count)
        if beta >= 1 / used[-1]:
            return xt - 0.5 * float(np.log(beta * used).sum())
    return 0.0


def shared_information(rho: Array) -> float:
    """Compute the mutual information of jointly Gaussian variables.

    If only one of the two is Gaussian, this value of their second moments is a lower bound: given
    the other, the best linear prediction leaves at least as much uncertain.

    Args:
        rho: Their canonical correlations, below 1.

    Returns:
        -1/2 sum log(1 - rho_i^2), in nats.
    """
    return -0.5 * float(np.log1p(-(np.asarray(rho, dtype=np.float64) ** 2)).sum())


def channel_information(cov_x: Array, cov_xy: Array, slope: Array, noise: Array) -> Information:
    """Compute the information of a linear encoder t = B x + e of jointly Gaussian x and white y.

    Args:
        cov_x: Sigma_x, shape (n, n), positive definite.
        cov_xy: Sigma_xy, shape (n, m); Sigma_y is the identity.
        slope: B, shape (k, n).
        noise: Covariance of e, shape (k, k), positive definite.

    Returns:
        I(X;T) and I(T;Y).
    """
    cov_xt = cov_x @ slope.T
    cov_t = slope @ cov_xt + noise
    white = np.eye(cov_xy.shape[1])
    return Information(
        shared_information(canonical_correlations(cov_x, cov_xt, cov_t)),
        shared_information(canonical_correlations(cov_t, slope @ cov_xy, white)),
    )


def variational_singular_values(rho: Array, beta: float) -> Array:
    """Compute the singular values of J Sigma_x^(1/2) of the variational encoder's mean.

    Args:
        rho: Canonical correlations, descending.
        beta: Weight of the reconstruction relative to the KL divergence.

    Returns:
        sqrt(1 - beta_i / beta), 0 below the critical value.
    """
    return np.sqrt(np.clip(1 - critical_betas(rho) / beta, 0, None))


def variational_information(rho: Array, beta: float) -> Information:
    """Compute the information of the variational bottleneck at its optimum.

    Args:
        rho: Canonical correlations, descending, below 1.
        beta: Weight of the reconstruction relative to the KL divergence.

    Returns:
        I(X;T) = 1/2 sum log(beta / beta_i) and I(T;Y) = -1/2 sum log(1 - rho_i^2 + 1 / beta) over
        the active directions, in which T and Y have correlation rho_i a.
    """
    squares = np.asarray(rho, dtype=np.float64)[: active(rho, beta)] ** 2
    xt = 0.5 * float(np.log(beta * squares).sum())
    return Information(xt, -0.5 * float(np.log(1 - squares + 1 / beta).sum()))
