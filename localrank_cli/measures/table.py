"""The table of measures: one entry for each, with everything that the other rooms need.

To add a measure, add an entry to `MEASURES` and a test of its truth. Columns, journal, pictures,
the report and the proof of its error (`localrank_cli.spectrum.certificate`) follow from the entry.
torch is imported where a formula runs: pictures read this table and need no torch.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from localrank_cli.spectrum.certificate import Bound, Doubt
    from localrank_cli.spectrum.solve import Demand
    from localrank_cli.spectrum.tolerance import Tolerance

RANK, LENGTH, SHARE, OTHER = "rank", "length", "share", "other"


@dataclass(frozen=True)
class Meaning:
    """The explanation of a column."""

    label: str
    sentence: str
    kind: str = RANK  # ranks lie between 0 and max_rank; lengths may span decades
    uses_tolerance: bool = False


@dataclass(frozen=True)
class Measure:
    """One measure of a spectrum.

    `compute` maps singular values of shape (points, r), float64, descending, and the standard
    deviation s of `--noise` to one number per point, shape (points,); it is None for what is
    counted at a tolerance. `bound` gives the largest relative error of that number when the
    singular values are square roots of eigenvalues that are off by as much as a `Doubt` says. A
    measure without a bound is never computed from such eigenvalues: every matrix takes the SVD.
    One that needs every value, each as exactly as possible, is left out of `--measures counts`.
    """

    meaning: Meaning
    formula: str
    source: str = ""
    compute: "Callable[[Tensor, float], Tensor] | None" = None
    bound: "Callable[[Doubt, float], Tensor] | None" = None
    needs_every_value: bool = False  # and not only counts and sums of powers


def effective_rank(values: "Tensor", noise: float) -> "Tensor":
    """Compute exp(H(q)), q_i = sigma_i / sum sigma (Roy & Vetterli 2007, Def. 1); 0 for J = 0."""
    import torch

    del noise
    scaled = _over_first(values)
    shares = scaled / scaled.sum(dim=1, keepdim=True).clamp(min=1)
    entropy = torch.special.entr(shares).sum(dim=1)
    return torch.where(values[:, 0] > 0, entropy.exp(), 0)


def _effective_rank_bound(doubt: "Doubt", noise: float) -> "Tensor":
    """Bound |d H| <= sum |d sigma| / S (|log q| + H), the relative error of exp(H)."""
    import torch

    del noise
    # Zeros behind a matrix's own eigenvalues are zeros by its shape, and exact.
    delta = doubt.each.unsqueeze(1)
    values = torch.maximum(doubt.powers, delta).sqrt()
    total = doubt.powers.sqrt().sum(dim=1, keepdim=True).clamp(min=1e-150)
    shares = values / total
    logs = shares.log().abs()
    entropy = torch.where(doubt.own | (doubt.powers > 0), shares * logs, 0).sum(dim=1, keepdim=True)
    weights = torch.where(doubt.own, (logs + entropy) / total, 0)
    # Where a value may be as small as delta, sqrt(2 delta) bounds its error.
    lost = doubt.own & (doubt.powers <= 2 * delta)
    steps = torch.where(lost, weights * (2 * delta).sqrt(), 0).sum(dim=1)
    slopes = torch.where(lost, 0, weights / values).square().sum(dim=1).sqrt()
    found = steps + slopes * doubt.together
    if doubt.slack is not None:
        # q |log q| is concave and 0 at 0: a step changes it by no more than it does from 0.
        logs = (doubt.slack.clamp(min=1e-300) / total).log().abs()
        found += (doubt.slack / total * (logs + entropy)).sum(dim=1)
    return found


def stable_rank(values: "Tensor", noise: float) -> "Tensor":
    """Compute sum sigma_i^2 / sigma_1^2 (Rudelson & Vershynin 2007); 0 for J = 0."""
    del noise
    return _over_first(values).square().sum(dim=1)


def _stable_rank_bound(doubt: "Doubt", noise: float) -> "Tensor":
    """Bound |d trace| / trace + |d lambda_1| / lambda_1."""
    return 2 * _jacobian_norm_bound(doubt, noise) + 2 * _spectral_norm_bound(doubt, noise)


def participation_ratio(values: "Tensor", noise: float) -> "Tensor":
    """Compute (sum sigma_i^2)^2 / sum sigma_i^4 (Gao et al. 2017); 0 for J = 0."""
    del noise
    squares = _over_first(values).square()
    return squares.sum(dim=1).square() / squares.square().sum(dim=1).clamp(min=1)


def _participation_ratio_bound(doubt: "Doubt", noise: float) -> "Tensor":
    """Bound 2 |d trace| / trace + 2 |d| / |lambda|, d being the vector of all errors."""
    first = doubt.powers[:, :1]  # squares of the eigenvalues themselves may leave the range
    length = (doubt.powers / first).square().sum(dim=1).sqrt() * first[:, 0]
    together = doubt.together + doubt.slips.sum(dim=1)
    return 4 * _jacobian_norm_bound(doubt, noise) + 2 * together / length


def spectral_norm(values: "Tensor", noise: float) -> "Tensor":
    """Return sigma_1."""
    del noise
    return values[:, 0]


def _spectral_norm_bound(doubt: "Doubt", noise: float) -> "Tensor":
    """Bound |d lambda_1| / (2 lambda_1)."""
    del noise
    return doubt.each / (2 * doubt.powers[:, 0])


def jacobian_norm(values: "Tensor", noise: float) -> "Tensor":
    """Compute the Frobenius norm (sum sigma_i^2)^(1/2)."""
    del noise
    return values[:, 0] * _over_first(values).square().sum(dim=1).sqrt()


def _jacobian_norm_bound(doubt: "Doubt", noise: float) -> "Tensor":
    """Bound |d trace| / (2 trace); |d trace| <= sqrt(r) |d| (Cauchy and Schwarz)."""
    del noise
    root = doubt.own.sum(dim=1).to(doubt.together.dtype).sqrt()
    slip = root * doubt.together + doubt.slips.sum(dim=1)
    return slip / (2 * doubt.powers.sum(dim=1))


def gaussian_information(values: "Tensor", noise: float) -> "Tensor":
    """Compute 1/2 sum log(1 + sigma_i^2 / s^2) in nats."""
    from localrank_cli.intervals.point import log_gain

    # This is I(x; J x + s e) for x ~ N(0, I) and e ~ N(0, I): the layer linearized at the point.
    # It does not bound the network's own I(X; T).
    return 0.5 * log_gain(values / noise).sum(dim=1)


def _gaussian_information_bound(doubt: "Doubt", noise: float) -> "Tensor":
    """Bound sum |d_i| / (s^2 + lambda_i), relative to sum log(1 + lambda_i / s^2)."""
    import torch

    information = torch.log1p(doubt.powers / noise**2).sum(dim=1)
    slopes = torch.where(doubt.own, 1 / (noise**2 + doubt.powers), 0).square().sum(dim=1).sqrt()
    slip = slopes * doubt.together
    if doubt.slack is not None:
        # The true value may be smaller by the slack, and the slope steeper.
        least = (doubt.powers.sqrt() - doubt.slack).clamp(min=0).square()
        slip += (doubt.slips / (noise**2 + least)).sum(dim=1)
    return slip / information


def _over_first(values: "Tensor") -> "Tensor":
    """Compute sigma_i / sigma_1, so that squares neither overflow nor vanish; 0 for J = 0."""
    import torch

    first = values[:, :1]
    return torch.where(first > 0, values / torch.where(first > 0, first, 1), 0)


MEASURES: Mapping[str, Measure] = {
    "local_rank": Measure(
        Meaning(
            "local rank",
            "The number of singular values of the layer's Jacobian above the tolerance, averaged"
            " over the points: how many directions of the input the layer passes on.",
            uses_tolerance=True,
        ),
        "the number of σᵢ > tol, tol = max(atol, rtol · σ₁)",
        "Patel & Shwartz-Ziv 2024, [arXiv 2410.07687](https://arxiv.org/abs/2410.07687)",
    ),
    "effective_rank": Measure(
        Meaning(
            "effective rank",
            "The exponential of the entropy of the normalized singular values: a soft count of"
            " directions that needs no tolerance and is invariant to weight scale.",
        ),
        "exp(−Σ qᵢ log qᵢ), qᵢ = σᵢ / Σ σⱼ",
        "Roy & Vetterli 2007",
        effective_rank,
        _effective_rank_bound,
        needs_every_value=True,
    ),
    "stable_rank": Measure(
        Meaning(
            "stable rank",
            "The sum of the squared singular values over the largest square: how many directions"
            " are as strong as the strongest.",
        ),
        "Σ σᵢ² / σ₁²",
        "Rudelson & Vershynin 2007",
        stable_rank,
        _stable_rank_bound,
    ),
    "participation_ratio": Measure(
        Meaning(
            "participation ratio",
            "The squared sum of the squared singular values over the sum of their fourth powers:"
            " how many directions share the variance.",
        ),
        "(Σ σᵢ²)² / Σ σᵢ⁴",
        "Gao et al. 2017",
        participation_ratio,
        _participation_ratio_bound,
    ),
    "spectral_norm": Measure(
        Meaning(
            "spectral norm",
            "The largest singular value: how much the layer can stretch a small change of the"
            " input.",
            LENGTH,
        ),
        "σ₁",
        "",
        spectral_norm,
        _spectral_norm_bound,
    ),
    "jacobian_norm": Measure(
        Meaning(
            "Jacobian norm",
            "The square root of the sum of the squared singular values: how much the layer"
            " stretches small changes of the input, all directions together.",
            LENGTH,
        ),
        "(Σ σᵢ²)^½",
        "",
        jacobian_norm,
        _jacobian_norm_bound,
    ),
    "gaussian_information": Measure(
        Meaning(
            "Gaussian information (nats)",
            "The information that the layer, linearized at a point, keeps about a Gaussian input"
            " when Gaussian noise is added to its output, in nats.",
            OTHER,
        ),
        "½ Σ log(1 + σᵢ² / s²), in nats, s = `--noise`",
        "see below",
        gaussian_information,
        _gaussian_information_bound,
    ),
}

# The measures that each have one number per point, and so a mean and a standard error.
AVERAGED = tuple(name for name, measure in MEASURES.items() if measure.compute is not None)
# The values of `--measures`, each with the measures that it averages.
CHOICES: Mapping[str, tuple[str, ...]] = {
    "all": AVERAGED,
    "counts": tuple(name for name in AVERAGED if not MEASURES[name].needs_every_value),
}

# The measures that --method interval estimates, in the order of the table. Of the others,
# effective_rank needs the spectrum, and sigma_1 has an interval.
ESTIMATED = ("stable_rank", "participation_ratio", "jacobian_norm", "gaussian_information")


# Journals of the first release do not name their measures: they hold these.
FIRST = (
    "effective_rank",
    "stable_rank",
    "participation_ratio",
    "spectral_norm",
    "jacobian_norm",
    "gaussian_information",
)


def choice_of(names: Iterable[str]) -> str | None:
    """Return the value of `--measures` under which these were averaged, perhaps before others came.

    None if this version has not all of them.
    """
    known = set(names)
    if not known <= set(AVERAGED):
        return None
    return "all" if known - set(CHOICES["counts"]) else "counts"


def demand_of(
    tolerances: "Sequence[Tolerance] | None",
    noise: float = 1.0,
    names: Iterable[str] = AVERAGED,
) -> "Demand":
    """Return the purpose of singular values: counts at tolerances, and the named measures.

    Tolerances are None where they are not known yet, so that every matrix takes the SVD.
    """
    from localrank_cli.spectrum.solve import Demand

    bounds: list[Bound] = []
    needs_every_value = False
    for name in names:
        needs_every_value |= MEASURES[name].needs_every_value
        bound = MEASURES[name].bound
        if bound is None or tolerances is None:
            return Demand(None)
        bounds.append(_bound_at(bound, noise))
    return Demand(tuple(tolerances or ()), tuple(bounds), needs_every_value)


def _bound_at(bound: "Callable[[Doubt, float], Tensor]", noise: float) -> "Bound":
    return lambda doubt: bound(doubt, noise)
