"""Claims, what was measured, and whether the measurement supports them."""

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Claim:
    """One statement that a run can support or refute."""

    text: str
    expected: str
    measured: str
    holds: bool
    # False for what is only shown: it does not depend on what is claimed to matter, or nothing
    # predicts it.
    is_evidence: bool = True

    @property
    def word(self) -> str:
        """The outcome in a word or two."""
        if not self.is_evidence:
            return "shown, not evidence"
        return "holds" if self.holds else "does not hold"


@dataclass(frozen=True)
class Verdict:
    """All claims of one experiment."""

    experiment: str
    setting: str  # what was trained, one sentence that names the optimiser
    claims: tuple[Claim, ...]

    @property
    def holds(self) -> bool:
        """Whether every claim that counts as evidence holds."""
        return all(claim.holds for claim in self.claims if claim.is_evidence)

    @property
    def text(self) -> str:
        """The verdict as printed and as written to a file."""
        lines = [f"{self.experiment}: {self.setting}", ""]
        for claim in self.claims:
            lines += [
                f"{claim.word}: {claim.text}",
                f"    expected: {claim.expected}",
                f"    measured: {claim.measured}",
            ]
        end = "every claim holds" if self.holds else "NOT every claim holds"
        if not any(claim.is_evidence for claim in self.claims):
            end = "none; published figures are shown for comparison only"
        return "\n".join([*lines, "", f"verdict: {end}"]) + "\n"


def shown(text: str, expected: str, measured: str) -> Claim:
    """Return a claim that is only shown, not evidence."""
    return Claim(text, expected, measured, holds=True, is_evidence=False)


def seed_count(frame: pd.DataFrame) -> str:
    """Return how many seeds a table holds, in words for a setting."""
    count = frame["seed"].nunique()
    return f"{count} seed{'s' if count > 1 else ''}"


def span(values: list[float], digits: int = 1) -> str:
    """Format one number, or the smallest and largest of several: `3.0`, or `8.1 to 9.4`."""
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} to {high}"
