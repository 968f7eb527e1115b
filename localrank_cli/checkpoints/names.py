"""The training step in a name."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from localrank_cli.errors import UsageError

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


# The words before a step, the clearest first.
_STEPS = (
    r"(?:global[_-]?)?steps?",
    r"iter(?:ation)?s?",
    r"ep\d+-ba",  # Composer: ep0-ba100-rank0
)
_CHECKPOINT = r"checkpoint|ckpt|model|weights|net|snapshot"  # a step, or something else
_EPOCH = r"epochs?"
_GLOBAL = re.compile(r"(?<![A-Za-z])global[_-]?steps?[=_\-.]?\d", re.IGNORECASE)
_ALONE = re.compile(rf"^{NUMBER}$")
_HASHES = (40, 64)  # lengths of SHA-1 and SHA-256, which may consist of digits by chance
# torchtune puts the number of the part, of four digits, and then the epoch.
_TORCHTUNE = re.compile(r"^(?:hf|meta|torchtune)_model(?:_\d{4})?_(\d+)$")


@dataclass(frozen=True)
class NameRule:
    """The user's own way to tell a step from a name: `--step-regex`."""

    regex: re.Pattern[str] | None = None

    @classmethod
    def parse(cls, text: str) -> "NameRule":
        """Reads `--step-regex`.

        Args:
            text: A regular expression with one group, or with a group named `step`.

        Returns:
            The rule.

        Raises:
            UsageError: If it is no regular expression, or it is not clear which group is the step.
        """
        try:
            regex = re.compile(text)
        except re.error as error:
            raise UsageError(
                f"--step-regex {text}: is no regular expression ({error}).",
                "One group must match the step: --step-regex 'it_(\\d+)'.",
            ) from error
        if "step" not in regex.groupindex and regex.groups != 1:
            raise UsageError(
                f"--step-regex {text}: has {regex.groups} groups, expected one.",
                "Put the step in parentheses, or name its group: --step-regex '(?P<step>\\d+)'.",
            )
        return cls(regex)

    @classmethod
    def of_pattern(cls, text: str) -> "NameRule":
        """Return the rule of literal text with one `{step}`; it cannot take long on any name."""
        before, _, after = text.partition("{step}")
        # The number is whole, unless the text itself cuts digits off.
        left = "" if before[-1:].isdecimal() else "(?<![0-9])"
        right = "" if after[:1].isdecimal() else "(?![0-9])"
        number = f"{left}([0-9]+){right}"
        return cls(re.compile(re.escape(before) + number + re.escape(after)))

    def step(self, name: str) -> int | None:
        """Finds the step in a name.

        Args:
            name: Of a file, with its suffix, or of a folder.

        Returns:
            The step; None where the expression finds none, or something that is no number.
        """
        match = self.regex.search(name) if self.regex is not None else None
        if match is None:
            return None
        text = match["step"] if "step" in match.groupdict() else match[1]
        return number_in_text((text or "").strip("_,"))


NO_RULE = NameRule()


@dataclass(frozen=True)
class StepRule:
    """Where the user wants steps to be looked for."""

    names: NameRule = NO_RULE  # --step-regex
    source: str = ""  # --step-from; empty: all in order of trust

    @classmethod
    def parse(cls, regex: str | None, source: str | None, pattern: str | None = None) -> "StepRule":
        """Read `--step-regex`, `--step-from` and `--step-pattern`.

        Raises:
            UsageError: If the expression is none, or it is not clear which group is the step.
        """
        names = NO_RULE
        if regex is not None:
            names = NameRule.parse(regex)
        elif pattern is not None:
            names = NameRule.of_pattern(pattern)
        return cls(names, source or "")


@dataclass(frozen=True)
class Named:
    """What a name says of the step, read together with the other names of its series."""

    step: int | None = None
    unsure: Groups = ()  # digit groups that may be one number or several, such as 2 and 500


