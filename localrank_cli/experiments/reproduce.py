"""Runs an experiment: trains, analyses with the tool's own pipeline, judges, writes."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pandas as pd

from localrank_cli.errors import Note, OutputError, UsageError
from localrank_cli.experiments import gaussian, mnist, patel2024, vib
from localrank_cli.experiments.arm import Plan
from localrank_cli.experiments.claims import Verdict
from localrank_cli.experiments.digits import WHERE
from localrank_cli.experiments.pictures import PictureError, draw
from localrank_cli.experiments.series import one_thread, writing
from localrank_cli.experiments.sigma import last_sigma
from localrank_cli.options.table import AnalyzeOptions
from localrank_cli.results.columns import Row, header
from localrank_cli.results.frame import to_frame
from localrank_cli.run.compute import run_plan
from localrank_cli.run.output import RunOutput
from localrank_cli.run.plan import make_plan

RANKS, VERDICT, PICTURE, SIGMA = "ranks.csv", "verdict.txt", "picture.png", "sigma.csv"
_EXPERIMENTS: dict[str, tuple[ModuleType, int]] = {  # and how many seeds by default
    gaussian.NAME: (gaussian, 3),
    mnist.NAME: (mnist, 1),
    vib.NAME: (vib, 1),
    patel2024.NAME: (patel2024, 1),
}


@dataclass(frozen=True)
class ReproduceOptions:
    """The arguments of `localrank reproduce`."""

    experiment: str
    out: Path
    quick: bool = False
    seeds: int | None = None  # None: the experiment's own number
    mnist: Path | None = None
    steps: int | None = None  # of patel2024; None: all


def prepare(options: ReproduceOptions) -> Plan:
    """Plans an experiment; nothing is trained or written yet.

    Args:
        options: What was asked for.

    Returns:
        The networks to train.

    Raises:
        UsageError: If digits are needed and not given.
        OutputError: If the table is there already.
    """
    module, default = _EXPERIMENTS[options.experiment]
    if (options.out / RANKS).exists():
        raise OutputError(
            f"{options.out / RANKS}: exists already.", "Choose another place with --out."
        )
    seeds = options.seeds or default
    if module not in (mnist, patel2024):
        plan: Plan = module.plan(seeds, options.quick)
        return plan
    if options.mnist is None:
        name = options.experiment
        raise UsageError(f"reproduce {name} needs the digits: --mnist FILE.", WHERE)
    if module is mnist:
        return mnist.plan(seeds, options.quick, options.mnist)
    whole = patel2024.QUICK_STEPS if options.quick else patel2024.PUBLISHED_STEPS
    return patel2024.plan(seeds, options.steps or whole, options.mnist)


def train(plan: Plan, out: Path) -> Iterator[str]:
    """Trains all networks and saves their checkpoints.

    Args:
        plan: From `prepare`.
        out: Folder of the experiment.

    Yields:
        After each checkpoint, what was saved.
    """
    with one_thread():
        for arm in plan.arms:
            for step in arm.train(out):
                yield f"{arm.folder} step {step}"


def analyse(plan: Plan, out: Path, command: list[str], note: Note) -> pd.DataFrame:
    """Analyses the checkpoints as `localrank analyze` does, and writes the table.

    Args:
        plan: From `prepare`.
        out: Folder of the experiment.
        command: For the manifest.
        note: Takes each note for the user.

    Returns:
        The table, with the figures of each series' metrics.csv beside, and at each series' last
        step, where the experiment wants them, the means of the last layer's singular values.
    """
    folders = tuple(out / arm.folder for arm in plan.arms)
    ranks = make_plan(AnalyzeOptions(checkpoints=folders, device="cpu"), note)
    rows: list[Row] = []
    with writing(out), RunOutput(out / RANKS, overwrite=False, command=command) as output:
        left = output.begin(ranks, note)
        for record in run_plan(left.plan, note, left.known):
            output.add(record)
            rows += record.rows
        output.commit()
    frame = _with_metrics(to_frame(rows, header(ranks.extra_columns)), folders)
    if plan.wants_sigma:
        with writing(out):
            sigma = last_sigma(ranks)
            sigma.to_csv(out / SIGMA, index=False, float_format="%.9g", lineterminator="\n")
        frame = frame.merge(sigma, on=["run", "step", "layer_index"], how="left")
    return frame


def _with_metrics(frame: pd.DataFrame, folders: tuple[Path, ...]) -> pd.DataFrame:
    tables = []
    for folder in folders:
        with suppress(FileNotFoundError):
            tables.append(pd.read_csv(folder / "metrics.csv").assign(run=folder.name))
    if not tables:
        return frame
    return frame.merge(pd.concat(tables), on=["run", "step"], how="left")


def conclude(plan: Plan, out: Path, frame: pd.DataFrame, note: Note) -> Verdict:
    """Judges, and writes the verdict and, where matplotlib is there, the picture.

    Args:
        plan: From `prepare`.
        out: Folder of the experiment.
        frame: From `analyse`.
        note: Takes each note for the user.

    Returns:
        The verdict.
    """
    verdict = plan.judge(frame)
    with writing(out):
        (out / VERDICT).write_text(verdict.text, encoding="utf-8")
        try:
            figure = draw(plan.name, frame)
        except PictureError as error:
            note(str(error))
        else:
            figure.savefig(out / PICTURE, dpi=150)
    return verdict
