"""What the measures are called, and what each means in a sentence, for pictures and pages."""

from dataclasses import dataclass

RANK, LENGTH, SHARE, OTHER = "rank", "length", "share", "other"


@dataclass(frozen=True)
class Meaning:
    """One measure, as a person reads of it."""

    label: str
    sentence: str
    kind: str = RANK  # ranks lie between 0 and max_rank; lengths may span decades
    feels_tolerance: bool = False


MEANINGS: dict[str, Meaning] = {
    "local_rank": Meaning(
        "local rank",
        "The number of singular values of the layer's Jacobian above the tolerance, averaged over"
        " the points: how many directions of the input the layer passes on.",
        feels_tolerance=True,
    ),
    "rank_min": Meaning(
        "least local rank", "The least local rank of any point.", feels_tolerance=True
    ),
    "rank_max": Meaning(
        "largest local rank", "The largest local rank of any point.", feels_tolerance=True
    ),
    "effective_rank": Meaning(
        "effective rank",
        "The exponential of the entropy of the normalised singular values: a soft count of"
        " directions that needs no tolerance and does not feel the scale of weights.",
    ),
    "stable_rank": Meaning(
        "stable rank",
        "The sum of the squared singular values over the largest square: how many directions are as"
        " strong as the strongest.",
    ),
    "participation_ratio": Meaning(
        "participation ratio",
        "The squared sum of the squared singular values over the sum of their fourth powers: how"
        " many directions share the variance.",
    ),
    "spectral_norm": Meaning(
        "spectral norm",
        "The largest singular value: how much the layer can stretch a small change of the input.",
        LENGTH,
    ),
    "jacobian_norm": Meaning(
        "Jacobian norm",
        "The root of the sum of the squared singular values: how much the layer stretches small"
        " changes of the input, all directions together.",
        LENGTH,
    ),
    "gaussian_information": Meaning(
        "Gaussian information (nats)",
        "What the layer, linearised at a point, tells about a Gaussian input when Gaussian noise is"
        " added to its output, in nats.",
        OTHER,
    ),
    "near_tol": Meaning(
        "share of points near the tolerance",
        "The share of points whose count changes when the tolerance moves by 1 %.",
        SHARE,
        feels_tolerance=True,
    ),
    "n_undecided": Meaning(
        "undecided points",
        "The number of points whose count is decided by rounding.",
        OTHER,
        feels_tolerance=True,
    ),
}


def meaning(column: str) -> Meaning:
    """What a column is called, for any column of a table.

    Args:
        column: A measure, or a column of the user's.

    Returns:
        Its meaning; that of an unknown column is its name.
    """
    return MEANINGS.get(column) or Meaning(column.replace("_", " "), "", OTHER)
