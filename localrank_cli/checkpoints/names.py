"""Steps and epochs in names: `step_1_000`, `epoch=1-step=10`, `--step-regex`.

How digit groups are meant (`step_1_000`) is decided for all names of a series at once.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from localrank_cli.errors import UsageError

SETTINGS_FILE = "localrank.toml"  # of a series
MAX_STEP = 2**63 - 1  # tables hold steps as int64
# Placeholders for values without an int; both lie outside the steps, so that they are refused.
TOO_LARGE = 10**30  # infinity, and numbers of over 30 digits
NO_NUMBER = -TOO_LARGE  # NaN, and tensors without a value

Groups = tuple[str, ...]

JOINED, FIRST, UNSURE = "joined", "first", "unsure"

# `1,000` and `1'000` are one number; after it `_`, `-` or a space may begin another group, or a
# field of its own. Digits that run into letters (`1k`, `7b`) or have decimals are no whole number.
_END = r"(?![0-9A-Za-z]|[.,]\d)"
_COMMA, _DASH = "[,'\u2019]", "[- \u00a0\u2009\u202f]"
_HEAD = rf"(\d++(?:{_COMMA}\d++)*+)"
NUMBER = rf"{_HEAD}((?:(?:_|{_DASH})\d++{_END})*+){_END}"
_COMMAS = re.compile(rf"\d{{1,3}}(?:{_COMMA}\d{{3}})+")
_GROUPED = re.compile(rf"\d{{1,3}}(?:(?:_|{_COMMA}|{_DASH})\d{{3}})+")
_INTEGER = re.compile(r"[+-]?\d+")
# The words before a step, the clearest first.
_STEPS = (
    r"(?:global[_-]?)?steps?",
    r"iter(?:ation)?s?",
    r"ep\d+-ba",  # Composer: ep0-ba100-rank0
)
_CHECKPOINT = r"checkpoint|ckpt|model|weights|net|snapshot"  # a step, or something else
_EPOCH = r"epochs?"
_GLOBAL = re.compile(r"(?<![A-Za-z])global[_-]?steps?[=_\-.]?\d", re.IGNORECASE)
_ALONE = re.compile(rf"^{_HEAD}((?:_\d++)*+)$")  # 2024-01-02 is a date
_HASHES = (40, 64)  # lengths of SHA-1 and SHA-256, which may consist of digits by chance
# torchtune puts the number of the part, of four digits, and then the epoch.
_TORCHTUNE = re.compile(r"^(?:hf|meta|torchtune)_model(?:_\d{4})?_(\d+)$")


def number_of(digits: str) -> int | None:
    """Return a whole number without a sign; TOO_LARGE for over 30 digits, None for other text."""
    if not digits.isdecimal():
        return None
    # Long texts take Python quadratic time, and beyond 4300 digits it refuses them.
    kept = digits.lstrip("0")
    return int(kept or "0") if len(kept) <= 30 else TOO_LARGE


def number_in_text(text: str) -> int | None:
    """Return a whole number such as `1000`, `1_000`, `1,000` or `-5`; None for anything else."""
    text = text.strip()
    if _GROUPED.fullmatch(text):
        text = re.sub(r"\D", "", text)
    if not _INTEGER.fullmatch(text):
        return None
    found = number_of(text.lstrip("+-"))
    return -found if found is not None and text.startswith("-") else found


def step_fault(number: int) -> str:
    """Return why a number cannot be a step, for messages; empty for 0 to 2^63 - 1."""
    if 0 <= number <= MAX_STEP:
        return ""
    if number == NO_NUMBER:
        return "no number"
    return "infinite or over 30 digits long" if number >= TOO_LARGE else str(number)


def groups_of(match: re.Match[str]) -> Groups | None:
    """Return the digit groups that NUMBER matched as the last two groups of `match`.

    None where commas do not separate groups of three digits.
    """
    head, tail = match.groups()[-2:]
    if head.isdecimal():
        return (head, *re.split(r"\D", tail)[1:])
    return (re.sub(r"\D", "", head),) if _COMMAS.fullmatch(head) else None


def joint_number(groups: Groups) -> int | None:
    """Return the number that digit groups make together.

    None where they are not groups of three digits after a first group of one to three.
    """
    if len(groups[0]) > 3 or any(len(group) != 3 for group in groups[1:]):
        return None
    return number_of("".join(groups))


def choose_reading(found: Iterable[Groups], *, is_step: bool) -> str:
    """Decide how `1_000` is meant in the names of one series.

    Args:
        found: The groups after the same kind of word in all names.
        is_step: Whether that word announces a step. If not, the first group may be an epoch or a
            version, and the second a number of its own (fairseq's checkpoint_2_500).

    Returns:
        JOINED for one number in groups of three digits, FIRST where later groups are other fields,
        UNSURE where it may be either.
    """
    every = set(found)
    several = [groups for groups in every if len(groups) > 1]
    if not several:
        return FIRST
    single = [groups[0] for groups in every if len(groups) == 1]
    if any(joint_number(groups) is None for groups in several):
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
    # A separate counter is not written 000, and after step 500, 1_000 is not epoch 1.
    below = max((int(text) for text in single), default=0)
    highest = max(int(groups[0]) for groups in several)
    return any(groups[-1] == "000" for groups in several) or below >= max(100, highest + 1)


@dataclass(frozen=True)
class NameRule:
    """How the user wants a step to be read from a name."""

    regex: re.Pattern[str] | None = None
    option: str = ""  # `--step-regex` or `--step-pattern`, for messages

    @classmethod
    def parse(cls, text: str) -> "NameRule":
        """Return the rule for a regular expression with one group, or with a group named `step`.

        Raises:
            UsageError: If it is not a regular expression, or it is not clear which group is the
                step.
        """
        try:
            regex = re.compile(text)
        except re.error as error:
            raise UsageError(
                f"--step-regex {text}: is not a regular expression ({error}).",
                "One group must match the step: --step-regex 'it_(\\d+)'.",
            ) from error
        if "step" not in regex.groupindex and regex.groups != 1:
            raise UsageError(
                f"--step-regex {text}: has {regex.groups} groups, expected one.",
                "Put the step in parentheses, or name its group: --step-regex '(?P<step>\\d+)'.",
            )
        return cls(regex, "--step-regex")

    @classmethod
    def of_pattern(cls, text: str) -> "NameRule":
        """Return the rule of literal text with one `{step}`; it cannot take long on any name."""
        before, _, after = text.partition("{step}")
        # The number is whole, unless the text itself cuts digits off.
        left = "" if before[-1:].isdecimal() else "(?<![0-9])"
        right = "" if after[:1].isdecimal() else "(?![0-9])"
        number = f"{left}([0-9]+){right}"
        regex = re.compile(re.escape(before) + number + re.escape(after))
        return cls(regex, "--step-pattern")

    def step(self, name: str) -> int | None:
        """Return the step in the name of a file (with its suffix) or folder, or None."""
        match = self.regex.search(name) if self.regex is not None else None
        if match is None:
            return None
        text = match["step"] if "step" in match.groupdict() else match[1]
        return number_in_text((text or "").strip("_,"))


NO_RULE = NameRule()


@dataclass(frozen=True)
class StepRule:
    """Where the user wants steps to be read from."""

    names: NameRule = NO_RULE  # --step-regex or --step-pattern
    source: str = ""  # --step-from; empty: all in order of trust

    @classmethod
    def parse(cls, regex: str | None, source: str | None, pattern: str | None = None) -> "StepRule":
        """Read `--step-regex`, `--step-from` and `--step-pattern`; an empty pattern is none.

        Raises:
            UsageError: If the expression is none, or it is not clear which group is the step.
        """
        names = NO_RULE
        if regex is not None:
            names = NameRule.parse(regex)
        elif pattern:
            names = NameRule.of_pattern(pattern)
        return cls(names, source or "")


@dataclass(frozen=True)
class NameStep:
    """The step in a name, read together with the other names of its series."""

    step: int | None = None
    unsure: Groups = ()  # digit groups that may be one number or several, such as 2 and 500


def read_names(stems: Iterable[str]) -> Mapping[str, NameStep]:
    """Return the steps in the names of a series, by name without suffix.

    It reads `step_100`, `epoch=1-step=10`, `iter_7`, `checkpoint-500`, `model_100`, `ckpt_9` and
    names that are a number. The first of these words that is present decides, so that the step wins
    over a version or a seed in the same name.
    """
    found = {stem: _find(stem) for stem in stems}
    ways = {
        word: _way({stem: groups for stem, (other, groups) in found.items() if other == word}, word)
        for word in {word for word, _ in found.values()}
    }
    return {stem: _name_step(groups, ways[word]) for stem, (word, groups) in found.items()}


def _way(found: Mapping[str, Groups | None], word: str) -> str:
    several = {stem: groups for stem, groups in found.items() if groups and len(groups) > 1}
    is_dashed = any("_".join(groups) not in stem for stem, groups in several.items())
    every = [groups for groups in found.values() if groups]
    way = choose_reading(every, is_step=word in _STEPS and not is_dashed)
    # More often than `_`, a dash begins a field of its own (step-100-512): only 000 shows that it
    # does not.
    if is_dashed and way == JOINED and not any("000" in part[1:] for part in several.values()):
        return UNSURE
    return way


def step_in_name(stem: str) -> int | None:
    """Return the step in a single name without suffix; of unclear digit groups, the first."""
    named = read_names([stem])[stem]
    return number_of(named.unsure[0]) if named.unsure else named.step


def names_step(stem: str) -> bool:
    """Return whether a name says that its number counts steps: step_3, not checkpoint-3 or 3."""
    return _find(stem)[0] in _STEPS


def names_global_step(stem: str) -> bool:
    """Return whether a name says that its step counts from the start of training: global_step_3."""
    return _GLOBAL.search(stem) is not None


def read_epochs(stems: Iterable[str]) -> Mapping[str, int | None]:
    """Return the epochs in the names of a series (`epoch_3`, `epoch=3`), by name without suffix."""
    found = {stem: _after(_EPOCH, stem) for stem in stems}
    way = choose_reading((groups for groups in found.values() if groups), is_step=False)
    epochs: dict[str, int | None] = {}
    for stem, groups in found.items():
        torchtune = _TORCHTUNE.match(stem)
        if torchtune:
            epochs[stem] = number_of(torchtune[1])
        else:
            # epoch_3_500 is more likely epoch 3 and a step than epoch 3500.
            epochs[stem] = _name_step(groups, JOINED if way == JOINED else FIRST).step
    return epochs


def epoch_in_name(stem: str) -> int | None:
    """Return the epoch in a single name without suffix, or None."""
    return read_epochs([stem])[stem]


def _find(stem: str) -> tuple[str, Groups | None]:
    """Return the word that decides, and the number after it; no word for a bare number."""
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
    # `model 2` is a second copy, or a model of two parts.
    between = r"[=_\-.]?" if words == _CHECKPOINT else r"[=_\-. ]?"
    pattern = rf"(?<![A-Za-z])(?:{words}){between}{number}"
    return re.search(pattern, stem, flags=re.IGNORECASE)


def _name_step(groups: Groups | None, way: str) -> NameStep:
    if groups is None:
        return NameStep()
    whole = joint_number(groups) if len(groups) > 1 else None
    if way == JOINED and whole is not None:
        return NameStep(whole)
    if way == UNSURE and whole is not None:
        return NameStep(unsure=groups)
    # step_1_000_5 may be step 1000 and something of its own.
    if len(groups) > 2 and joint_number(groups[:2]) is not None:
        return NameStep(unsure=groups)
    return NameStep(number_of(groups[0]))
