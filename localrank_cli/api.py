"""The Python interface: the same as the command line, as a pandas DataFrame."""

import logging
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from localrank_cli.live.turns import LOCK
from localrank_cli.options.read import (
    PYTHON,
    ArgumentError,
    check_keywords,
    described,
    read_options,
    signature_of,
)
from localrank_cli.options.setting import Option, options_of
from localrank_cli.options.table import (
    AnalyzeOptions,
    InspectOptions,
    MergeOptions,
    RethresholdOptions,
    check_options,
)
from localrank_cli.options.views import PlotOptions, check_figure, figure_target

if TYPE_CHECKING:  # importing torch and pandas is slow
    import pandas as pd
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from localrank_cli.results.record import CheckpointRecord

_logger = logging.getLogger("localrank")

_CHECKPOINTS = "checkpoints"
_OFFERED = [one for one in options_of(AnalyzeOptions) if one.setting.in_python]
_OF_ANALYZE = {one.name: one for one in _OFFERED if one.name != _CHECKPOINTS}
_OF_LIVE = {one.name: one for one in _OFFERED if one.in_live and one.name != "data"}


def _offered(table: type, *own: str) -> dict[str, Option]:
    """Return the options of a function but those that it takes by position."""
    return {
        one.name: one for one in options_of(table) if one.setting.in_python and one.name not in own
    }


_HOW = _offered(InspectOptions, "as_json")
_OF_INSPECT = {name: one for name, one in (_OF_ANALYZE | _HOW).items() if one.setting.in_inspect}
_OF_RETHRESHOLD = _offered(RethresholdOptions, "spectra")
_OF_MERGE = _offered(MergeOptions, "tables", "output")
_OF_PLOT = _offered(PlotOptions, "tables")


def analyze(
    checkpoints: str | PathLike[str] | Iterable[str | PathLike[str]],
    *others: object,
    **options: object,
) -> "pd.DataFrame":
    """Compute the local rank of every layer at every checkpoint.

    The options are those of `localrank analyze`, with underscores, and take the same values
    (`data_scale="1/255"`, `memory="2GiB"`, `rtol="eps"`). An option that may be repeated takes one
    value or several. `model` may also be a class or a function that returns a module, and `data` a
    tensor or an array. Notes go to the logger `localrank`.

    Args:
        checkpoints: One or more series: folders, or single files.
        *others: Not accepted: pass options by name.
        **options: See below.

    Returns:
        One row for each checkpoint, layer and tolerance, with the columns of the CSV.

    Raises:
        LocalrankError: If the files or settings are at fault.
        TypeError: If there is no option of that name, or a value has the wrong type.
    """
    if others:
        raise TypeError(
            "analyze() takes the checkpoints as its only positional argument, a path or a list of"
            " paths; give everything else by name: analyze('run', data='points.npy')."
            " A network in memory is measured by local_rank(network, data)."
        )
    from localrank_cli.remote.places import downloads
    from localrank_cli.results.columns import header
    from localrank_cli.results.read import to_frame
    from localrank_cli.run.compute import run_plan
    from localrank_cli.run.plan import make_plan

    if checkpoints is None:  # which would count as left out
        raise ArgumentError("checkpoints=None: expected a path.", "Name a folder of checkpoints.")
    check_keywords("analyze", options, _OF_ANALYZE)
    chosen = read_options(AnalyzeOptions, {_CHECKPOINTS: checkpoints, **options}, PYTHON)
    with LOCK, downloads():
        plan = make_plan(chosen, _logger.info)
        rows = [row for record in run_plan(plan, _logger.info) for row in record.rows]
    return to_frame(rows, header(plan.extra_columns))


def local_rank(
    network: "nn.Module | Mapping[str, Tensor] | None" = None,
    /,
    data: object = None,
    *,
    step: int = 0,
    run: str = "model",
    **options: object,
) -> "pd.DataFrame":
    """Compute the local rank of every layer of a network in memory.

    The numbers equal those of `analyze` for a checkpoint with the same state dict. The network is
    copied: the network itself, its gradients and the state of the process stay unchanged, even if
    an error is raised. The options are those of `analyze`. Notes go to the logger `localrank`.

    Args:
        network: A network, possibly wrapped by torch.compile or DistributedDataParallel; or a state
            dict, for the class or function that the option `model` names.
        data: A tensor, an array, or any other data that `analyze` takes; or a Dataset or
            DataLoader, from which the first points are taken in order.
        step: The training step, for the table.
        run: The name of the run, for the table.
        **options: See below.

    Returns:
        One row for each layer and tolerance, with the columns of the CSV.

    Raises:
        LocalrankError: If the network or settings are at fault.
        TypeError: If there is no option of that name, or a value has the wrong type.
    """
    from localrank_cli.live.measure import live_options, measure, network_of, step_of
    from localrank_cli.results.columns import header
    from localrank_cli.results.read import to_frame

    check_keywords("local_rank", options, _OF_LIVE)
    with LOCK:
        measured = network_of(network, options)
        chosen = live_options(data, options)
        plan, record = measure(measured, chosen, (str(run), step_of(step)), _logger.info)
    return to_frame(record.rows, header(plan.extra_columns))


