"""The columns of the table: their order and types, the text of a cell, and their meanings."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from localrank_cli.measures.table import AVERAGED, LENGTH, MEASURES, OTHER, SHARE, Meaning

Cell = str | int | float | None
Row = Mapping[str, Cell]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # but tab and line feed
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?")

STR, INT, OPTIONAL_INT, FLOAT = "str", "int", "optional int", "float"

COLUMNS: dict[str, str] = {
    "run": STR,
    "checkpoint": STR,
    "step": INT,
    "layer": STR,
    "layer_index": INT,
    "module": STR,
    "n_in": INT,
    "n_out": INT,
    "max_rank": INT,
    "n_points": INT,
    "n_failed": INT,
    "wrt": STR,
    "input_metric": STR,
    "dtype": STR,
    "tolerance": STR,
    "atol": FLOAT,
    "rtol": FLOAT,
    "local_rank": FLOAT,
    "local_rank_se": FLOAT,
    "rank_min": OPTIONAL_INT,
    "rank_max": OPTIONAL_INT,
    "near_tol": FLOAT,
    "n_undecided": INT,
    **{name: FLOAT for measure in AVERAGED for name in (measure, f"{measure}_se")},
    "method": STR,
    "status": STR,
    "message": STR,
}

# Columns of analyses that choose pairs or positions.
PARTS = ("positions", "n_positions", "jacobian")
ACTIVE_EFFECTIVE_RANK = "active_effective_rank"
# Columns of --pooled; but for one, they differ between the rows of a layer's tolerances.
POOLED = ("pooled_rank", "active_rank", "pooled_undecided", ACTIVE_EFFECTIVE_RANK)
# Columns of --method interval.
INTERVALS = (
    "rank_low", "rank_high", "rank_certain_low", "confidence", "sigma_1_low", "sigma_1_high",
    "n_products",
)  # fmt: skip
# Columns of --beside; the note says why cells are empty, or what a weight is tied to.
BESIDE_ACTIVATIONS = (
    "activation_samples", "activation_ceiling", "activation_at_ceiling",
    "activation_effective_rank", "activation_participation_ratio",
)  # fmt: skip
BESIDE_CLASSES = (
    "activation_class_effective_rank", "activation_class_participation_ratio",
    "activation_effective_rank_by_class", "activation_participation_ratio_by_class",
)  # fmt: skip
BESIDE_WEIGHTS = (
    "weight_ceiling", "weight_effective_rank", "weight_stable_rank", "weight_spectral_norm",
)  # fmt: skip
BESIDE_NOTE = "beside_note"
# Columns after `message` that the tool itself may add, in order; constants of a series follow.
OPTIONAL: dict[str, str] = {
    "epoch": OPTIONAL_INT,
    "positions": STR,
    "n_positions": OPTIONAL_INT,
    "jacobian": STR,
    "pooled_rank": OPTIONAL_INT,
    "active_rank": OPTIONAL_INT,
    "pooled_undecided": OPTIONAL_INT,
    ACTIVE_EFFECTIVE_RANK: FLOAT,
    "rank_low": FLOAT,
    "rank_high": FLOAT,
    "rank_certain_low": FLOAT,
    "confidence": FLOAT,
    "sigma_1_low": FLOAT,
    "sigma_1_high": FLOAT,
    "n_products": OPTIONAL_INT,
    "n_cov": OPTIONAL_INT,
    "input_slice": STR,
    "output_slice": STR,
    "sigma_1_of": STR,
    "loss": FLOAT,
    "accuracy": FLOAT,
    "information_points": OPTIONAL_INT,
    "information_noise_variance": FLOAT,
    "information_ceiling_nats": FLOAT,
    "information_at_ceiling": STR,
    "information_xt_lower_nats": FLOAT,
    "information_xt_upper_nats": FLOAT,
    "information_ty_lower_nats": FLOAT,
    "information_ty_upper_nats": FLOAT,
    "activation_samples": OPTIONAL_INT,
    "activation_ceiling": OPTIONAL_INT,
    "activation_at_ceiling": STR,
    "activation_effective_rank": FLOAT,
    "activation_participation_ratio": FLOAT,
    "activation_class_effective_rank": FLOAT,
    "activation_class_participation_ratio": FLOAT,
    "activation_effective_rank_by_class": STR,
    "activation_participation_ratio_by_class": STR,
    "weight_ceiling": OPTIONAL_INT,
    "weight_effective_rank": FLOAT,
    "weight_stable_rank": FLOAT,
    "weight_spectral_norm": FLOAT,
    BESIDE_NOTE: STR,
}


def optional_first(names: Iterable[str]) -> tuple[str, ...]:
    """Return each column after `message` once: those of localrank in order, then the others."""
    known = dict.fromkeys(names)
    return (*(name for name in OPTIONAL if name in known), *(n for n in known if n not in OPTIONAL))


def header(extra: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return all column names in order; `extra` are those after `message`."""
    return (*COLUMNS, *extra)


