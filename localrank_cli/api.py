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
from localrank_cli.options.setting import options_of
from localrank_cli.options.table import NOT_LIVE, AnalyzeOptions

if TYPE_CHECKING:  # importing torch and pandas is slow
    import pandas as pd
    from torch import Tensor, nn

_logger = logging.getLogger("localrank")

_CHECKPOINTS = "checkpoints"
_OFFERED = [one for one in options_of(AnalyzeOptions) if one.setting.in_python]
_OF_ANALYZE = {one.name: one for one in _OFFERED if one.name != _CHECKPOINTS}
_OF_LIVE = {one.name: one for one in _OFFERED if one.name not in NOT_LIVE | {"data"}}


def analyze(
    checkpoints: str | PathLike[str] | Iterable[str | PathLike[str]],
    *others: object,
    **options: object,
) -> "pd.DataFrame":
    """Compute the local rank of every layer at every checkpoint.

    The options are those of `localrank analyze`, with underscores. The same texts mean the same
    (`data_scale="1/255"`, `memory="2GiB"`, `rtol="eps"`); where an option may be repeated, one
    value or several may be given. `model` may also be a class or a function that returns a module,
    and `data` a tensor or an array. Notes go to the logger `localrank`.

    Args:
        checkpoints: One or more series: folders, or single files.
        *others: Refused: options are given by name.
        **options: See below.

    Returns:
        One row for each checkpoint, layer and tolerance, with the columns of the CSV.

    Raises:
        LocalrankError: If the files or settings are at fault.
        TypeError: If there is no option of that name, or a value has another type.
    """
    if others:
        raise TypeError(
            "analyze() takes the checkpoints as its only positional argument, a path or a list of"
            " paths; give everything else by name: analyze('run', data='points.npy')."
            " A network in memory is measured by local_rank(network, data)."
        )
    from localrank_cli.results.columns import header
    from localrank_cli.results.read import to_frame
    from localrank_cli.run.compute import run_plan
    from localrank_cli.run.plan import make_plan

    if checkpoints is None:  # which would count as left out
        raise ArgumentError("checkpoints=None: expected a path.", "Name a folder of checkpoints.")
    check_keywords("analyze", options, _OF_ANALYZE)
    chosen = read_options(AnalyzeOptions, {_CHECKPOINTS: checkpoints, **options}, PYTHON)
    with LOCK:
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

    The numbers are those of `analyze` for a checkpoint of its state dict. The network is copied:
    it, its gradients and the state of the process are as before, whatever happens. The options are
    those of `analyze`. Notes go to the logger `localrank`.

    Args:
        network: A network, also one of torch.compile or DistributedDataParallel; or a state dict,
            for the class or function that the option `model` names.
        data: A tensor, an array, or what `analyze` takes; or a Dataset or DataLoader, of which the
            first points are taken in order.
        step: The training step, for the table.
        run: The name of the training, for the table.
        **options: See below.

    Returns:
        One row for each layer and tolerance, with the columns of the CSV.

    Raises:
        LocalrankError: If the network or settings are at fault.
        TypeError: If there is no option of that name, or a value has another type.
    """
    from localrank_cli.live.measure import live_options, measure, network_of
    from localrank_cli.results.columns import header
    from localrank_cli.results.read import to_frame

    check_keywords("local_rank", options, _OF_LIVE)
    with LOCK:
        measured = network_of(network, options)
        chosen = live_options(data, options)
        plan, record = measure(measured, chosen, (run, step), _logger.info)
    return to_frame(record.rows, header(plan.extra_columns))


# What `inspect.signature` and `help` show comes from the table of options.
_function: Any
for _function, _options in ((analyze, _OF_ANALYZE), (local_rank, _OF_LIVE)):
    _function.__signature__ = signature_of(_function, _options.values())
    _function.__doc__ = described(_function, _options.values())
