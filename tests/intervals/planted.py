"""Matrices with planted singular values, and the intervals that cells of them get."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from localrank_cli.intervals.evidence import Interval, PointEvidence, interval, probes_of
from localrank_cli.intervals.operator import Operator, of_matrix
from localrank_cli.intervals.point import Terms, Threshold, examine_point, generators_of


def generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def haar(n: int, k: int, random: torch.Generator) -> Tensor:
    """k orthonormal columns of n entries, uniform."""
    q, r = torch.linalg.qr(torch.randn(n, k, generator=random, dtype=torch.float64))
    columns: Tensor = q * r.diagonal().sign()
    return columns


def planted(values: Tensor, m: int, n: int, random: torch.Generator) -> Tensor:
    """A matrix m x n with these singular values."""
    k = len(values)
    return haar(m, k, random) * values @ haar(n, k, random).T


def _powers(exponent: float) -> Callable[[int], Tensor]:
    return lambda n: torch.arange(1, n + 1).double() ** -exponent


def _steps(*parts: tuple[float, float]) -> Callable[[int], Tensor]:
    """Values, each with its share of all of them; the last one fills up."""

    def values(n: int) -> Tensor:
        counts = [max(1, int(share * n)) for _, share in parts]
        rows = [torch.full((c,), v).double() for (v, _), c in zip(parts, counts, strict=True)]
        return torch.cat([*rows, torch.full((n,), parts[-1][0]).double()])[:n].sort().values.flip(0)

    return values


def _around(center: float) -> Callable[[int], Tensor]:
    """Half of the values within a thousandth of a center, the others far below."""

    def values(n: int) -> Tensor:
        half = n // 2
        near = center * (1 + 1e-3 * torch.linspace(1, -1, half).double())
        return torch.cat([torch.ones(1).double(), near, torch.full((n - 1 - half,), 1e-6).double()])

    return values


SPECTRA: dict[str, Callable[[int], Tensor]] = {
    "zero": lambda n: torch.zeros(n).double(),
    "rank 1": _steps((1.0, 0.0), (0.0, 0.0)),
    "flat": lambda n: torch.ones(n).double(),
    "1/2 power": _powers(0.5),
    "0.7 power": _powers(0.7),
    "1/j": _powers(1.0),
    "square": _powers(2.0),
    "slow exponential": lambda n: torch.exp(-torch.arange(n).double() * 12 / n),
    "fast exponential": lambda n: torch.exp(-torch.arange(n).double() / 8),
    "linear": lambda n: torch.linspace(1, 1e-3, n).double(),
    "gap": _steps((1.0, 0.1), (1e-9, 0.9)),
    "two steps": _steps((1.0, 0.05), (0.05, 0.3), (1e-3, 0.6)),
    "cluster at 0.1": _around(0.1),
    "cluster at 0.01": _around(0.01),
    "noise": lambda n: torch.rand(n, generator=generator(n)).double().sort().values.flip(0),
}


@dataclass(frozen=True)
class Cell:
    """An interval beside the truth."""

    true: float
    found: Interval
    points: tuple[PointEvidence, ...]

    @property
    def covers(self) -> bool:
        return self.found.low <= self.true <= self.found.high


def rank_of(values: Tensor, rtol: float) -> int:
    return int((values > rtol * values.max()).sum())


def examined(
    operators: Sequence[Operator], terms: Terms, seed: int
) -> tuple[tuple[PointEvidence, ...], list[Interval]]:
    points = []
    for index, operator in enumerate(operators):
        one = examine_point(operator, terms, generators_of(1000 * seed + index))
        assert one is not None
        points.append(one)
    probes = probes_of(terms.n_points)
    found = [
        interval(points, row, terms.delta, probes, relative=threshold.is_relative)
        for row, threshold in enumerate(terms.thresholds)
    ]
    return tuple(points), found


def cells(
    name: str, shape: tuple[int, int], rtols: Sequence[float], seed: int, products: int = 300
) -> list[Cell]:
    """The cells of one planted matrix, all tolerances from the same probes."""
    values = SPECTRA[name](min(shape))
    matrix = planted(values, *shape, generator(seed))
    terms = Terms(tuple(Threshold(rtol=rtol) for rtol in rtols), products=products)
    points, found = examined([of_matrix(matrix)], terms, seed)
    return [
        Cell(rank_of(values, rtol), one, points) for rtol, one in zip(rtols, found, strict=True)
    ]


def most_misses(count: int, delta: float) -> int:
    """The most misses of independent cells that are not rarer than one in a thousand."""
    chance, total, misses = (1 - delta) ** count, 0.0, 0
    while total + chance < 0.999:
        total += chance
        chance *= (count - misses) / (misses + 1) * delta / (1 - delta)
        misses += 1
    return misses
