"""The Python interface: the same as the command line, as a pandas DataFrame."""

import logging
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from os import PathLike
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

if TYPE_CHECKING:  # nothing heavy is imported before it is needed
    import numpy as np
    import pandas as pd
    from torch import Tensor, nn

_logger = logging.getLogger("localrank")

OneOrMore = Iterable[Any] | str | float | None


class AnalyzeKeywords(TypedDict, total=False):
    """The options of `localrank analyze`, under the same names."""

    model: "str | Callable[..., nn.Module]"
    model_arg: Mapping[str, Any]
    activation: str
    data: "str | PathLike[str] | Tensor | np.ndarray[Any, Any]"
    data_key: str
    data_scale: float
    points: int
    seed: int
    layers: str | Iterable[str]
    exclude: str | Iterable[str]
    wrt: str
    atol: float | Iterable[float]
    rtol: float | str | Iterable[float | str]
    noise: float
    dtype: str
    input_metric: str
    allow_small_cov: bool
    allow_unsaved: bool
    preset: str
    input_slice: str
    output_slice: str
    sigma_1: str
    information: bool
    information_points: int
    information_noise: float
    labels_key: str
    device: str
    memory: int | str
    pattern: str
    steps: str
    every: int
    last: int
    on_error: str
    weights: str
    step_regex: str
    step_from: str
    trust_model: bool
    trust_pickle: bool


def analyze(
    checkpoints: str | PathLike[str] | Iterable[str | PathLike[str]],
    **options: Unpack[AnalyzeKeywords],
) -> "pd.DataFrame":
    """Computes the local rank of every layer at every checkpoint.

    Args:
        checkpoints: One or more series: folders, or single files.
        **options: As on the command line (`localrank analyze --help`), with underscores; `model`
            may also be a class or function, `data` a tensor or array, and tolerances, layers and
            exclude one value or several. Notes go to the logger `localrank`.

    Returns:
        One row for each checkpoint, layer and tolerance, with the columns of the CSV.

    Raises:
        LocalrankError: If the files or settings are at fault.
    """
    from localrank_cli.results.columns import header
    from localrank_cli.results.frame import to_frame
    from localrank_cli.run.compute import run_plan
    from localrank_cli.run.plan import make_plan

    plan = make_plan(_options(checkpoints, options), _logger.info)
    rows = [row for record in run_plan(plan, _logger.info) for row in record.rows]
    return to_frame(rows, header(plan.extra_columns))


def _options(checkpoints: Any, given: AnalyzeKeywords) -> Any:
    from torch import Tensor, as_tensor

    from localrank_cli.options.parse import Part, parse_preset, parse_steps
    from localrank_cli.options.table import AnalyzeOptions, parse_rtol, parse_size

    values: dict[str, Any] = dict(given)
    unknown = set(values) - set(AnalyzeKeywords.__annotations__)
    if unknown:
        raise TypeError(f"analyze() got an unexpected keyword argument {min(unknown)!r}")
    paths = [checkpoints] if isinstance(checkpoints, (str, PathLike)) else list(checkpoints)
    values["model_args"] = tuple(dict(values.pop("model_arg", None) or {}).items())
    for name in ("layers", "exclude"):
        globs = _several(values.get(name))
        values[name] = tuple(part.strip() for glob in globs for part in glob.split(","))
    values["atol"] = tuple(float(value) for value in _several(values.get("atol")))
    values["rtol"] = tuple(parse_rtol(str(value)) for value in _several(values.get("rtol")))
    steps = values.pop("steps", None)
    values["part"] = Part(
        parse_steps(str(steps)) if steps is not None else None,
        values.pop("every", 1),
        values.pop("last", None),
    )
    if values.get("preset") is not None:
        values["preset"] = parse_preset(values["preset"])
    if isinstance(values.get("memory"), str):
        values["memory"] = parse_size(values["memory"])
    if isinstance(values.get("data"), PathLike):
        values["data"] = str(values["data"])
    elif "data" in values and not isinstance(values["data"], (str, Tensor, NoneType)):
        values["data"] = as_tensor(values["data"])
    return AnalyzeOptions(checkpoints=tuple(Path(path) for path in paths), **values)


def _several(value: OneOrMore) -> list[Any]:
    if value is None:
        return []
    return [value] if isinstance(value, (str, int, float, Real)) else list(value)
