"""An experiment before training: its networks, and the judge of its claims."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pandas as pd

from localrank_cli.experiments.claims import Verdict
from localrank_cli.experiments.series import SeriesText, train_series
from localrank_cli.experiments.training import Recipe, Task


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


@dataclass(frozen=True)
class Experiment:
    """All networks of an experiment, and the judge of its claims."""

    name: str
    arms: tuple[Arm, ...]
    judge: Callable[[pd.DataFrame], Verdict]  # the table with the columns of all arms
    needs_sigma: bool = False  # whether the judge needs single singular values

    @property
    def n_checkpoints(self) -> int:
        """How many checkpoints are planned."""
        return sum(arm.n_checkpoints for arm in self.arms)
