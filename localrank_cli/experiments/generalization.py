"""Does a low local rank go with a small generalization gap? A sweep of small networks.

Every network is trained to the same training loss, as in the protocols of Jiang et al. 2020
("Fantastic Generalization Measures and Where to Find Them") and Dziugaite et al. 2020 ("In Search
of Robust Measures of Generalization"). `correlation.py` has the statistics.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from localrank_cli.errors import listed
from localrank_cli.experiments.correlation import (
    Estimate,
    Rows,
    granulated,
    kendall,
    n_groups,
    over_cells,
    partial,
)
from localrank_cli.experiments.experiment import (
    Claim,
    Experiment,
    Verdict,
    observation,
    seed_count,
)
from localrank_cli.experiments.series import (
    SeriesText,
    output_errors,
    save_step,
    settings_text,
    write_metrics,
)
from localrank_cli.experiments.training import MOMENTUM, Task, batches, figures, mlp

NAME = "generalization"
TARGET = 0.05  # nats, of the training loss at which every training stops
MOST_STEPS = 10_000
RTOL = 0.1
CLASSES = 4
CHANCE = 1 / CLASSES
RANDOM = 1.0  # label noise of the control: no label means anything
_INPUTS, _TEACHER = 20, 8
_BATCH, _CHECK_EVERY = 50, 5
_TEST = 2_000
_POINTS = 64
_LINES = 2  # of metrics.csv: names and values


@dataclass(frozen=True)
class Cell:
    """The settings of one network but for its seed; each is an axis of the sweep."""

    width: int = 64
    depth: int = 2  # hidden layers
    learning_rate: float = 0.05
    weight_decay: float = 0.0
    label_noise: float = 0.0  # share of labels, to train on and to test on, that are drawn anew
    samples: int = 400

    @property
    def name(self) -> str:
        """The name of its folders, without the seed."""
        return (
            f"w{self.width}_d{self.depth}_lr{self.learning_rate:g}_wd{self.weight_decay:g}"
            f"_ln{self.label_noise:g}_n{self.samples}"
        )


AXES = tuple(asdict(Cell()))
# One axis at a time from the base, for 12 cells.
_STAR: Mapping[str, tuple[Any, ...]] = {
    "width": (32, 128),
    "depth": (3,),
    "learning_rate": (0.02, 0.1),
    "weight_decay": (1e-3, 3e-3),
    "label_noise": (0.1, 0.2),
    "samples": (200, 800),
}
_GRID: Mapping[str, tuple[Any, ...]] = {
    "width": (32, 128),
    "depth": (2, 3),
    "learning_rate": (0.02, 0.1),
    "weight_decay": (0.0, 1e-3, 3e-3),
    "label_noise": (0.0, 0.2),
    "samples": (200, 800),
}
_MOST_SAMPLES = 800


def cells(quick: bool) -> list[Cell]:
    """Return the cells of the sweep: a star around the base, or the whole grid of 96."""
    if quick:
        return [
            Cell(),
            *(replace(Cell(), **{axis: one}) for axis, ones in _STAR.items() for one in ones),
        ]
    return [Cell(**dict(zip(_GRID, one, strict=True))) for one in product(*_GRID.values())]


def controls(quick: bool) -> list[Cell]:
    """Return four cells of the sweep, of two widths and depths, with random labels."""
    few = [Cell(), Cell(width=32), Cell(width=128), Cell(depth=3)]
    grid = [
        Cell(width=width, depth=depth, learning_rate=0.1, samples=200)
        for width, depth in product(_GRID["width"], _GRID["depth"])
    ]
    return [replace(cell, label_noise=RANDOM) for cell in (few if quick else grid)]


def draw_task(cell: Cell, seed: int) -> Task:
    """Draw the data of a cell: a fixed teacher, and inputs and noise that the seed decides."""
    fixed = torch.Generator().manual_seed(0)
    inner = torch.randn(_TEACHER, _INPUTS, generator=fixed) / _INPUTS**0.5
    outer = torch.randn(CLASSES, _TEACHER, generator=fixed)
    generator = torch.Generator().manual_seed(seed + 1)
    # Of the largest sample, so that smaller ones are parts of it.
    count = max(_MOST_SAMPLES, cell.samples) + _TEST
    x = torch.randn(count, _INPUTS, generator=generator)
    y = ((2 * x @ inner.mT).tanh() @ outer.mT).argmax(dim=1)
    anew = torch.rand(count, generator=generator) < cell.label_noise
    y = torch.where(anew, torch.randint(CLASSES, (count,), generator=generator), y)
    train = slice(_TEST, _TEST + cell.samples)
    return Task(
        train=(x[train], y[train]),
        test=(x[:_TEST], y[:_TEST]),
        loss=nn.functional.cross_entropy,
        score=lambda output, target: (output.argmax(dim=1) == target).float().mean(),
        score_name="accuracy",
    )


@dataclass(frozen=True)
class SweepArm:
    """One network, trained until its training loss is `TARGET`."""

    cell: Cell
    seed: int

    @property
    def folder(self) -> str:
        """The name of the folder inside the experiment's."""
        return f"{self.cell.name}_seed_{self.seed}"

    @property
    def n_checkpoints(self) -> int:
        """How many checkpoints there are."""
        return 1

    def is_done(self, out: Path) -> bool:
        """Return whether the network is trained: its metrics are written last, of two lines."""
        try:
            text = (out / self.folder / "metrics.csv").read_text(encoding="utf-8")
        except FileNotFoundError:
            return False
        return text.count("\n") == 2

    def train(self, out: Path) -> Iterator[int]:
        """Train the network, unless its folder is whole, and yield the step where it stopped."""
        folder = out / self.folder
        if self.is_done(out):
            return
        task = draw_task(self.cell, self.seed)
        settings = {"data": "inputs.npz", "activation": "relu", "rtol": RTOL, "points": _POINTS}
        columns = {**asdict(self.cell), "seed": self.seed}
        text = SeriesText(
            settings_text(settings, columns), "inputs.npz", {"x": task.test[0][:500].numpy()}
        )
        step, net = self._trained(task)
        loss, train, test = figures(net, task)
        with torch.no_grad():
            test_loss = task.loss(net(task.test[0]), task.test[1]).item()
            norm = sum(part.double().square().sum().item() for part in net.parameters()) ** 0.5
        head = ["step", "loss", "test_loss", "train_accuracy", "test_accuracy", "weight_norm"]
        row = [str(step), *(f"{one:.9g}" for one in (loss, test_loss, train, test, norm))]
        with output_errors(folder):
            text.write(folder)
            save_step(net, folder, step)
            write_metrics(folder, [head, row])
        yield step

    def _trained(self, task: Task) -> tuple[int, nn.Sequential]:
        """Return the step and the network where the loss is first reached, or at the last step."""
        cell = self.cell
        torch.manual_seed(self.seed)
        net = mlp((_INPUTS, *[cell.width] * cell.depth, CLASSES))
        optimizer = torch.optim.SGD(
            net.parameters(), cell.learning_rate, MOMENTUM, weight_decay=cell.weight_decay
        )
        x, y = task.train
        order = batches(len(x), _BATCH, torch.Generator().manual_seed(self.seed))
        for step in range(MOST_STEPS):
            if step % _CHECK_EVERY == 0 and _loss(net, task) <= TARGET:
                return step, net
            batch = next(order)
            optimizer.zero_grad()
            torch.autograd.backward(task.loss(net(x[batch]), y[batch]))
            optimizer.step()
        return MOST_STEPS, net