def inspect(
    checkpoints: str | PathLike[str] | Iterable[str | PathLike[str]], **options: object
) -> list[dict[str, Any]]:
    """Report what folders contain, what is missing, and what `analyze` would do.

    The options are those of `localrank inspect`, with underscores.

    Args:
        checkpoints: One or more series: folders, or single files.
        **options: See below.

    Returns:
        What `localrank inspect --json` prints for each series.

    Raises:
        LocalrankError: If the files or settings are at fault.
        TypeError: If there is no option of that name, or a value has the wrong type.
    """
    from localrank_cli.remote.places import downloads
    from localrank_cli.run.inspect import inspect_all

    check_keywords("inspect", options, _OF_INSPECT)
    how = {name: options.pop(name) for name in _HOW if name in options}
    asked = read_options(InspectOptions, how, PYTHON)
    chosen = read_options(AnalyzeOptions, {_CHECKPOINTS: checkpoints, **options}, PYTHON)
    check_options(chosen)
    with LOCK, downloads():
        found = inspect_all(chosen, _logger.info, timed=asked.timed is not False)
    return [one.to_json() for one in found]


def rethreshold(spectra: str | PathLike[str], **options: object) -> "pd.DataFrame":
    """Recount kept singular values at other tolerances, without recomputing Jacobians.

    The options are those of `localrank rethreshold`, with underscores.

    Args:
        spectra: The folder that `analyze --spectra` wrote.
        **options: See below.

    Returns:
        The rows of the table, which is also written to a file if `output` names one.

    Raises:
        LocalrankError: If the files or settings are at fault.
        TypeError: If there is no option of that name, or a value has the wrong type.
    """
    from localrank_cli.results.columns import header
    from localrank_cli.results.read import to_frame
    from localrank_cli.run.rethreshold import Rethreshold

    check_keywords("rethreshold", options, _OF_RETHRESHOLD)
    chosen = read_options(RethresholdOptions, {"spectra": spectra, **options}, PYTHON)
    work = Rethreshold.of(chosen)
    records: list[CheckpointRecord] = []
    if chosen.output is None:
        records += work.records()
    else:
        command = ["localrank_cli.rethreshold"]
        work.write(chosen.output, command, records.append, overwrite=chosen.overwrite)
    rows = [row for record in records for row in record.rows]
    return to_frame(rows, header(work.extra_columns))


def merge(
    tables: str | PathLike[str] | Iterable[str | PathLike[str]],
    output: str | PathLike[str],
    **options: object,
) -> "pd.DataFrame":
    """Merge the tables of shards into one, equal to that of a single run.

    The options are those of `localrank merge`. Warnings go to the logger `localrank`.

    Args:
        tables: A folder with the tables of all shards, or the tables themselves.
        output: A .csv, .tsv, .jsonl or .parquet file.
        **options: See below.

    Returns:
        The table that was written.

    Raises:
        LocalrankError: If the files or settings are at fault, or parts are missing.
        TypeError: If there is no option of that name, or a value has the wrong type.
    """
    from localrank_cli.divide.merging import merge_tables
    from localrank_cli.results.read import read_table

    check_keywords("merge", options, _OF_MERGE)
    values = {"tables": tables, "output": output, **options}
    chosen = read_options(MergeOptions, values, PYTHON)
    for flaw in merge_tables(chosen, ["localrank_cli.merge"], _logger.warning):
        _logger.warning(flaw)
    assert chosen.output is not None
    return read_table(chosen.output)


def plot(
    tables: str | PathLike[str] | Iterable[str | PathLike[str]], **options: object
) -> "Figure":
    """Draw a figure from tables.

    The options are those of `localrank plot`, with `metrics` for `--with` and `steps` for `--step`.
    Notes go to the logger `localrank`.

    Args:
        tables: Tables that `analyze` or a monitor wrote.
        **options: See below.

    Returns:
        The figure, which is also written to a file if `output` names one.

    Raises:
        LocalrankError: If the files or settings are at fault, or matplotlib is not installed.
        TypeError: If there is no option of that name, or a value has the wrong type.
    """
    from localrank_cli.plotting import content_of, draw
    from localrank_cli.results.write import check_replaceable, write_bytes

    check_keywords("plot", options, _OF_PLOT)
    chosen = read_options(PlotOptions, {"tables": tables, **options}, PYTHON)
    target = figure_target(chosen)
    check_figure(chosen)
    if chosen.output is not None:
        check_replaceable(target)
    figure, notes = draw(chosen)
    for note in notes:
        _logger.info(note)
    if chosen.output is not None:
        write_bytes(target, content_of(figure, target, chosen))
    return figure


# What `inspect.signature` and `help` show comes from the table of options.
_function: Any
for _function, _options in (
    (analyze, _OF_ANALYZE),
    (local_rank, _OF_LIVE),
    (inspect, _OF_INSPECT),
    (rethreshold, _OF_RETHRESHOLD),
    (merge, _OF_MERGE),
    (plot, _OF_PLOT),
):
    _function.__signature__ = signature_of(_function, _options.values())
    _function.__doc__ = described(_function, _options.values())
