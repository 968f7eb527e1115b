"""Closed forms of the bottleneck against searches that know nothing of them."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localrank_cli.information.bottleneck import (
    active,
    canonical_correlations,
    channel_information,
    critical_betas,
    optimal_curve,
    optimal_information,
    variational_information,
    variational_singular_values,
)

Array = npt.NDArray[np.float64]
BETAS = np.array([1.25, 2.0, 4.0, 8.0, 16.0])
RHO = BETAS**-0.5

correlations = st.lists(st.floats(0.05, 0.99), min_size=1, max_size=5).map(
    lambda values: np.array(sorted(values, reverse=True))
)


def gaussian_information(projection: Array, rho: Array) -> tuple[float, float]:
    """I(X;T) and I(T;Y) of t = A u + e with logarithms of determinants alone."""
    n = rho.size
    cov_t = projection @ projection.T + np.eye(len(projection))
    # Of u given y: the identity less the part that y explains.
    given_y = projection @ np.diag(1 - rho**2) @ projection.T + np.eye(len(projection))
    assert projection.shape[1] == n
    xt = 0.5 * np.linalg.slogdet(cov_t)[1]
    return xt, xt - 0.5 * np.linalg.slogdet(given_y)[1]


@pytest.mark.parametrize("beta", [1.1, 1.5, 3.0, 6.0, 12.0, 24.0])
def test_optimum_against_a_scan_of_gains(beta: float) -> None:
    # Component by component: minimize I(X;T) - beta I(T;Y) over the gain.
    gains = np.concatenate([[0.0], np.logspace(-4, 5, 400_001)])
    xt = ty = 0.0
    used = 0
    for rho in RHO:
        kept, told = 0.5 * np.log1p(gains), -0.5 * np.log1p(gains * (1 - rho**2))
        best = int(np.argmin(kept - beta * (kept + told)))
        xt, ty = xt + kept[best], ty + kept[best] + told[best]
        used += best > 0
    found = optimal_information(RHO, beta)
    assert active(RHO, beta) == used
    assert found.xt == pytest.approx(xt, abs=1e-4)
    assert found.ty == pytest.approx(ty, abs=1e-4)


@given(correlations, st.floats(1.01, 50), st.integers(0, 2**32 - 1))
def test_no_projection_is_better(rho: Array, beta: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    shape = (generator.integers(1, rho.size + 2), rho.size)
    projection = generator.normal(size=shape) * 10 ** generator.uniform(-2, 2)
    xt, ty = gaussian_information(projection, rho)
    best = optimal_information(rho, beta)
    assert xt - beta * ty >= best.xt - beta * best.ty - 1e-9 * max(1, beta * ty)
    assert ty <= optimal_curve(rho, xt) + 1e-9


@given(correlations, st.floats(1.01, 100))
def test_the_curve_goes_through_every_optimum_with_slope_one_over_beta(
    rho: Array, beta: float
) -> None:
    found = optimal_information(rho, beta)
    assert optimal_curve(rho, found.xt) == pytest.approx(found.ty, abs=1e-9)
    if found.xt > 1e-3:
        step = 1e-5
        slope = (optimal_curve(rho, found.xt + step) - optimal_curve(rho, found.xt - step)) / (
            2 * step
        )
        assert slope == pytest.approx(1 / beta, rel=1e-3)


def test_the_curve_starts_at_zero_and_ends_at_all_there_is() -> None:
    assert optimal_curve(RHO, 0.0) == pytest.approx(0.0, abs=1e-12)
    everything = -0.5 * np.log(1 - RHO**2).sum()
    assert optimal_curve(RHO, 60.0) == pytest.approx(everything, rel=1e-9)
    for nothing in (-0.1, np.inf, np.nan):
        with pytest.raises(ValueError, match="is not finite and non-negative"):
            optimal_curve(RHO, nothing)


def test_rank_steps_at_the_critical_values() -> None:
    np.testing.assert_allclose(critical_betas(RHO), BETAS, rtol=1e-14)
    assert [active(RHO, beta) for beta in (1, 1.3, 2.1, 4.1, 8.1, 16.1, 1e9)] == [
        0, 1, 2, 3, 4, 5, 5,
    ]  # fmt: skip
    assert np.isinf(critical_betas(np.array([0.5, 0.0]))[1])


@given(st.integers(0, 2**32 - 1))
def test_canonical_correlations_survive_any_change_of_basis(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rho = np.sort(generator.uniform(0, 1, 3))[::-1]
    left = np.linalg.qr(generator.normal(size=(4, 4)))[0] @ np.diag(generator.uniform(0.3, 3, 4))
    right = np.linalg.qr(generator.normal(size=(3, 3)))[0] @ np.diag(generator.uniform(0.3, 3, 3))
    core = np.zeros((4, 3))
    np.fill_diagonal(core, rho)
    found = canonical_correlations(left @ left.T, left @ core @ right.T, right @ right.T)
    np.testing.assert_allclose(found, rho, atol=1e-9)


def variational_loss(a: float, s2: float, w: float, rho: float, beta: float) -> float:
    reconstruction = 0.5 * (1 - 2 * w * rho * a + w**2 * (a**2 + s2))
    return reconstruction + 0.5 * (a**2 + s2 - 1 - float(np.log(s2))) / beta


@pytest.mark.parametrize("rho", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("beta", [1.2, 3.0, 20.0])
def test_the_variational_optimum_is_one(rho: float, beta: float) -> None:
    (a,) = variational_singular_values(np.array([rho]), beta)
    s2 = 1 - a**2
    least = variational_loss(a, s2, rho * a, rho, beta)
    generator = np.random.default_rng(0)
    for _ in range(3_000):
        other = variational_loss(
            generator.uniform(-2, 2),
            generator.uniform(0.01, 3),
            generator.uniform(-2, 2),
            rho,
            beta,
        )
        assert other >= least - 1e-12


@given(correlations, st.floats(1.01, 50))
def test_variational_information_is_that_of_its_channel(rho: Array, beta: float) -> None:
    a = variational_singular_values(rho, beta)
    s = np.sqrt(1 - a**2)
    used = a > 0
    xt, ty = gaussian_information(np.diag(a[used] / s[used]), rho[used])
    found = variational_information(rho, beta)
    assert found.xt == pytest.approx(xt, abs=1e-9)
    assert found.ty == pytest.approx(ty, abs=1e-9)
    # Under the curve, and on it only while one direction is in use.
    assert found.ty <= optimal_curve(rho, found.xt) + 1e-9


@given(correlations, st.integers(0, 2**32 - 1))
def test_a_linear_encoder_by_determinants(rho: Array, seed: int) -> None:
    generator = np.random.default_rng(seed)
    n = rho.size
    mixing = np.linalg.qr(generator.normal(size=(n, n)))[0] * generator.uniform(0.3, 3, n)
    rotation = np.linalg.qr(generator.normal(size=(n, n)))[0]
    root = generator.normal(size=(3, 3)) + 3 * np.eye(3)
    slope = generator.normal(size=(3, n))
    # x = A u, y = Q v, u and v with correlations rho.
    cov_x, cov_xy = mixing @ mixing.T, mixing @ np.diag(rho) @ rotation.T
    found = channel_information(cov_x, cov_xy, slope, root @ root.T)
    whitened: Array = np.linalg.solve(root, slope @ mixing).astype(np.float64)
    xt, ty = gaussian_information(whitened, rho)
    assert found.xt == pytest.approx(xt, rel=1e-7, abs=1e-9)
    assert found.ty == pytest.approx(ty, rel=1e-7, abs=1e-9)


def test_figures_of_one_example() -> None:
    found, best = variational_information(RHO, 6.0), optimal_information(RHO, 6.0)
    assert (round(found.xt, 2), round(best.xt, 2)) == (1.54, 2.56)
    below = optimal_curve(RHO, found.xt) - found.ty
    assert 0.001 < below < 0.046


@given(st.integers(0, 2**32 - 1), st.sampled_from([1.05, 1.5, 3.0, 20.0, 200.0]))
def test_the_optimum_as_the_paper_writes_it(seed: int, beta: float) -> None:
    # Chechik et al. 2005, Theorem 3.1: left eigenvectors v of Sigma_x|y Sigma_x^-1 with eigenvalues
    # lambda, each scaled by alpha^2 = (beta (1 - lambda) - 1) / (lambda v^T Sigma_x v).
    generator = np.random.default_rng(seed)
    root = generator.normal(size=(3, 3)) + 2 * np.eye(3)
    cov_x, slope = root @ root.T, generator.normal(size=(2, 3))
    cov_xy, cov_y = cov_x @ slope.T, slope @ cov_x @ slope.T + np.diag([0.7, 1.3])
    given_y = cov_x - cov_xy @ np.linalg.solve(cov_y, cov_xy.T)
    eigenvalues, vectors = np.linalg.eig((given_y @ np.linalg.inv(cov_x)).T)
    rows = []
    for eigenvalue, vector in zip(eigenvalues.real, vectors.real.T, strict=True):
        if eigenvalue < 1 - 1e-9 and beta > 1 / (1 - eigenvalue):
            size = vector @ cov_x @ vector
            square = (beta * (1 - eigenvalue) - 1) / (eigenvalue * size)
            rows.append(np.sqrt(square) * vector)
    projection = np.array(rows).reshape(-1, 3)
    white = np.eye(len(rows))
    kept, open_ = (
        0.5 * np.linalg.slogdet(projection @ cov @ projection.T + white)[1]
        for cov in (cov_x, given_y)
    )
    rho = canonical_correlations(cov_x, cov_xy, cov_y)
    assert active(rho, beta) == len(rows)
    found = optimal_information(rho, beta)
    assert found.xt == pytest.approx(kept, rel=1e-6, abs=1e-7)
    assert found.ty == pytest.approx(kept - open_, rel=1e-6, abs=1e-7)
