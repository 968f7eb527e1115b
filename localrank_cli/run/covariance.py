"""`--input-metric data`: the covariance of the varied tensor over the whole data."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from localrank_cli.errors import Note, SettingsError
from localrank_cli.jacobian.everywhere import outputs_everywhere
from localrank_cli.jacobian.guards import agreement
from localrank_cli.jacobian.metric_factor import MetricFactor, covariance_factor, mean_of
from localrank_cli.layers.select import named_call
from localrank_cli.layers.setting import analysis_setting
from localrank_cli.options.resolve import Settings
from localrank_cli.points.draw import Points
from localrank_cli.spectrum.layer import Examination

# Points for each entry of the varied tensor under which a covariance is far from the true one: its
# eigenvalues then spread by about 2 sqrt(1 / 10) = 60 % (Marchenko & Pastur 1967).
_ENOUGH = 10
_AT_ONCE = 1024


@dataclass(frozen=True)
class MetricPlan:
    """How the metric comes about."""

    known: MetricFactor | None  # the same at every checkpoint
    points: Points
    wrt: str  # else from this module's output
    low_precision: bool
    n_cov: int | None = None  # points that the covariance is taken over
    entries: Tensor | None = None  # of the varied tensor; None: all
    n_bytes: int = 0  # that the factor takes of the budget

    def at(self, model: nn.Module, device: torch.device, dtype: torch.dtype) -> MetricFactor | None:
        """Computes the metric at a checkpoint.

        Args:
            model: With the checkpoint's weights.
            device: Of the model.
            dtype: Of the analysis.

        Returns:
            The metric; None for the identity.
        """
        if self.n_cov is None or self.known is not None:
            return self.known
        call = named_call(model, self.wrt)

        def rows() -> Iterator[Tensor]:
            tolerance = agreement(dtype, self.low_precision)
            chunks = everything(self.points, device, dtype)
            for chunk in outputs_everywhere(model, chunks, call, tolerance):
                yield _part(chunk.to("cpu", torch.float64), self.entries)

        with analysis_setting(model, dtype):
            mean, count = mean_of(rows())
            return MetricFactor(covariance_factor(rows(), mean, count), count)


def plan_metric(
    settings: Settings, points: Points, examination: Examination, memory: int, note: Note
) -> MetricPlan:
    """Plans the metric, and computes it where it does not depend on the weights.

    Args:
        settings: Of the series.
        points: With everything there is to draw from, when the metric is `data`.
        examination: Of the first checkpoint.
        memory: The budget in bytes.
        note: Takes each note for the user.

    Returns:
        The plan.

    Raises:
        SettingsError: If there is nothing to take a covariance over, or too little.
    """
    wrt, survey = settings.selection.wrt, examination.survey
    if settings.input_metric == "identity":
        return MetricPlan(None, points, wrt, survey.has_low_precision)
    if points.spread is not None:
        if wrt:
            raise SettingsError(
                f"--input-metric data with --wrt {wrt}: the covariance of a module's output needs"
                " data to run over, and the points come from a distribution.",
                "Give a data file with --data.",
            )
        known = MetricFactor(torch.tensor(points.spread, dtype=torch.float64, device="cpu"))
        return MetricPlan(known, points, wrt, survey.has_low_precision)
    assert points.everything is not None
    count, n_in = points.everything.shape[0], examination.n_in
    _check_count(count, n_in, settings.allow_small_cov, note)
    n_bytes = 8 * n_in * min(n_in, count)
    _check_memory(n_in, n_bytes, memory)
    if wrt:
        low, entries = survey.has_low_precision, examination.entries
        return MetricPlan(None, points, wrt, low, count, entries, n_bytes)
    cpu = torch.device("cpu")

    def rows() -> Iterator[Tensor]:
        chunks = everything(points, cpu, torch.float64)
        return (_part(chunk.flatten(1), examination.entries) for chunk in chunks)

    mean, count = mean_of(rows())
    known = MetricFactor(covariance_factor(rows(), mean, count), count)
    return MetricPlan(known, points, wrt, survey.has_low_precision, count, n_bytes=n_bytes)


def everything(points: Points, device: torch.device, dtype: torch.dtype) -> Iterator[Tensor]:
    """Walks through all of the data as the model takes them.

    Args:
        points: With everything there is to draw from.
        device: Of the model.
        dtype: Of the analysis; integers stay integers.

    Yields:
        Chunks, shape (some points, ...).
    """
    assert points.everything is not None
    for rows in torch.split(points.everything, _AT_ONCE):
        floating = points.scale is not None or rows.is_floating_point()
        chunk = rows.to(torch.float64 if floating else torch.int64)
        if points.scale is not None:
            chunk = chunk * points.scale
        yield chunk.to(device=device, dtype=dtype if floating else None)


def _part(rows: Tensor, entries: Tensor | None) -> Tensor:
    return rows if entries is None else rows.index_select(1, entries.to(rows.device))


def _check_count(count: int, n_in: int, allow_small: bool, note: Note) -> None:
    if count < 2:
        raise SettingsError(
            "--input-metric data: a covariance needs at least 2 points, and the data hold"
            f" {count}.",
            "Give more data.",
        )
    if count <= n_in and not allow_small:
        raise SettingsError(
            f"--input-metric data: {count} points span at most {count - 1} of the {n_in}"
            " directions of the varied tensor: the sample, not the network, would cap the rank.",
            "Give a data file with more points, or pass --allow-small-cov.",
        )
    if count < _ENOUGH * n_in:
        note(
            f"--input-metric data: the covariance of {n_in} entries over {count} points is a rough"
            f" one; {_ENOUGH * n_in} or more would do"
        )


def _check_memory(n_in: int, n_bytes: int, memory: int) -> None:
    # The factor, the rows under it, and the QR's copy of both.
    needed = 3 * n_bytes
    if needed > memory:
        raise SettingsError(
            f"--input-metric data: the covariance of {n_in} entries needs {needed / 2**20:.0f} MiB,"
            f" and the budget is {memory / 2**20:.0f} MiB.",
            "Give more with --memory, or vary a smaller tensor with --wrt.",
        )
