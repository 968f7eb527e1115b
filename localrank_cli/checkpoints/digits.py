"""Numbers written in names and texts: digit groups, and numbers that are no step."""

import re
from collections.abc import Iterable

MAX_STEP = 2**63 - 1  # tables hold steps as int64
# Stand for what has no int of its own; both lie outside the steps, so that they are refused.
TOO_LARGE = 10**30  # infinity, and more digits than are worth reading
NO_NUMBER = -TOO_LARGE  # NaN, and tensors without a value

Groups = tuple[str, ...]

JOINED, FIRST, UNSURE = "joined", "first", "unsure"

# `1,000` is one number; after it `_` may begin another group or another field. What runs into
# letters (`1k`, `7b`) or has decimals is no whole number.
_END = r"(?![0-9A-Za-z]|[.,]\d)"
NUMBER = rf"(\d++(?:,\d++)*+)((?:_\d++{_END})*+){_END}"
_COMMAS = re.compile(r"\d{1,3}(?:,\d{3})+")
_GROUPED = re.compile(r"\d{1,3}(?:[_,]\d{3})+")
_INTEGER = re.compile(r"[+-]?\d+")


def number_of(digits: str) -> int | None:
    """Read a whole number without a sign.

    Args:
        digits: Any text.

    Returns:
        The number; TOO_LARGE for more than 30 digits; None where it is none.
    """
    if not digits.isdecimal():
        return None
    # Long texts take Python quadratic time, and beyond 4300 digits it refuses them.
    kept = digits.lstrip("0")
    return int(kept or "0") if len(kept) <= 30 else TOO_LARGE


def number_in_text(text: str) -> int | None:
    """Read a whole number with an optional sign, plain or in groups of three digits.

    Args:
        text: Such as `1000`, `1_000`, `1,000` or `-5`.

    Returns:
        The number; None for anything else.
    """
    text = text.strip()
    if _GROUPED.fullmatch(text):
        text = text.replace("_", "").replace(",", "")
    if not _INTEGER.fullmatch(text):
        return None
    found = number_of(text.lstrip("+-"))
    return -found if found is not None and text.startswith("-") else found


def why_no_step(number: int) -> str:
    """Return why a number cannot be a step.

    Args:
        number: Any.

    Returns:
        What it is, for messages; empty for 0 to 2^63 - 1.
    """
    if 0 <= number <= MAX_STEP:
        return ""
    if number == NO_NUMBER:
        return "no number"
    return "infinite or over 30 digits long" if number >= TOO_LARGE else str(number)


def groups_of(match: re.Match[str]) -> Groups | None:
    """Split what NUMBER matched into its groups.

    Args:
        match: Whose last two groups are those of NUMBER.

    Returns:
        Texts of digits; None where commas do not separate groups of three digits.
    """
    head, tail = match.groups()[-2:]
    if "," not in head:
        return (head, *tail.split("_")[1:])
    return (head.replace(",", ""),) if _COMMAS.fullmatch(head) else None


def joined(groups: Groups) -> int | None:
    """Return the number that digit groups make together.

    Args:
        groups: Texts of digits.

    Returns:
        The number; None where they are not groups of three digits after a first of one to three.
    """
    if len(groups[0]) > 3 or any(len(group) != 3 for group in groups[1:]):
        return None
    return number_of("".join(groups))


def how_to_read(found: Iterable[Groups], *, is_step: bool) -> str:
    """Decide how `1_000` is meant in the names of one series.

    Args:
        found: The groups after the same kind of word in all names.
        is_step: Whether that word says that a step follows; else the first group may be an epoch
            or a version, and the second a number of its own (fairseq's checkpoint_2_500).

    Returns:
        JOINED for one number in groups of three digits, FIRST where later groups are other
        fields, UNSURE where it may be either.
    """
    every = set(found)
    several = [groups for groups in every if len(groups) > 1]
    if not several:
        return FIRST
    single = [groups[0] for groups in every if len(groups) == 1]
    if any(joined(groups) is None for groups in several):
        # Here later groups are fields of their own, at least in some names.
        doubtful = is_step or any(groups[-1] == "000" for groups in several)
        return UNSURE if doubtful else FIRST
    if is_step:
        # With a seed or a width at the end, every name has it, and the same one.
        ends = {groups[-1] for groups in several}
        is_field = len(several) > 1 and len(ends) == 1 and ends != {"000"} and not single
        return UNSURE if is_field else JOINED
    if any(len(text) > 3 for text in single):
        return UNSURE
    return JOINED if _speaks_for_groups(several, single) else UNSURE


def _speaks_for_groups(several: list[Groups], single: list[str]) -> bool:
    if any(len(groups) > 2 for groups in several):
        return True
    if any(groups[0].startswith("0") for groups in several):
        return False
    # A counter of its own is not written 000, and step 500 before 1_000 is no epoch.
    below = max((int(text) for text in single), default=0)
    highest = max(int(groups[0]) for groups in several)
    return any(groups[-1] == "000" for groups in several) or below >= max(100, highest + 1)