def read_names(stems: Iterable[str]) -> Mapping[str, Named]:
    """Read the steps in the names of a series.

    Known are `step_100`, `epoch=1-step=10`, `iter_7`, `checkpoint-500`, `model_100`, `ckpt_9` and
    names that are a number; the first of these words that is there decides, so that the step wins
    over a version or a seed in the same name. How digit groups are meant (`step_1_000`) is decided
    for all names of the series at once.

    Args:
        stems: Names without their suffix.

    Returns:
        Name -> what it says.
    """
    found = {stem: _find(stem) for stem in stems}
    ways = {
        word: how_to_read(
            (groups for other, groups in found.values() if other == word and groups),
            is_step=word in _STEPS,
        )
        for word in {word for word, _ in found.values()}
    }
    return {stem: _named(groups, ways[word]) for stem, (word, groups) in found.items()}


def step_in_name(stem: str) -> int | None:
    """Read a step from the name of a file or folder by itself.

    Args:
        stem: The name without its suffix.

    Returns:
        The step, which may be too large for the table, or None; where digit groups can be read in
        two ways, the first group.
    """
    named = read_names([stem])[stem]
    return number_of(named.unsure[0]) if named.unsure else named.step


def is_named_by_steps(stem: str) -> bool:
    """Return whether a name says that its number counts steps.

    Args:
        stem: The name without its suffix.

    Returns:
        True for step_3 and iter_3; False for checkpoint-3 and 3, which may be of epochs.
    """
    return _find(stem)[0] in _STEPS


def is_named_global(stem: str) -> bool:
    """Return whether a name says that its step counts from the start of training.

    Args:
        stem: The name without its suffix.

    Returns:
        True for global_step_3.
    """
    return _GLOBAL.search(stem) is not None


def read_epochs(stems: Iterable[str]) -> Mapping[str, int | None]:
    """Read the epochs in the names of a series, such as `epoch_3` or `epoch=3`.

    Args:
        stems: Names without their suffix.

    Returns:
        Name -> epoch, or None.
    """
    found = {stem: _after(_EPOCH, stem) for stem in stems}
    way = how_to_read((groups for groups in found.values() if groups), is_step=False)
    epochs: dict[str, int | None] = {}
    for stem, groups in found.items():
        torchtune = _TORCHTUNE.match(stem)
        if torchtune:
            epochs[stem] = number_of(torchtune[1])
        else:
            # epoch_3_500 is more likely epoch 3 and a step than epoch 3500.
            epochs[stem] = _named(groups, JOINED if way == JOINED else FIRST).step
    return epochs


def epoch_in_name(stem: str) -> int | None:
    """Read an epoch from a name by itself.

    Args:
        stem: The name without its suffix.

    Returns:
        The epoch, or None.
    """
    return read_epochs([stem])[stem]


def _find(stem: str) -> tuple[str, Groups | None]:
    """The word that decides, and the number after it; no word for a name that is a number."""
    alone = _ALONE.match(stem)
    if alone:
        is_hash = stem.isdecimal() and len(stem) in _HASHES
        return "", None if is_hash else groups_of(alone)
    if _TORCHTUNE.match(stem):
        return "", None
    for words in _STEPS:
        found = _after(words, stem)
        # A step that cannot be read (step_1k) must not give way to another number of the name.
        if found or _search(words, r"\d", stem):
            return words, found
    return _CHECKPOINT, _after(_CHECKPOINT, stem)


def _after(words: str, stem: str) -> Groups | None:
    match = _search(words, NUMBER, stem)
    return groups_of(match) if match else None


def _search(words: str, number: str, stem: str) -> re.Match[str] | None:
    pattern = rf"(?<![A-Za-z])(?:{words})[=_\-.]?{number}"
    return re.search(pattern, stem, flags=re.IGNORECASE)


def _named(groups: Groups | None, way: str) -> Named:
    if groups is None:
        return Named()
    whole = joined(groups) if len(groups) > 1 else None
    if way == JOINED and whole is not None:
        return Named(whole)
    if way == UNSURE and whole is not None:
        return Named(unsure=groups)
    # step_1_000_5 may be step 1000 and something of its own.
    if len(groups) > 2 and joined(groups[:2]) is not None:
        return Named(unsure=groups)
    return Named(number_of(groups[0]))
