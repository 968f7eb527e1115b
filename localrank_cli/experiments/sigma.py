"""Single singular values, which the table does not hold."""

import pandas as pd

from localrank_cli.model.fill import fill_model
from localrank_cli.run.headers import load_state
from localrank_cli.run.plan import Plan, SeriesPlan, place_points
from localrank_cli.spectrum.layer import Request, layer_spectra


def last_sigma(plan: Plan) -> pd.DataFrame:
    """Computes the singular values of the last layer at the last checkpoint of each series.

    Args:
        plan: Of an analysis.

    Returns:
        A row for each series: run, step, layer_index, and the means over points sigma_1, sigma_2
        and so on.
    """
    return pd.DataFrame([_row(plan, series) for series in plan.series])


def _row(plan: Plan, series: SeriesPlan) -> dict[str, object]:
    settings, last = series.settings, series.checkpoints[-1]
    fill_model(series.model, series.expected, load_state(last, plan.trust_pickle), last.place)
    points = place_points(series.points, plan.device, settings.dtype)
    metric = series.metric.at(series.model, plan.device, settings.dtype)
    memory = plan.memory - series.metric.n_bytes
    request = Request(settings.selection, settings.dtype, memory, metric=metric)
    *before, spectrum = layer_spectra(series.model, points, request)
    values = spectrum.values  # noqa: PD011  # a tensor
    means = values.mean(dim=0).tolist()
    sigma = {f"sigma_{index + 1}": value for index, value in enumerate(means)}
    return {"run": series.run, "step": last.step, "layer_index": len(before), **sigma}