def pair_names(pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return the name of each pair of a layer and its source: `LAYER from SOURCE`.

    A layer with a single source keeps its own name.
    """
    every = list(dict.fromkeys(pairs))
    counts = Counter(layer for layer, _ in every)
    return {
        (layer, source): f"{layer} from {source or 'the input'}" if counts[layer] > 1 else layer
        for layer, source in every
    }


def as_text(cell: Cell) -> str:
    """Return a cell as CSV holds it: 9 significant digits, `.` decimals, empty for missing."""
    if cell is None:
        return ""
    if isinstance(cell, float):
        return format(cell, ".9g")
    return on_one_line(cell) if isinstance(cell, str) else str(cell)


def on_one_line(text: str) -> str:
    """Return a text as one line, with control characters, which steer a terminal, as escapes.

    Nothing else is changed: scripts join tables by the names in them.
    """
    line = " ".join(text.splitlines())
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", line)


def is_formula(text: str) -> bool:
    """Return whether a spreadsheet program would compute a cell instead of showing it."""
    return text.startswith(("=", "+", "-", "@", "\t", "\r")) and not _NUMBER.fullmatch(text)


# In the order in which menus list them.
MEANINGS: dict[str, Meaning] = {
    "local_rank": MEASURES["local_rank"].meaning,
    "rank_min": Meaning(
        "least local rank", "The least local rank of any point.", uses_tolerance=True
    ),
    "rank_max": Meaning(
        "largest local rank", "The largest local rank of any point.", uses_tolerance=True
    ),
    "rank_low": Meaning(
        "lower bound of the local rank",
        "The least mean local rank that the products allow, with the confidence of the row.",
        uses_tolerance=True,
    ),
    "rank_high": Meaning(
        "upper bound of the local rank",
        "The largest mean local rank that the products allow, with the confidence of the row.",
        uses_tolerance=True,
    ),
    "rank_certain_low": Meaning(
        "certain lower bound of the local rank",
        "The mean number of singular values that were found above the tolerance: this involves no"
        " chance, except for the bound on sigma_1 that a relative tolerance is based on.",
        uses_tolerance=True,
    ),
    **{name: measure.meaning for name, measure in MEASURES.items()},
    "near_tol": Meaning(
        "share of points near the tolerance",
        "The share of points whose count changes when the tolerance moves by 1 %.",
        SHARE,
        uses_tolerance=True,
    ),
    "n_undecided": Meaning(
        "undecided points",
        "The number of points whose count is decided by rounding.",
        OTHER,
        uses_tolerance=True,
    ),
    "pooled_rank": Meaning(
        "rank of the mean Jacobian",
        "The number of singular values above the tolerance of the mean of the Jacobians over all"
        " points: directions that all points pass on in the same way add up, and others cancel.",
        uses_tolerance=True,
    ),
    "active_rank": Meaning(
        "active rank",
        "The number of orthogonal directions of the source along which the layer responds by more"
        " than the tolerance, as a root mean square over all points.",
        OTHER,
        uses_tolerance=True,
    ),
    ACTIVE_EFFECTIVE_RANK: Meaning(
        "active effective rank",
        "The effective rank of these root mean squares: a soft count that needs no tolerance.",
        OTHER,
    ),
    "pooled_undecided": Meaning(
        "undecided pooled values",
        "The number of values of the pooled matrices that are closer to the tolerance than their"
        " rounding error.",
        OTHER,
        uses_tolerance=True,
    ),
    "activation_effective_rank": Meaning(
        "effective rank of the activations",
        "The effective rank of the layer's outputs over the points, centred: how many directions"
        " they spread over.",
        OTHER,
    ),
    "activation_participation_ratio": Meaning(
        "participation ratio of the activations",
        "The participation ratio of the layer's outputs over the points, centred: how many"
        " directions share their variance.",
        OTHER,
    ),
    "activation_class_effective_rank": Meaning(
        "effective rank of the activations of a class",
        "The effective rank of the layer's outputs within a class, averaged over the classes.",
        OTHER,
    ),
    "activation_class_participation_ratio": Meaning(
        "participation ratio of the activations of a class",
        "The participation ratio of the layer's outputs within a class, averaged over the classes.",
        OTHER,
    ),
    "weight_effective_rank": Meaning(
        "effective rank of the weight",
        "The effective rank of the layer's weight as a matrix.",
        OTHER,
    ),
    "weight_stable_rank": Meaning(
        "stable rank of the weight",
        "The stable rank of the layer's weight as a matrix.",
        OTHER,
    ),
    "weight_spectral_norm": Meaning(
        "spectral norm of the weight",
        "The largest singular value of the layer's weight as a matrix.",
        LENGTH,
    ),
}


def meaning(column: str) -> Meaning:
    """Return the meaning of a column; an unknown one, such as the user's own, goes by its name."""
    return MEANINGS.get(column) or Meaning(column.replace("_", " "), "", OTHER)


def whole(value: float) -> str:
    """Return a whole number as text; "?" if a table lacks it, as one made by hand may."""
    return "?" if math.isnan(value) else str(int(value))
