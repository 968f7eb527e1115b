"""The evidence about the rank of one Jacobian, from products with it alone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from localrank_cli.intervals.beta import largest_count
from localrank_cli.intervals.bracket import SLACK, bracket, largest_eigenvalue
from localrank_cli.intervals.deflation import BLOCK, MAX_DEFECT, Basis, strongest
from localrank_cli.intervals.evidence import (
    FRESH,
    Level,
    PointEvidence,
    interval,
    probes_of,
    shares,
)
from localrank_cli.intervals.lanczos import Runs, tridiagonal
from localrank_cli.intervals.operator import Operator

# Steps between two looks at the brackets.
_EVERY = 10
# The most steps on a complement, between looks.
_FRESH_STEPS = 60
# A basis is built where it may hold all directions above the tolerance, and this many more.
_MORE = 4 * BLOCK
# Probes for sigma_1 alone, where a point has one probe for the counts: one would need a share
# below the padding.
SIGMA_PROBES = 2
_PURPOSES = ("count", "sigma", "basis", "fresh")


@dataclass(frozen=True)
class Threshold:
    """A tolerance: max(atol, rtol * sigma_1)."""

    atol: float = 0.0
    rtol: float = 0.0

    @property
    def is_relative(self) -> bool:
        """Whether it depends on sigma_1."""
        return self.rtol > 0


@dataclass(frozen=True)
class Terms:
    """What is fixed before the first product."""

    thresholds: tuple[Threshold, ...]
    delta: float = 0.05  # 1 - confidence
    n_points: int = 1  # of the mean, in all processes together
    products: int = 500  # the most at one point
    width: float = 0.0  # (high - low) / d at which a point is done; 0: as narrow as it gets
    noise: float = 1.0  # s of the Gaussian information
    bound: int | None = None  # of the rank, by the network's structure
    relative: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "relative", any(one.is_relative for one in self.thresholds))


def sigma_probes(n_points: int, *, relative: bool) -> int:
    """Return how many probes serve for sigma_1 alone.

    With several probes for the counts the same ones serve, since the events are added.
    """
    return SIGMA_PROBES if relative and probes_of(n_points) == 1 else 0


def largest_basis(products: int) -> int:
    """Return how many directions are split off at most, which no memory decides."""
    return products // 3


def vector_bytes(size: int, products: int) -> int:
    """Return the bytes of all vectors of a point; `size` is the smaller side."""
    # Rows, their images, and as much again while Ritz vectors are formed.
    rows = min(size, largest_basis(products)) + BLOCK
    return 8 * size * (min(size * 3, products // 2 + 4) + 4 * rows)


# Returns a generator for a purpose.
Generators = Callable[[str], torch.Generator]


def generators_of(seed: int) -> Generators:
    """Return generators under a seed, one for each purpose."""

    def generator(purpose: str) -> torch.Generator:
        """Return a generator whose stream no other purpose and no other seed shares."""
        return torch.Generator("cpu").manual_seed(seed * len(_PURPOSES) + _PURPOSES.index(purpose))

    return generator


class Failure(Exception):  # noqa: N818  # never reaches a person
    """A product is not finite."""


class TooRoughError(Exception):
    """The products round too much for a tolerance.

    Attributes:
        row: The number of the tolerance.
        least: The smallest one that they allow: rtol of a relative tolerance, else atol; inf if
            none.
    """

    def __init__(self, row: int, least: float) -> None:
        super().__init__(row, least)
        self.row, self.least = row, least


def examine_point(operator: Operator, terms: Terms, generators: Generators) -> PointEvidence | None:
    """Return the evidence about one point; None where a product with its Jacobian is not finite.

    Raises:
        TooRoughError: If `operator.error` is over a quarter of a tolerance.
    """
    try:
        return _Point(operator, terms, generators).evidence()
    except Failure:
        return None


class _Point:
    def __init__(self, operator: Operator, terms: Terms, generators: Generators) -> None:
        self._terms, self._generators = terms, generators
        self._probes = probes_of(terms.n_points)
        self._d, self._device = operator.size, operator.device
        first = self._draw("count", self._probes)
        self._scale = _scale_of(operator, first)
        self._operator = _scaled(operator, self._scale)
        self._source = operator
        self._sigma_delta, self._first_delta, self._fresh_delta = shares(
            terms.delta, relative=terms.relative
        )
        others = sigma_probes(terms.n_points, relative=terms.relative)
        probes = torch.cat([first, self._draw("sigma", others)]) if others else first
        self._lanes = list(range(self._probes))
        self._sigma_lanes = list(range(self._probes, self._probes + others)) or self._lanes
        steps = terms.products // 2 // probes.shape[0]
        self._runs = Runs(self._operator, probes, max(1, steps))
        self._basis: Basis | None = None
        self._top = 0.0  # a bound on the largest eigenvalue, or an estimate for rounding
        self._bottom = 0.0  # sigma_1^2 is at least this

    def _draw(self, purpose: str, count: int, generator: torch.Generator | None = None) -> Tensor:
        generator = generator or self._generators(purpose)
        rows = torch.randn(count, self._d, generator=generator, dtype=torch.float64, device="cpu")
        return rows.to(self._device)

    @property
    def _left(self) -> int:
        return self._terms.products - self._source.n_products

    def evidence(self) -> PointEvidence:
        """Return what the products say."""
        self._run_first(self._terms.products // 2)
        rows = range(len(self._terms.thresholds))
        wanted = [row for row in rows if not self._is_done(row) and self._may_deflate(row)]
        deflations: dict[int, tuple[int, float, float]] = {}
        if wanted:
            self._find_basis(wanted)
            for row in wanted:
                found = self._complement(row)
                if found is not None:
                    deflations[row] = found
        if len(deflations) < len(self._terms.thresholds):
            self._run_first(self._terms.products, set(deflations))
        return self._point(deflations)

    def _run_first(self, limit: int, done: set[int] | None = None) -> None:
        """Take steps until the brackets are narrow enough or products run out."""
        runs, rows = self._runs, range(len(self._terms.thresholds))
        while not runs.is_done and self._source.n_products + runs.cost <= limit:
            runs.step()
            if runs.n_steps % _EVERY == 0 or runs.is_done:
                self._look()
                if all(row in (done or set()) or self._is_narrow(row) for row in rows):
                    return
        self._look()

    def _look(self) -> None:
        """Bound sigma_1 anew."""
        terms, runs = self._terms, self._runs
        self._bottom = max(self._bottom, runs.largest)
        self._top = self._bottom * (1 + SLACK)
        if terms.relative:
            delta = self._sigma_delta / terms.n_points
            found = largest_eigenvalue(runs, self._sigma_lanes, delta, self._d)
            self._top = max(self._bottom * (1 + SLACK), found)
        self._check_rounding()

    def _check_rounding(self) -> None:
        """Check that the tolerances are well above what the products' precision leaves."""
        if self._operator.error >= 1:
            # J may be of any size, even where all products vanish in float32.
            raise TooRoughError(0, math.inf)
        least = 4 * self._operator.error * math.sqrt(self._bottom)
        for row, one in enumerate(self._terms.thresholds):
            threshold = max(one.atol * self._scale, one.rtol * math.sqrt(self._bottom))
            if threshold < least:
                unit = math.sqrt(self._bottom) if one.is_relative else self._scale
                raise TooRoughError(row, least / unit)

    def _limits(self, row: int) -> tuple[float, float, float]:
        """Return thresholds on eigenvalues: for the low count, for the high one, and rounding."""
        one = self._terms.thresholds[row]
        scaled = one.atol * self._scale
        # sigma_1 is known to be at least the largest Ritz value, up to rounding.
        least = math.sqrt(max(0.0, self._bottom * (1 - SLACK)))
        most = math.sqrt(self._top)
        slip = self._operator.rounding * (most if math.isfinite(most) else least)
        above = max(scaled, one.rtol * (most + slip)) + slip
        below = max(scaled, one.rtol * max(0.0, least - slip)) - slip
        # A is applied by two products, each of which rounds as J does, relative to sigma_1^2.
        near = max(SLACK, 2 * self._operator.rounding_of_float64) + self._operator.error**2
        near *= min(self._top, 4 * self._bottom)
        low = above * above + near
        return low, (below * below - near if below > 0 else -1.0), near

    def _level(self, row: int, *, certify: bool = False) -> Level:
        low_at, high_at, _ = self._limits(row)
        runs, scale = self._runs, min(self._top, 4 * self._bottom)
        low = bracket(runs, self._lanes, low_at, scale)[0] if math.isfinite(low_at) else 0.0
        high = bracket(runs, self._lanes, high_at, scale)[1]
        certain, undecided = self._certain(low_at, high_at) if certify else (0, False)
        bound = self._d if self._terms.bound is None else min(self._d, self._terms.bound)
        if self._bottom == 0 and runs.n_steps:  # J x = 0 for a normal x: J = 0
            bound = 0
        return Level(low, high, certain, undecided, bound)

    def _certain(self, low_at: float, high_at: float) -> tuple[int, bool]:
        """Return how many values are above a threshold for certain, and whether one is doubtful."""
        runs = self._runs
        values = [
            runs.ritz_values(lane)
            for lane, diagonal in enumerate(runs.diagonals)
            if diagonal and runs.defect(lane) <= MAX_DEFECT
        ]
        certain = max((int((one > low_at).sum()) for one in values), default=0)
        if self._basis is not None:
            certain = max(certain, self._basis.count(low_at))
            values.append(self._basis.values.cpu())
        doubtful = any(bool(((one > high_at) & (one <= low_at)).any()) for one in values)
        return certain, doubtful

    def _alone(self, row: int) -> tuple[float, float]:
        """Return the interval of this point by itself."""
        interval_ = interval(
            [self._point_of([self._level(row)])],
            0,
            self._terms.delta,
            self._probes,
            relative=self._terms.thresholds[row].is_relative,
        )
        return interval_.low, interval_.high

    def _is_narrow(self, row: int) -> bool:
        """Return whether more steps do not pay: the bracket is narrower than the probes' noise."""
        level, terms = self._level(row), self._terms
        if terms.width and self._is_done(row):
            return True
        share = min(max((level.low + level.high) / 2, 0.5 / self._d), 1 - 0.5 / self._d)
        variance = 2 * share * (1 - share) / (self._probes * self._d * terms.n_points)
        return level.high - level.low <= math.sqrt(variance)

    def _is_done(self, row: int) -> bool:
        """Return whether this point's own interval is as narrow as was asked for."""
        if not self._terms.width and self._terms.n_points > 1:
            # Fresh probes serve a mean only if every point has them.
            return False
        low, high = self._alone(row)
        return high - low <= self._terms.width * self._d

    def _may_deflate(self, row: int) -> bool:
        """Return whether a basis of all directions above a tolerance fits memory and products."""
        terms = self._terms
        level = self._level(row)
        high = largest_count(level.high, terms.delta / 2, self._probes, self._d)
        high = min(high, level.bound)
        if high == 0:
            return True
        needed = min(self._d, high + _MORE)
        return needed <= largest_basis(terms.products) and 2 * needed <= self._left

    def _find_basis(self, wanted: Sequence[int]) -> None:
        generator = self._generators("basis")
        limits = [self._limits(row) for row in wanted]
        # The complement is to be below the threshold of the high count.
        thresholds = [high for _, high, _ in limits]
        self._basis = strongest(
            self._operator,
            lambda count: self._draw("basis", count, generator),
            thresholds,
            largest_basis(self._terms.products),
            self._left - 2 * FRESH * _EVERY * len(wanted),
        )
        if self._basis.is_sound:  # else values may be above every singular value
            self._bottom = max(self._bottom, float(self._basis.values[0]))
        self._top = max(self._top, self._bottom * (1 + SLACK))

    def _complement(self, row: int) -> tuple[int, float, float] | None:
        """Return the directions split off, |y|^2 of fresh probes, and their share above at most."""
        assert self._basis is not None
        _, high_at, _ = self._limits(row)
        if not self._basis.is_sound or high_at < 0:
            return None
        kept = int((self._basis.values > high_at).sum())
        away = self._basis.vectors[:kept]
        # The same probes for every tolerance: each row has its own delta.
        runs = Runs(self._operator, self._draw("fresh", FRESH), _FRESH_STEPS, away)
        if kept == self._d:
            return kept, 0.0, 0.0
        scale, share = min(self._top, 4 * self._bottom), 1.0
        while not runs.is_done and runs.cost <= self._left:
            runs.step()
            if runs.n_steps % (_EVERY // 2) and not runs.is_done:
                continue
            share = bracket(runs, range(FRESH), high_at, scale)[1]
            if self._is_certain_of_none(share):
                break
        return kept, math.fsum(runs.squares), share

    def _is_certain_of_none(self, share: float) -> bool:
        """Return whether the share leaves nothing, in a mean over all points too."""
        size = self._d * self._terms.n_points
        return largest_count(share, self._fresh_delta, FRESH, size) == 0

    def _point(self, deflations: dict[int, tuple[int, float, float]]) -> PointEvidence:
        levels = []
        for row in range(len(self._terms.thresholds)):
            level = self._level(row, certify=True)
            if row in deflations:
                kept, square, share = deflations[row]
                level = replace(level, deflated=kept, fresh_square=square, fresh_high=share)
            levels.append(level)
        return self._point_of(levels)

    def _point_of(self, levels: Sequence[Level]) -> PointEvidence:
        runs, scale = self._runs, self._scale
        square = math.fsum(runs.squares[lane] for lane in self._lanes)
        moments = [_moments(runs, lane, self._terms.noise, scale) for lane in self._lanes]
        # Of a uniform direction u, d u^T f(A) u has the mean tr f(A), without the noise of |x|^2.
        trace, fourth, information = (
            self._d * math.fsum(one[index] for one in moments) / len(moments) for index in range(3)
        )
        slip = self._operator.rounding
        return PointEvidence(
            size=self._d,
            square=square,
            sigma_low=math.sqrt(max(0.0, self._bottom)) * (1 - SLACK - slip) / scale,
            sigma_high=(
                math.sqrt(self._top) * (1 + SLACK + slip) / scale if self._terms.relative else None
            ),
            n_products=self._source.n_products,
            levels=tuple(levels),
            norm=math.sqrt(max(0.0, trace)) / scale,
            participation=trace * trace / fourth if fourth > 0 else 0.0,
            information=information,
        )


def _moments(runs: Runs, lane: int, noise: float, scale: float) -> tuple[float, float, float]:
    """Return x^T f(A) x / |x|^2 for f = a, a^2 and log(1 + a / s^2) / 2, by Gauss quadrature.

    In the last one `a` is taken back from the scale at which products are.
    """
    diagonal, following = runs.diagonals[lane], runs.next[lane]
    if not diagonal:
        return 0.0, 0.0, 0.0
    nodes, vectors = torch.linalg.eigh(tridiagonal(diagonal, following[:-1]))
    weights = vectors[0].square()
    ratio = nodes.clamp(min=0).sqrt() / scale / noise
    information = 0.5 * float((weights * log_gain(ratio)).sum())
    return diagonal[0], diagonal[0] ** 2 + following[0] ** 2, information


def log_gain(ratio: Tensor) -> Tensor:
    """Return log(1 + r^2), finite for r up to the largest float."""
    # log1p(r^2) = 2 log(r) + log1p(r^-2).
    large = 2 * ratio.clamp(min=1).log() + ratio.clamp(min=1).pow(-2).log1p()
    small = ratio.clamp(max=1).square().log1p()
    return torch.where(ratio > 1, large, small)


def _scale_of(operator: Operator, probes: Tensor) -> float:
    """Return a power of two that brings the matrix near 1, so that squares stay in range."""
    vectors = probes[:1].to(operator.device)
    product = operator.apply if operator.n_in <= operator.n_out else operator.transpose
    operator.n_products += 1
    image = product(vectors)
    largest = float(image.abs().max()) if image.numel() else 0.0
    if not math.isfinite(largest):
        raise Failure
    # The reciprocal of a denormal number is out of range.
    return 2.0 ** min(1023, -math.frexp(largest)[1]) if largest > 0 else 1.0


def _scaled(operator: Operator, scale: float) -> Operator:
    """Return the operator times a scale, which checks that products are finite."""

    def times(product: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Return a product that is scaled, counted and checked."""

        def scaled(vectors: Tensor) -> Tensor:
            """Return the scaled product of several vectors; raise `Failure` if it is not finite."""
            found = product(vectors) * scale
            operator.n_products += vectors.shape[0]
            if not bool(torch.isfinite(found).all()):
                raise Failure
            return found

        return scaled

    return Operator(
        operator.n_out,
        operator.n_in,
        times(operator.apply),
        times(operator.transpose),
        operator.device,
        operator.error,
    )
