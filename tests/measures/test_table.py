"""Each measure against numpy, closed forms and extreme scales, and the bound on its error."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from localrank_cli.measures import table
from localrank_cli.measures.table import AVERAGED, MEASURES, demand_of
from localrank_cli.spectrum.certificate import Doubt
from localrank_cli.spectrum.tolerance import Tolerance
from tests.naive import Array


def entropy_rank(sigma: Array) -> float:
    q = sigma[sigma > 0] / sigma.sum()
    return float(np.exp(-(q * np.log(q)).sum()))


FORMULAS: dict[str, Callable[[Array], float]] = {
    "effective_rank": entropy_rank,
    "stable_rank": lambda s: float((s**2).sum() / s.max() ** 2),
    "participation_ratio": lambda s: float((s**2).sum() ** 2 / (s**4).sum()),
    "spectral_norm": lambda s: float(s.max()),
    "jacobian_norm": lambda s: float(np.sqrt((s**2).sum())),
    "gaussian_information": lambda s: float(0.5 * np.log1p(s**2).sum()),
}
ALL = pytest.mark.parametrize("name", FORMULAS)
SCALE_FREE = ("effective_rank", "stable_rank", "participation_ratio")

# Sums of at most 20 terms in another order: 20 roundings of 2^-53, each twice through exp or log.
CLOSE = 1e-13

spectra = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=20).map(
    lambda values: np.array(sorted(values, reverse=True))
)


def computed(name: str, values: Tensor, noise: float = 1.0) -> Tensor:
    compute = MEASURES[name].compute
    assert compute is not None
    return compute(values, noise)


def apply(name: str, sigma: Array, noise: float = 1.0) -> float:
    return float(computed(name, torch.from_numpy(sigma[None]), noise)[0])


@ALL
@given(sigma=spectra)
def test_formula(name: str, sigma: Array) -> None:
    assert apply(name, sigma) == pytest.approx(FORMULAS[name](sigma), rel=CLOSE, abs=1e-15)


@ALL
def test_formula_on_a_batch_with_zeros(name: str) -> None:
    sigma = np.array([[3.0, 1.0, 0.0], [0.5, 0.0, 0.0], [1e-3, 1e-4, 1e-5]])
    found = computed(name, torch.from_numpy(sigma))
    assert found.shape == (3,)
    assert found.dtype == torch.float64
    expected = [FORMULAS[name](row) for row in sigma]
    np.testing.assert_allclose(found.numpy(), expected, rtol=CLOSE)


@ALL
@pytest.mark.parametrize("r", [1, 4])
def test_zero_jacobian_is_zero(name: str, r: int) -> None:
    assert computed(name, torch.zeros(3, r, dtype=torch.float64)).tolist() == [0, 0, 0]


@ALL
def test_no_points(name: str) -> None:
    assert computed(name, torch.zeros(0, 4, dtype=torch.float64)).shape == (0,)


@pytest.mark.parametrize("name", SCALE_FREE)
@pytest.mark.parametrize("n", [1, 2, 7, 100])
@pytest.mark.parametrize("scale", [1.0, 1e-300, 1e-200, 1e200, 1e300])
def test_n_equal_values_are_rank_n(name: str, n: int, scale: float) -> None:
    sigma = np.full(n, scale)
    assert apply(name, sigma) == pytest.approx(n, rel=CLOSE)
    assert apply(name, np.append(sigma, np.zeros(3))) == pytest.approx(n, rel=CLOSE)


@pytest.mark.parametrize("name", SCALE_FREE)
@given(sigma=spectra, scale=st.sampled_from([1e-250, 1e-200, 1e-9, 1e9, 1e200, 1e250]))
def test_rank_is_free_of_scale(name: str, sigma: Array, scale: float) -> None:
    assert apply(name, sigma * scale) == pytest.approx(apply(name, sigma), rel=CLOSE)


@given(sigma=spectra, scale=st.sampled_from([1e-200, 1e200]))
def test_norms_keep_extreme_scales(sigma: Array, scale: float) -> None:
    for name in ("spectral_norm", "jacobian_norm"):
        expected = apply(name, sigma) * scale
        assert apply(name, sigma * scale) == pytest.approx(expected, rel=CLOSE, abs=0)


@given(sigma=spectra)
def test_ranks_are_ordered(sigma: Array) -> None:
    # With p_i = sigma_i^2 / sum: stable rank = 1/max p <= participation ratio = 1/sum p^2 <= n, and
    # the entropy of sigma is no less than that of sigma^2, whose exponential is at least 1/sum p^2.
    stable, ratio = apply("stable_rank", sigma), apply("participation_ratio", sigma)
    effective = apply("effective_rank", sigma)
    room = 1 + CLOSE
    assert stable * room >= 1
    assert stable <= ratio * room
    assert ratio <= effective * room
    assert effective <= len(sigma) * room


def test_two_values_by_hand() -> None:
    sigma = np.array([3.0, 1.0])  # q = 3/4, 1/4
    assert apply("effective_rank", sigma) == pytest.approx(4 / 27**0.25, rel=CLOSE)
    assert apply("stable_rank", sigma) == pytest.approx(10 / 9, rel=CLOSE)
    assert apply("participation_ratio", sigma) == pytest.approx(100 / 82, rel=CLOSE)
    assert apply("jacobian_norm", sigma) == pytest.approx(math.sqrt(10), rel=CLOSE)
    assert apply("gaussian_information", sigma) == pytest.approx(
        0.5 * (math.log(10) + math.log(2)), rel=CLOSE
    )


@given(seed=st.integers(0, 1000), n_out=st.integers(1, 6), n_in=st.integers(1, 6))
def test_information_is_that_of_a_gaussian_channel(seed: int, n_out: int, n_in: int) -> None:
    # I(x; Jx + s e) = 1/2 log det(I + J J' / s^2): another way than the singular values.
    generator = np.random.default_rng(seed)
    jacobian, noise = generator.standard_normal((n_out, n_in)), generator.uniform(0.1, 3)
    sigma = torch.linalg.svdvals(torch.from_numpy(jacobian))[None]
    found = float(computed("gaussian_information", sigma, noise)[0])
    _, logdet = np.linalg.slogdet(np.eye(n_out) + jacobian @ jacobian.T / noise**2)
    # The determinant's condition is under 1 + (6 / 0.1)^2.
    assert found == pytest.approx(logdet / 2, rel=1e-11, abs=1e-12)


@given(sigma=spectra, noise=st.floats(1e-3, 1e3))
def test_information_knows_only_the_ratio_to_the_noise(sigma: Array, noise: float) -> None:
    one = computed("gaussian_information", torch.from_numpy(sigma[None]), noise)
    two = computed("gaussian_information", torch.from_numpy(sigma[None] / noise), 1.0)
    assert float(one[0]) == float(two[0])


@pytest.mark.parametrize(("sigma", "expected"), [
    (1e-200, 0.0),  # 1e-400 is under the smallest double
    (1e-150, 0.5e-300),
    (1e-9, 0.5e-18),  # log(1 + x) would give 0
    (1e200, 200 * math.log(10)),  # its square would be infinite
    (1e8, 8 * math.log(10) + 0.5e-16),
])  # fmt: skip
def test_information_at_extreme_scales(sigma: float, expected: float) -> None:
    assert apply("gaussian_information", np.array([sigma])) == pytest.approx(
        expected, rel=CLOSE, abs=0
    )


def test_every_averaged_measure_has_a_truth_here() -> None:
    assert set(FORMULAS) == set(AVERAGED)


SPECTRA: dict[str, Array] = {
    "flat": np.ones(12),
    "geometric": 10.0 ** -np.arange(0, 12, dtype=float),
    "one and dust": np.array([1.0] + [1e-7] * 11),
    "deficient": np.array([3.0, 2.0, 1.0] + [0.0] * 9),
    "one": np.array([5.0]),
    "large": 1e70 * np.linspace(1, 0.1, 7),
    "small": 1e-60 * np.linspace(1, 0.1, 7),
}


@ALL
@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("error", [1e-15, 1e-12, 1e-9])  # of lambda_1
def test_the_bound_exceeds_what_any_allowed_error_does(name: str, kind: str, error: float) -> None:
    powers = SPECTRA[kind] ** 2
    each, together = error * powers[0], 2 * error * powers[0]
    bound = MEASURES[name].bound
    assert bound is not None
    generator = np.random.default_rng(0)
    worst = 0.0
    for trial in range(200):
        # On the largest few or on all values, of one sign or of random ones.
        reach = int(generator.integers(1, len(powers) + 1))
        slips = np.zeros(len(powers))
        where = generator.permutation(len(powers))[:reach] if trial % 2 else np.arange(reach)
        signs = generator.choice([-1, 1], reach) if trial % 3 else np.full(reach, 1 - trial % 2 * 2)
        slips[where] = signs * min(each, together / math.sqrt(reach))
        true = np.clip(powers + slips, 0, None)  # squares within the errors of the computed ones
        if true.max() == 0:
            continue
        was, now = (FORMULAS[name](np.sqrt(np.sort(p)[::-1])) for p in (powers, true))
        worst = max(worst, abs(now - was) / abs(was) if was else math.inf if now else 0.0)
    doubt = Doubt(
        torch.from_numpy(powers[None]),
        torch.ones(1, len(powers), dtype=torch.bool),
        torch.tensor([each], dtype=torch.float64),
        torch.tensor([together], dtype=torch.float64),
    )
    # The bounds are of first order (the next is `error` times smaller, a value that is lost
    # excepted, whose bound is whole), and both values are rounded themselves.
    assert worst <= 1.01 * float(bound(doubt, 1.0)[0]) + 1e-14


@ALL
@pytest.mark.parametrize("slack", [1e-14, 1e-9, 1e-7])  # of sigma_1
@pytest.mark.parametrize("noise", [1.0, 1e-8])
def test_the_bound_exceeds_what_values_computed_apart_may_do(
    name: str, slack: float, noise: float
) -> None:
    large, low = np.linspace(3, 0.1, 8), np.array([1e-4, 1e-6, 3e-8, 1e-12, 0.0])
    values, off = np.concatenate([large, low]), slack * 3
    own = torch.arange(13).unsqueeze(0) < 8
    none = torch.full((1,), 1e-30, dtype=torch.float64)
    slacks = torch.where(own, 0, torch.tensor(off, dtype=torch.float64))
    doubt = Doubt(torch.from_numpy(values[None] ** 2), own, none, none, slacks)
    bound = MEASURES[name].bound
    assert bound is not None
    was, generator, worst = apply(name, values, noise), np.random.default_rng(0), 0.0
    for trial in range(100):
        signs = generator.choice([-1, 1], 5) if trial > 1 else np.full(5, 1 - 2 * trial)
        now = apply(name, np.concatenate([large, np.clip(low + signs * off, 0, None)]), noise)
        worst = max(worst, abs(now - was) / was)
    # Of first order, as above: steps of 3e-7 leave 1e-6 of it out.
    assert worst <= 1.01 * float(bound(doubt, noise)[0]) + 1e-14


def test_a_measure_without_a_bound_takes_the_svd(monkeypatch: pytest.MonkeyPatch) -> None:
    tolerances = (Tolerance(atol=0.01),)
    assert demand_of(tolerances).tolerances == tolerances
    unproved = replace(MEASURES["stable_rank"], bound=None)
    monkeypatch.setattr(table, "MEASURES", {**MEASURES, "stable_rank": unproved})
    assert demand_of(tolerances).tolerances is None


def test_the_page_shows_formula_and_source_of_every_measure() -> None:
    page = (Path(__file__).parents[2] / "docs/measures.md").read_text(encoding="utf-8")
    lines = page.splitlines()
    for name, measure in MEASURES.items():
        row = f"| `{name}` | {measure.formula} | {measure.source}".rstrip() + " |"
        assert row in lines
