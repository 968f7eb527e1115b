"""What is claimed, what was measured, and whether the one bears out the other."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """One statement that a run can bear out or refute."""

    text: str
    expected: str
    measured: str
    holds: bool
    # False: shown beside the others because it is the same with and without what is claimed to
    # matter, or because nothing predicts it.
    is_evidence: bool = True

    @property
    def word(self) -> str:
        """How it came out, in a word or two."""
        if not self.is_evidence:
            return "shown, no evidence"
        return "holds" if self.holds else "does not hold"


@dataclass(frozen=True)
class Verdict:
    """All claims of one experiment."""

    experiment: str
    setting: str  # what was trained, one sentence that names the optimiser
    claims: tuple[Claim, ...]

    @property
    def holds(self) -> bool:
        """Whether every claim that is evidence holds."""
        return all(claim.holds for claim in self.claims if claim.is_evidence)

    @property
    def text(self) -> str:
        """The verdict for a person, the same on a terminal and in a file."""
        lines = [f"{self.experiment}: {self.setting}", ""]
        for claim in self.claims:
            lines += [
                f"{claim.word}: {claim.text}",
                f"    expected: {claim.expected}",
                f"    measured: {claim.measured}",
            ]
        end = "every claim holds" if self.holds else "NOT every claim holds"
        if not any(claim.is_evidence for claim in self.claims):
            end = "none: figures are put side by side, and nothing is judged"
        return "\n".join([*lines, "", f"verdict: {end}"]) + "\n"


def span(values: list[float], digits: int = 1) -> str:
    """Shows one number, or the least and the largest of several.

    Args:
        values: One for each seed; at least one.
        digits: Behind the point.

    Returns:
        `3.0`, or `8.1 to 9.4`.
    """
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} to {high}"
