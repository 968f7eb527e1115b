"""The steps of `localrank reproduce`: prepare, train, analyze, conclude."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pandas as pd

from localrank_cli.drawing import import_matplotlib
from localrank_cli.errors import Note, OutputError, UsageError
from localrank_cli.experiments import (
    compression,
    gaussian,
    generalization,
    mnist,
    patel2024,
    vib,
)
from localrank_cli.experiments.digits import WHERE
from localrank_cli.experiments.experiment import Experiment, Verdict
from localrank_cli.experiments.series import LIVE, output_errors, reproducibly
from localrank_cli.model.fill import fill_model
from localrank_cli.options.table import AnalyzeOptions, ReproduceOptions
from localrank_cli.results.columns import Row, header
from localrank_cli.results.read import read_table, to_frame
from localrank_cli.run.compute import run_plan
from localrank_cli.run.headers import load_state
from localrank_cli.run.output import RunOutput
from localrank_cli.run.plan import Plan, SeriesPlan, make_plan, place_points
from localrank_cli.spectrum.layer import Request, layer_spectra

RANKS, VERDICT, PICTURE, SIGMA = "ranks.csv", "verdict.txt", "picture.png", "sigma.csv"
_EXPERIMENTS: dict[str, tuple[ModuleType, int]] = {  # with the default number of seeds
    gaussian.NAME: (gaussian, 3),
    mnist.NAME: (mnist, 1),
    vib.NAME: (vib, 1),
    patel2024.NAME: (patel2024, 1),
    generalization.NAME: (generalization, 3),
    compression.NAME: (compression, 3),
}


def prepare(options: ReproduceOptions) -> Experiment:
    """Plan an experiment without training or writing anything.

    Raises:
        UsageError: If digits are needed and not given.
        OutputError: If the table exists.
    """
    module, default = _EXPERIMENTS[options.experiment]
    # The sweep resumes, so its table may be there.
    last = options.folder / (VERDICT if module is generalization else RANKS)
    if last.exists():
        raise OutputError(f"{last}: already exists.", "Choose another folder with --out.")
    seeds = options.seeds or default
    if module is generalization:
        part = (0, 1) if options.shard is None else (options.shard.index, options.shard.count)
        return generalization.plan(seeds, options.quick, part)
    if module not in (mnist, patel2024):
        quick = options.quick or (module is compression and not options.full)
        experiment: Experiment = module.plan(seeds, quick)
        return experiment
    if options.mnist is None:
        name = options.experiment
        raise UsageError(f"reproduce {name} needs the digits: --mnist FILE.", WHERE)
    if module is mnist:
        return mnist.plan(seeds, options.quick, options.mnist)
    whole = patel2024.QUICK_STEPS if options.quick else patel2024.PUBLISHED_STEPS
    return patel2024.plan(seeds, options.steps or whole, options.mnist)


def train(experiment: Experiment, out: Path) -> Iterator[str]:
    """Train all networks and save their checkpoints; yield a line for each one."""
    with reproducibly():
        for arm in experiment.arms:
            for step in arm.train(out):
                yield f"{arm.folder} step {step}"


def analyze(experiment: Experiment, out: Path, command: list[str], note: Note) -> pd.DataFrame:
    """Analyze the checkpoints like `localrank analyze`, and write the table.

    Returns:
        The table, with the columns of each series' metrics.csv and, if the experiment needs them,
        the means of the last layer's singular values at each series' last step.
    """
    folders = tuple(out / arm.folder for arm in experiment.arms)
    plan = make_plan(AnalyzeOptions(checkpoints=folders, device="cpu"), note)
    rows: list[Row] = []
    with output_errors(out), RunOutput(out / RANKS, overwrite=False, command=command) as output:
        left = output.begin(plan, note)
        for record in run_plan(left.plan, note, left.history):
            output.add(record)
            rows += record.rows
        output.commit()
    frame = to_frame(rows, header(plan.extra_columns))
    if experiment.resumes:  # rows may be of an earlier run
        frame = read_table(out / RANKS)
        frame = frame[frame["run"].isin([folder.name for folder in folders])]
    frame = _with_live_ranks(_with_metrics(frame, folders), folders)
    if experiment.needs_sigma:
        with output_errors(out):
            sigma = last_sigma(plan)
            sigma.to_csv(out / SIGMA, index=False, float_format="%.9g", lineterminator="\n")
        frame = frame.merge(sigma, on=["run", "step", "layer_index"], how="left")
    return frame


def _with_metrics(frame: pd.DataFrame, folders: tuple[Path, ...]) -> pd.DataFrame:
    tables = []
    for folder in folders:
        with suppress(FileNotFoundError):  # a series without metrics gets empty cells
            tables.append(pd.read_csv(folder / "metrics.csv").assign(run=folder.name))
    if not tables:
        return frame
    return frame.merge(pd.concat(tables), on=["run", "step"], how="left")


def _with_live_ranks(frame: pd.DataFrame, folders: tuple[Path, ...]) -> pd.DataFrame:
    """Return a table with the column live_rank, if a Monitor measured any of its series."""
    keys = ["run", "step", "layer", "tolerance"]
    tables = [
        read_table(folder / LIVE).assign(run=folder.name)
        for folder in folders
        if (folder / LIVE).exists()
    ]
    if not tables:
        return frame
    live = pd.concat(tables)[[*keys, "local_rank"]].rename(columns={"local_rank": "live_rank"})
    return frame.merge(live, on=keys, how="left")


def last_sigma(plan: Plan) -> pd.DataFrame:
    """Compute the singular values of the last layer at the last checkpoint of each series.

    Returns:
        A row for each series: run, step, layer_index, and the means over points sigma_1, sigma_2
        and so on, which the table of an analysis does not hold.
    """
    return pd.DataFrame([_sigma_row(plan, series) for series in plan.series])


def _sigma_row(plan: Plan, series: SeriesPlan) -> dict[str, object]:
    settings, last = series.settings, series.checkpoints[-1]
    fill_model(series.model, series.expected, load_state(last, plan.trust_pickle), last.place)
    points = place_points(series.points, plan.device, settings.dtype)
    metrics = series.metric.at(series.model, plan.device, settings.dtype)
    memory = plan.memory - series.metric.n_bytes
    request = Request(settings.selection, settings.dtype, memory, metrics=metrics)
    *before, spectrum = layer_spectra(series.model, points, request)
    values = spectrum.values  # noqa: PD011  # a tensor
    means = values.mean(dim=0).tolist()
    sigma = {f"sigma_{index + 1}": value for index, value in enumerate(means)}
    return {"run": series.run, "step": last.step, "layer_index": len(before), **sigma}


def conclude(experiment: Experiment, out: Path, frame: pd.DataFrame, note: Note) -> Verdict:
    """Judge, and write the verdict and, if matplotlib is installed, the figure."""
    verdict = experiment.judge(frame)
    with output_errors(out):
        (out / VERDICT).write_text(verdict.text, encoding="utf-8")
        try:
            import_matplotlib()
        except ImportError:
            note("no picture: matplotlib is not installed (pip install 'localrank[plot]')")
            return verdict
        from localrank_cli.experiments.pictures import save_picture

        save_picture(experiment.name, frame, out / PICTURE)
    return verdict
