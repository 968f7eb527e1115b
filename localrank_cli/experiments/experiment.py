"""An experiment: the networks to train, its claims, and whether measurements support them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from localrank_cli.experiments.series import SeriesText, train_series
from localrank_cli.experiments.training import Recipe, Task


@dataclass(frozen=True)
class Claim:
    """One statement that a run can support or refute."""

    text: str
    expected: str
    measured: str
    holds: bool
    # False for observations, which do not depend on the claimed cause, or which nothing predicts.
    is_evidence: bool = True
    answer: str = ""  # the outcome of an open question, in place of words for a claim

    @property
    def word(self) -> str:
        """The outcome in a word or two."""
        if self.answer:
            return self.answer
        if not self.is_evidence:
            return "shown, not evidence"
        return "holds" if self.holds else "does not hold"


@dataclass(frozen=True)
class Verdict:
    """All claims of one experiment."""

    experiment: str
    setting: str  # what was trained, one sentence that names the optimizer
    claims: tuple[Claim, ...]
    conclusion: str = ""  # the answer to open questions

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
        if self.conclusion and self.holds:
            end = self.conclusion
        return "\n".join([*lines, "", f"verdict: {end}"]) + "\n"


def observation(text: str, expected: str, measured: str) -> Claim:
    """Return a claim that is only shown, not evidence."""
    return Claim(text, expected, measured, holds=True, is_evidence=False)


def live_claims(frame: pd.DataFrame) -> list[Claim]:
    """Return the claim that ranks measured while training are those of the checkpoints.

    Args:
        frame: The table of all arms, with the column live_rank of those that were measured so;
            without it there is no claim.
    """
    if "live_rank" not in frame.columns:
        return []
    # Tables of the Monitor have 9 digits.
    equal = np.isclose(frame["live_rank"], frame["local_rank"], rtol=1e-8, atol=0)
    return [
        Claim(
            "the ranks that Monitor measured while training are those of the saved checkpoints",
            "equal for every layer at every step",
            f"{int(equal.sum()):,} of {len(frame):,} are equal",
            bool(equal.all()),
        )
    ]


def seed_count(frame: pd.DataFrame) -> str:
    """Return how many seeds a table holds, in words for a setting."""
    count = frame["seed"].nunique()
    return f"{count} seed{'s' if count > 1 else ''}"


def span(values: list[float], digits: int = 1) -> str:
    """Format one number, or the smallest and largest of several: `3.0`, or `8.1 to 9.4`."""
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} to {high}"


class Arm(Protocol):
    """One network to train, in a folder of its own."""

    @property
    def folder(self) -> str:
        """The name of the folder inside the experiment's."""

    @property
    def n_checkpoints(self) -> int:
        """How many checkpoints are planned; more may follow."""

    def train(self, out: Path) -> Iterator[int]:
        """Train the network, fill its folder in `out`, and yield the step of each checkpoint."""


@dataclass(frozen=True)
class SgdArm:
    """A ReLU network trained by SGD with momentum."""

    folder: str
    recipe: Recipe
    task: Task
    text: SeriesText

    @property
    def n_checkpoints(self) -> int:
        """How many checkpoints are planned, without a landmark."""
        return len(self.recipe.save_at)

    def train(self, out: Path) -> Iterator[int]:
        """Train the network, fill its folder in `out`, and yield the step of each checkpoint."""
        for row, _ in train_series(self.recipe, self.task, self.text, out / self.folder):
            yield int(row[0])


def decay_arms(
    recipe: Recipe, seeds: int, content: Callable[[int, float], tuple[Task, SeriesText]]
) -> list[SgdArm]:
    """Return two networks for each seed, the first with weight decay, the second without.

    `content` returns what they learn and keep, of a seed and a weight decay.
    """
    arms = []
    for seed in range(recipe.seed, recipe.seed + seeds):
        for decay in (recipe.weight_decay, 0.0):
            folder = f"{'decay' if decay else 'no_decay'}_seed_{seed}"
            one = replace(recipe, seed=seed, weight_decay=decay)
            arms.append(SgdArm(folder, one, *content(seed, decay)))
    return arms


@dataclass(frozen=True)
class Experiment:
    """All networks of an experiment, and the judge of its claims."""

    name: str
    arms: tuple[Arm, ...]
    judge: Callable[[pd.DataFrame], Verdict]  # the table with the columns of all arms
    needs_sigma: bool = False  # whether the judge needs single singular values
    resumes: bool = False  # whether arms that are trained are left as they are

    @property
    def n_checkpoints(self) -> int:
        """How many checkpoints are planned."""
        return sum(arm.n_checkpoints for arm in self.arms)
