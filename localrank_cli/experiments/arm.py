"""What an experiment trains, before anything is trained."""

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
        """Its name below the experiment's."""

    @property
    def n_checkpoints(self) -> int:
        """How many checkpoints are known beforehand; more may come."""

    def train(self, out: Path) -> Iterator[int]:
        """Trains the network and fills its folder.

        Args:
            out: Folder of the experiment.

        Yields:
            The step, after each checkpoint.
        """


@dataclass(frozen=True)
class SgdArm:
    """A ReLU network trained by SGD with momentum."""

    folder: str
    recipe: Recipe
    task: Task
    text: SeriesText

    @property
    def n_checkpoints(self) -> int:
        """How many checkpoints are known beforehand; a landmark comes on top."""
        return len(self.recipe.save_at)

    def train(self, out: Path) -> Iterator[int]:
        """Trains the network and fills its folder.

        Args:
            out: Folder of the experiment.

        Yields:
            The step, after each checkpoint.
        """
        for row, _ in train_series(self.recipe, self.task, self.text, out / self.folder):
            yield int(row[0])


@dataclass(frozen=True)
class Plan:
    """All networks of an experiment, and what is claimed of them."""

    name: str
    arms: tuple[Arm, ...]
    judge: Callable[[pd.DataFrame], Verdict]  # of the table with the columns of the arms
    wants_sigma: bool = False  # whether the judge looks at single singular values

    @property
    def n_checkpoints(self) -> int:
        """How many checkpoints are known beforehand."""
        return sum(arm.n_checkpoints for arm in self.arms)
