"""Compute the covariance of the varied tensor over the whole data, for `--input-metric data`."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from localrank_cli.errors import Note, SettingsError, readable
from localrank_cli.jacobian.everywhere import outputs_everywhere
from localrank_cli.jacobian.guards import agreement
from localrank_cli.jacobian.metric_factor import MetricFactor, covariance_factor, mean_of
from localrank_cli.layers.select import named_call
from localrank_cli.layers.setting import analysis_setting
from localrank_cli.options.resolve import Settings
from localrank_cli.points.draw import Points
from localrank_cli.spectrum.examine import Examination

# With fewer points than this for each entry of the varied tensor, the eigenvalues of the covariance
# spread by more than about 2 sqrt(1 / 10) = 60 % around the true ones (Marchenko & Pastur 1967).
_POINTS_PER_ENTRY = 10
_CHUNK = 1024  # points that pass through the model at once


@dataclass(frozen=True)
class MetricPlan:
    """The metric of a series, or how to compute it at each checkpoint.

    Without `factor` and `n_cov` it is the identity.
    """

    points: Points
    wrt: str  # module whose output is varied; "" is the input
    low_precision: bool
    factor: MetricFactor | None = None  # where it is the same at every checkpoint
    n_cov: int | None = None  # points that the covariance is taken over
    entries: Tensor | None = None  # entries of the varied tensor in it; None: all
    n_bytes: int = 0  # bytes of the budget that the factor takes

    def at(self, model: nn.Module, device: torch.device, dtype: torch.dtype) -> MetricFactor | None:
        """Return the metric at the weights of a model; None is the identity."""
        if self.n_cov is None or self.factor is not None:
            return self.factor
        call = named_call(model, self.wrt)

        def rows() -> Iterator[Tensor]:
            tolerance = agreement(dtype, self.low_precision)
            chunks = data_chunks(self.points, device, dtype)
            for chunk in outputs_everywhere(model, chunks, call, tolerance):
                yield _part(chunk.to("cpu", torch.float64), self.entries)

        with analysis_setting(model, dtype):
            mean, count = mean_of(rows())
            return MetricFactor(covariance_factor(rows(), mean, count), count)


def plan_metric(
    settings: Settings,
    points: Points,
    examination: Examination,
    memory: int,
    note: Note,
    *,
    refuses: bool = True,
) -> MetricPlan:
    """Plan the metric of a series, and compute it if it does not depend on the weights.

    `points` hold the whole data if the metric is `data`; `memory` is the budget in bytes. A
    covariance that does not fit is planned, never computed, without `refuses`.

    Raises:
        SettingsError: If there are no data, too few, or too little memory for their covariance.
    """
    wrt = settings.selection.wrt
    identity = MetricPlan(points, wrt, examination.survey.has_low_values)
    if settings.input_metric == "identity":
        return identity
    if points.spread is not None:
        if wrt:
            raise SettingsError(
                f"--input-metric data with --wrt {wrt}: the covariance of a module's output needs"
                " data to run over, and the points come from a distribution.",
                "Give a data file with --data.",
            )
        spread = torch.tensor(points.spread, dtype=torch.float64, device="cpu")
        return replace(identity, factor=MetricFactor(spread))
    assert points.everything is not None
    count, n_in = points.everything.shape[0], examination.n_in
    _check_count(count, n_in, settings.allow_small_cov, note)
    n_bytes = 8 * n_in * min(n_in, count)
    fits = 3 * n_bytes <= memory  # the factor, the rows under it, and the QR's copy of both
    if refuses and not fits:
        raise _too_large(n_in, 3 * n_bytes, memory)
    if wrt or not fits:
        return replace(identity, n_cov=count, entries=examination.entries, n_bytes=n_bytes)
    cpu = torch.device("cpu")

    def rows() -> Iterator[Tensor]:
        chunks = data_chunks(points, cpu, torch.float64)
        return (_part(chunk.flatten(1), examination.entries) for chunk in chunks)

    mean, count = mean_of(rows())
    factor = MetricFactor(covariance_factor(rows(), mean, count), count)
    return replace(identity, factor=factor, n_cov=count, n_bytes=n_bytes)


def data_chunks(points: Points, device: torch.device, dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield the whole data, scaled, in chunks of shape (points, ...); integers stay integers."""
    assert points.everything is not None
    for start in range(0, points.everything.shape[0], _CHUNK):
        rows = points.everything[start : start + _CHUNK]
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
    if count < _POINTS_PER_ENTRY * n_in:
        note(
            f"--input-metric data: the covariance of {n_in} entries over {count} points is rough;"
            f" use {_POINTS_PER_ENTRY * n_in} points or more"
        )


def _too_large(n_in: int, needed: int, memory: int) -> SettingsError:
    return SettingsError(
        f"--input-metric data: the covariance of {n_in} entries needs {readable(needed)}, and the"
        f" budget is {readable(memory)}.",
        "Give more with --memory, or vary a smaller tensor with --wrt.",
    )
