"""The training step that a name tells."""

import re
from dataclasses import dataclass

from localrank_cli.errors import UsageError

_MOST_DIGITS = 30

_WORDS = (
    r"(?:global[_-]?)?steps?",
    r"iter(?:ation)?s?",
    r"ep\d+-ba",  # Composer: ep0-ba100-rank0
    r"checkpoint|ckpt|model|weights|net|snapshot",
)
_EPOCH = r"epochs?"
_NUMBER = r"[=_\-.]?(\d+)(?![0-9A-Za-z]|\.\d)"
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
        digits = (text or "").replace("_", "").replace(",", "")
        return number_of(digits)


def number_of(digits: str) -> int | None:
    """Reads a step or an epoch.

    Args:
        digits: Any text.

    Returns:
        The number; None where it is none, or too long to be a step.
    """
    # Long texts take Python quadratic time, and beyond 4300 digits it refuses them.
    return int(digits) if digits.isdecimal() and len(digits) < _MOST_DIGITS else None


NO_RULE = NameRule()
SOURCES = ("contents", "name", "epoch")


@dataclass(frozen=True)
class StepRule:
    """Where the user wants steps to be looked for."""

    names: NameRule = NO_RULE  # --step-regex
    source: str = ""  # --step-from: one of SOURCES, or empty for all in order of trust

    @classmethod
    def parse(cls, regex: str | None, source: str | None) -> "StepRule":
        """Reads `--step-regex` and `--step-from`.

        Args:
            regex: As for `NameRule.parse`, or None.
            source: One of SOURCES, or None.

        Returns:
            The rule.

        Raises:
            UsageError: If one of them is not known.
        """
        if source is not None and source not in SOURCES:
            raise UsageError(
                f"--step-from {source}: not known.", f"Known are {', '.join(SOURCES)}."
            )
        names = NO_RULE if regex is None else NameRule.parse(regex)
        return cls(names, source or "")


def step_in_name(stem: str) -> int | None:
    """Reads a step from a file's or folder's name.

    Known are `step_100`, `epoch=1-step=10`, `iter_7`, `checkpoint-500`, `model_100`, `ckpt_9` and
    names that are a number; the first of these words that is there decides, so that the step wins
    over a version or a seed in the same name.

    Args:
        stem: The name without its suffix.

    Returns:
        The step as an integer, or None.
    """
    if stem.isdecimal():
        return number_of(stem)
    if _TORCHTUNE.match(stem):
        return None
    for words in _WORDS:
        found = _after(words, stem)
        if found is not None:
            return found
    return None


def is_named_by_steps(stem: str) -> bool:
    """Tells whether a name says that its number counts steps.

    Args:
        stem: The name without its suffix.

    Returns:
        True for step_3 and iter_3; False for checkpoint-3 and 3, which may be of epochs.
    """
    return any(_after(words, stem) is not None for words in _WORDS[:-1])


def epoch_in_name(stem: str) -> int | None:
    """Reads an epoch from a name such as `epoch_3` or `epoch=3`.

    Args:
        stem: The name without its suffix.

    Returns:
        The epoch, or None.
    """
    torchtune = _TORCHTUNE.match(stem)
    return number_of(torchtune[1]) if torchtune else _after(_EPOCH, stem)


def _after(words: str, stem: str) -> int | None:
    match = re.search(rf"(?<![A-Za-z])(?:{words}){_NUMBER}", stem, flags=re.IGNORECASE)
    return number_of(match.group(1)) if match else None