@torch.no_grad()
def _loss(net: nn.Module, task: Task) -> float:
    return task.loss(net(task.train[0]), task.train[1]).item()


def plan(seeds: int, quick: bool, part: tuple[int, int] = (0, 1)) -> Experiment:
    """Plan the sweep and its controls; `part` (I, N) trains only each N-th network, from I on."""
    sweep = [SweepArm(cell, seed) for cell in cells(quick) for seed in range(seeds)]
    # With --quick one seed each: 40 networks in all for 3 seeds.
    random = [
        SweepArm(cell, seed) for cell in controls(quick) for seed in range(1 if quick else seeds)
    ]
    return Experiment(NAME, (*sweep, *random)[part[0] :: part[1]], judge, resumes=True)


def networks(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each network from the table of all: its measures, and its gap.

    `rank` is the mean over the hidden layers of the local rank, `jacobian_norm` that of the last
    layer, and `gap` the share of correct answers in training minus that on new points.
    """
    hidden = frame[frame["layer_index"] < frame["depth"]]
    rows = frame[frame["layer_index"] == frame["depth"]].set_index("run")
    rows = rows.assign(
        rank=hidden.groupby("run")["local_rank"].mean(),
        gap=rows["train_accuracy"] - rows["test_accuracy"],
        reached=rows["loss"] <= TARGET,
    )
    return rows.reset_index()


@dataclass(frozen=True)
class Findings:
    """The coefficients that the verdict and the picture show."""

    overall: Estimate
    by_axis: dict[str, Estimate]
    partial: Estimate
    controls: dict[str, Estimate]  # tau of the controls themselves with the gap


_WORDS = {"jacobian_norm": "Jacobian norm", "weight_norm": "weight norm"}
_NO_CONTROL = "no network to compare reached the training loss"
GIVEN = ("jacobian_norm", "weight_norm", "weight_decay")


def findings(rows: pd.DataFrame) -> Findings:
    """Return the coefficients of the networks of the sweep that reached the training loss."""
    swept = rows[rows["reached"] & (rows["label_noise"] < RANDOM)].reset_index(drop=True)
    settings = [*AXES, "seed"]

    def estimate(of: Callable[[Rows], float], groups: int | None = None) -> Estimate:
        """Return a statistic of the swept runs, its interval from whole cells."""
        return over_cells(swept, AXES, of, groups)

    def along(axis: str) -> Estimate:
        """Return the granulated coefficient of rank and gap along one axis."""
        of = granulated(swept, "rank", "gap", axis, settings)
        return estimate(of, n_groups(swept, axis, AXES))

    return Findings(
        overall=estimate(kendall(swept, "rank", "gap")),
        by_axis={axis: along(axis) for axis in AXES},
        partial=estimate(partial(swept, "rank", "gap", GIVEN)),
        controls={name: estimate(kendall(swept, name, "gap")) for name in GIVEN[:2]},
    )


def judge(frame: pd.DataFrame) -> Verdict:
    """Report what correlates with the gap, and what remains under controls, whatever its sign."""
    rows = networks(frame)
    found = findings(rows)
    kept = rows[rows["reached"]]
    swept, random = (kept[(kept["label_noise"] == RANDOM) == wanted] for wanted in (False, True))
    reached = len(kept)
    chance = random["test_accuracy"].mean()
    claims = (
        Claim(
            "the networks are compared at one training loss",
            f"at least 90 % stop at {TARGET:g} nats within {MOST_STEPS:,} steps",
            f"{reached} of {len(rows)}; the others are left out",
            reached >= 0.9 * len(rows),
        ),
        Claim(
            "random labels cannot be predicted (the control)",
            f"{CHANCE:.0%} of new points within 5 %, after the same training loss",
            f"{chance:.1%} in {len(random)} networks" if len(random) else _NO_CONTROL,
            bool(abs(chance - CHANCE) <= 0.05),
        ),
        _question("a low local rank goes with a small gap over all cells", found.overall, "tau"),
        *(
            _question(
                f"it does among networks that differ in {axis.replace('_', ' ')} only", one, "tau"
            )
            for axis, one in found.by_axis.items()
        ),
        _question(
            "it does given the Jacobian norm, the weight norm and weight decay", found.partial,
            "partial rank correlation",
        ),
        *(
            _question(f"a small {_WORDS[name]} goes with a small gap", one, "tau")
            for name, one in found.controls.items()
        ),
        observation(
            "the local rank with random labels, and with the teacher's in the same cells",
            "no value: higher with random labels if a low rank is a sign of structure",
            _with_random_labels(swept, random),
        ),
    )  # fmt: skip
    setting = (
        f"ReLU MLPs on {CLASSES} classes of a fixed random teacher in R^{_INPUTS}, SGD, momentum"
        f" {MOMENTUM}, to a training loss of {TARGET:g}; {swept.groupby(list(AXES)).ngroups} cells"
        " of width, depth, learning rate, weight decay, label noise and samples,"
        f" {seed_count(swept)}; local rank at rtol {RTOL:g}, a mean over hidden layers; gap:"
        " training accuracy minus that on new points; intervals: bootstrap over cells"
    )
    return Verdict(NAME, setting, claims, _conclusion(found))


def _question(text: str, found: Estimate, name: str) -> Claim:
    """Return a claim that may be false: the answer is what the sweep is for."""
    answers = {1: "yes", 0: "not shown", -1: "the reverse"}
    return Claim(
        text, f"{name} above 0, in its 95 % interval", found.text, found.sign == 1,
        is_evidence=False, answer=answers[found.sign],
    )  # fmt: skip


def _with_random_labels(swept: pd.DataFrame, random: pd.DataFrame) -> str:
    """Return the ranks of both, of the same cells but for the labels, and seeds."""
    keys = [name for name in (*AXES, "seed") if name != "label_noise"]
    clean = swept[swept["label_noise"] == 0]
    both = random.merge(clean, on=keys, suffixes=("", "_clean"))
    if both.empty:
        return _NO_CONTROL
    higher = int((both["rank"] > both["rank_clean"]).sum())
    return (
        f"{both['rank'].mean():.1f} and {both['rank_clean'].mean():.1f}; higher with random labels"
        f" in {higher} of {len(both)} pairs"
    )


_GOES = {
    1: "goes with a small gap",
    0: "is shown to go with neither a small nor a large gap",
    -1: "goes with a large gap",
}


_NO_SETTING = "it is shown to go with a small gap for none"


def _conclusion(found: Findings) -> str:
    """Return what holds, and what is no longer shown under controls, in a sentence.

    An interval around 0 shows no absence, and without an interval nothing is shown.
    """
    overall, given = found.overall.sign, found.partial.sign
    text = f"over all cells a low local rank {_GOES[overall]}"
    if np.isnan(found.partial.low):
        text += "; given the norms and weight decay, nothing can be said"
    elif given == overall:
        text += ", and the same given the norms and weight decay"
    elif given == 0:
        text += ", and given the norms and weight decay this is no longer shown"
    else:
        text += f", and given the norms and weight decay it {_GOES[given]}"
    small, large, few = (
        [axis.replace("_", " ") for axis, one in found.by_axis.items() if belongs(one)]
        for belongs in (
            lambda one: one.sign == 1,
            lambda one: one.sign == -1,
            lambda one: np.isnan(one.low),
        )
    )
    text += "; among networks that differ in one setting alone, "
    if len(few) == len(found.by_axis):
        return text + "there are too few cells to say"
    text += f"it goes with a small gap for {listed(small)}" if small else _NO_SETTING
    text += f", with a large one for {listed(large)}" if large else ""
    return text + (f"; there are too few cells to say for {listed(few)}" if few else "")
