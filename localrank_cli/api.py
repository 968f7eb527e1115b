"""The Python interface: the same as the command line, as a pandas DataFrame."""

import inspect
import logging
import threading
from collections.abc import Iterable
from os import PathLike
from typing import TYPE_CHECKING

from localrank_cli.options.read import PYTHON, ArgumentError, nearest, read_options
from localrank_cli.options.setting import options_of
from localrank_cli.options.table import AnalyzeOptions

if TYPE_CHECKING:  # importing torch and pandas is slow
    import pandas as pd

_logger = logging.getLogger("localrank")

# Torch's default dtype and random generators are global, so threads take turns.
_LOCK = threading.RLock()

_CHECKPOINTS = "checkpoints"
_OFFERED = {one.name: one for one in options_of(AnalyzeOptions) if one.setting.in_python}


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
            " paths; give everything else by name: analyze('run', data='points.npy')"
        )
    from localrank_cli.results.columns import header
    from localrank_cli.results.read import to_frame
    from localrank_cli.run.compute import run_plan
    from localrank_cli.run.plan import make_plan

    if checkpoints is None:  # which would count as left out
        raise ArgumentError("checkpoints=None: expected a path.", "Name a folder of checkpoints.")
    for name in options:
        if name not in _OFFERED or name == _CHECKPOINTS:
            raise TypeError(_unknown(name))
    chosen = read_options(AnalyzeOptions, {_CHECKPOINTS: checkpoints, **options}, PYTHON)
    with _LOCK:
        plan = make_plan(chosen, _logger.info)
        rows = [row for record in run_plan(plan, _logger.info) for row in record.rows]
    return to_frame(rows, header(plan.extra_columns))


def _unknown(name: str) -> str:
    message = f"analyze() got an unexpected keyword argument {name!r}"
    if name in {one.name for one in options_of(AnalyzeOptions)}:
        return f"{message}: the command line alone has it"
    near = sorted(nearest(name, _OFFERED))
    return f"{message}; did you mean {' or '.join(map(repr, near))}?" if near else message


def _signature() -> inspect.Signature:
    own = inspect.signature(analyze)
    keywords = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.shown_default)
        for one in _OFFERED.values()
        if one.name != _CHECKPOINTS
    ]
    return own.replace(parameters=[own.parameters[_CHECKPOINTS], *keywords])


def _lines() -> str:
    texts = (f"{one.name}: {one.help}" for one in _OFFERED.values() if one.name != _CHECKPOINTS)
    return "\n".join(f"        {text}" for text in texts)


# What `inspect.signature(analyze)` and `help(analyze)` show comes from the table of options.
analyze.__signature__ = _signature()  # type: ignore[attr-defined]  # inspect reads this attribute
analyze.__doc__ = (analyze.__doc__ or "").replace("        **options: See below.", _lines())
