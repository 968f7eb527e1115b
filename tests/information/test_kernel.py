"""Pairwise-distance bounds against loops written from the paper, and against Gaussian channels."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from localrank_cli.information import kernel
from localrank_cli.information.kernel import (
    ceiling,
    information_bounds,
    label_bounds,
    total_variance,
)

Array = npt.NDArray[np.float64]


def naive_entropy(outputs: Array, variance: float, width: float) -> float:
    """Kolchinsky & Tracey 2017, eq. 10, one distance at a time; H(e) included."""
    count, n = outputs.shape
    total: float = 0.0
    for first in outputs.tolist():
        inner: float = 0.0
        for second in outputs.tolist():
            inner += math.exp(-sum((a - b) ** 2 for a, b in zip(first, second, strict=True))
                              / (width * variance)) / count  # fmt: skip
        total -= math.log(inner) / count
    return float(total + 0.5 * n * math.log(2 * math.pi * math.e * variance))


def random(seed: int, count: int, n: int, scale: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, n, generator=generator, dtype=torch.float64)


@given(st.integers(0, 99), st.integers(1, 12), st.integers(1, 4), st.floats(0.1, 3.0))
def test_against_loops(seed: int, count: int, n: int, variance: float) -> None:
    outputs = random(seed, count, n, 1.5)
    noise = 0.5 * n * math.log(2 * math.pi * math.e * variance)
    found = information_bounds(outputs, variance)
    low, high = (naive_entropy(outputs.numpy(), variance, width) - noise for width in (8, 2))
    assert found.lower == pytest.approx(low, abs=1e-12)
    assert found.upper == pytest.approx(high, abs=1e-12)


@given(st.integers(0, 99), st.integers(2, 12), st.floats(0.1, 3.0))
def test_labels_against_loops(seed: int, count: int, variance: float) -> None:
    outputs = random(seed, count, 3, 1.5)
    labels = torch.arange(count) % 3
    low_whole, high_whole = (naive_entropy(outputs.numpy(), variance, w) for w in (8, 2))
    low_given = high_given = 0.0
    for label in range(3):
        members = outputs[labels == label].numpy()
        if len(members):
            low_given += len(members) / count * naive_entropy(members, variance, 8)
            high_given += len(members) / count * naive_entropy(members, variance, 2)
    found = label_bounds(outputs, labels, variance)
    assert found.lower == pytest.approx(low_whole - high_given, abs=1e-11)
    assert found.upper == pytest.approx(high_whole - low_given, abs=1e-11)


@pytest.mark.parametrize("gains", [(1.0,), (2.0, 0.5), (0.3, 0.3, 0.3)])
def test_a_gaussian_channel_lies_between(gains: tuple[float, ...]) -> None:
    # T = diag(g) x + e: I(X;T) = 1/2 sum log(1 + g^2) in closed form.
    outputs = random(0, 4_000, len(gains), 1.0) * torch.tensor(gains, dtype=torch.float64)
    truth = 0.5 * sum(math.log1p(gain**2) for gain in gains)
    found = information_bounds(outputs, 1.0)
    # The bounds are of the sample's own information, which is off by about 1 / sqrt(N).
    assert found.lower <= truth + 0.02
    assert found.upper >= truth - 0.02
    # And in closed form too for N to infinity: each is the entropy of a wider kernel's overlap.
    expected = [
        # -E_i log E_j exp(-(h_i - h_j)^2 / (w v)): a Gaussian integral in h_j, then in h_i.
        sum(0.5 * math.log1p(2 * g**2 / w) + g**2 / w / (1 + 2 * g**2 / w) for g in gains)
        for w in (8.0, 2.0)
    ]
    assert found.lower == pytest.approx(expected[0], abs=0.03)
    assert found.upper == pytest.approx(expected[1], abs=0.03)


def test_limits() -> None:
    outputs = random(1, 50, 4, 1.0)
    tiny, huge = information_bounds(outputs, 1e-9), information_bounds(outputs, 1e12)
    # Without noise every point is known by its output: both bounds are at the ceiling.
    assert tiny.lower == pytest.approx(ceiling(50), abs=1e-9)
    assert tiny.upper == pytest.approx(math.log(50), abs=1e-9)
    assert huge.upper == pytest.approx(0, abs=1e-9)
    same = information_bounds(torch.full((50, 4), 1e6, dtype=torch.float64), 1e-9)
    assert max(same.lower, same.upper) == pytest.approx(0, abs=1e-12)
    assert information_bounds(outputs[:1], 1.0).upper == 0


def test_separate_classes_are_distinguished() -> None:
    labels = torch.arange(60) % 3
    outputs = random(2, 60, 2, 0.01) + 100.0 * labels[:, None]
    found = label_bounds(outputs, labels, 1.0)
    assert found.lower == pytest.approx(math.log(3), abs=1e-3)
    assert found.upper == pytest.approx(math.log(3), abs=1e-3)
    mixed = label_bounds(outputs, torch.arange(60) // 20, 1.0)
    assert mixed.upper < 0.1


def test_parts_of_the_distances_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = random(3, 40, 3, 1.0)
    whole = information_bounds(outputs, 0.7)
    monkeypatch.setattr(kernel, "_MOST_ENTRIES", 40 * 7)
    parts = information_bounds(outputs, 0.7)
    assert parts.lower == pytest.approx(whole.lower, rel=1e-12)
    assert parts.upper == pytest.approx(whole.upper, rel=1e-12)


def test_far_from_the_origin_distances_stay() -> None:
    outputs = random(4, 30, 3, 1.0)
    near, far = information_bounds(outputs, 1.0), information_bounds(outputs + 1e7, 1.0)
    assert far.upper == pytest.approx(near.upper, rel=1e-7)


def test_total_variance() -> None:
    outputs = random(5, 30, 3, 2.0)
    expected = np.trace(np.cov(outputs.numpy(), rowvar=False))
    assert total_variance(outputs) == pytest.approx(expected, rel=1e-12)
