"""Compute the covariance of the varied tensor over the whole data, for `--input-metric data`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from localrank_cli.errors import Note, SettingsError, readable
from localrank_cli.jacobian.everywhere import all_outputs_everywhere
from localrank_cli.jacobian.guards import agreement
from localrank_cli.jacobian.metric_factor import (
    CovarianceSum,
    Metric,
    MetricFactor,
    PositionFactors,
)
from localrank_cli.layers.pairs import Source
from localrank_cli.layers.setting import analysis_setting
from localrank_cli.options.resolve import Settings
from localrank_cli.points.draw import Points
from localrank_cli.spectrum.examine import Examination, View

# With fewer points than this for each entry of the varied tensor, the eigenvalues of the covariance
# spread by more than about 2 sqrt(1 / 10) = 60 % around the true ones (Marchenko & Pastur 1967).
_POINTS_PER_ENTRY = 10
_CHUNK = 1024  # points that pass through the model at once


@dataclass(frozen=True)
class Varied:
    """What is varied of one source: the tensor, a slice of it, or single positions."""

    source: Source
    n_varied: int  # entries that have a covariance
    # Their indices, (n_varied,), or (positions, n_varied); None: all.
    entries: Tensor | None = None
    places: Tensor | None = None  # (positions,): which positions they are

    def rows(self, tensor: Tensor) -> Tensor:
        """Return the entries, (points, n_varied) or (points, positions, n_varied), on the CPU."""
        if self.entries is not None:
            tensor = tensor[:, self.entries.to(tensor.device)]
        return tensor.to("cpu", torch.float64)

    def metric(self, factor: Tensor, count: int | None) -> Metric:
        """Return the metric of a factor of its covariance."""
        if self.places is None:
            return MetricFactor(factor, count)
        return PositionFactors(factor, self.places, count)

    def n_bytes(self, count: int) -> int:
        """Return the bytes of its factor over some points."""
        n_positions = 1 if self.places is None else self.places.shape[0]
        return 8 * n_positions * self.n_varied * min(self.n_varied, count)


@dataclass(frozen=True)
class MetricPlan:
    """The metric of a series, or how to compute it at each checkpoint.

    Without `fixed` and `varied` it is the identity.
    """

    points: Points
    low_precision: bool
    fixed: Mapping[Source, Metric] = field(default_factory=dict)  # the same at every checkpoint
    varied: tuple[Varied, ...] = ()  # those of each checkpoint
    n_cov: int | None = None  # points that the covariance is taken over
    n_bytes: int = 0  # bytes of the budget that the factors take
    at_once: int = _CHUNK  # points that pass through the model at once

    def at(
        self, model: nn.Module, device: torch.device, dtype: torch.dtype
    ) -> Mapping[Source, Metric]:
        """Return the metric of each source at the weights of a model; none is the identity."""
        if not self.varied:
            return self.fixed
        calls = [one.source for one in self.varied if one.source is not None]

        def tensors() -> Iterator[dict[Source, Tensor]]:
            """Yield all source tensors, some points of the data at a time."""
            tolerance = agreement(dtype, self.low_precision)
            chunks = partial(data_chunks, self.points, device, dtype, self.at_once)
            every = all_outputs_everywhere(model, chunks(), calls, tolerance)
            for chunk, outputs in zip(chunks(), every, strict=True):
                yield {None: chunk.flatten(1), **dict(zip(calls, outputs, strict=True))}

        with analysis_setting(model, dtype):
            return _metrics(self.varied, tensors)


def _metrics(
    varied: Sequence[Varied], tensors: Callable[[], Iterator[Mapping[Source, Tensor]]]
) -> dict[Source, Metric]:
    sums = [CovarianceSum() for _ in varied]
    for chunk in tensors():
        for one, own in zip(varied, sums, strict=True):
            own.add_to_mean(one.rows(chunk[one.source]))
    for chunk in tensors():
        for one, own in zip(varied, sums, strict=True):
            own.add(one.rows(chunk[one.source]))
    return {
        one.source: one.metric(own.factor(), own.count)
        for one, own in zip(varied, sums, strict=True)
    }


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
    low = any(view.survey.has_low_values for view in examination.views)
    plan = MetricPlan(points, low)
    if settings.input_metric == "identity":
        return plan
    varied = tuple(_varied(view, examination, settings, points) for view in examination.views)
    modules = [one.source.label for one in varied if one.source is not None]
    if points.spread is not None:
        if modules:
            raise SettingsError(
                f"--input-metric data with --wrt {settings.selection.wrt}: the covariance of a"
                f" module's output ({modules[0]}) needs data to run over, but the points come from"
                " a distribution.",
                "Give a data file with --data.",
            )
        spread = torch.tensor(points.spread, dtype=torch.float64, device="cpu")
        return replace(plan, fixed={one.source: one.metric(spread, None) for one in varied})
    assert points.everything is not None
    count = points.everything.shape[0]
    _check_count(count, varied, settings.allow_small_cov, note)
    sizes = [one.n_bytes(count) for one in varied]
    # The factors, and the rows under the largest with the QR's copy of both.
    needed = sum(sizes) + 2 * max(sizes)
    if refuses and needed > memory:
        raise _too_large(varied, needed, memory)
    room = memory // 4 // 8  # entries of one pass
    at_once = max(1, min(_CHUNK, room // max(1, examination.survey.activations)))
    plan = replace(plan, varied=varied, n_cov=count, n_bytes=sum(sizes), at_once=at_once)
    if modules or needed > memory:
        return plan
    cpu = torch.device("cpu")
    found = _metrics(
        varied,
        lambda: ({None: one.flatten(1)} for one in data_chunks(points, cpu, torch.float64)),
    )
    return replace(plan, varied=(), fixed=found)


def _varied(view: View, examination: Examination, settings: Settings, points: Points) -> Varied:
    positions, axes = examination.positions, view.source_axes
    if positions.takes_whole_source or axes is None:
        return Varied(view.source, view.n_in, view.entries)
    # Those of all points, so that each shard has the same.
    every = positions.of_points(axes.grid, settings.source.seed, points.indices)
    drawn = torch.tensor(sorted(set(every.flatten().tolist())), device="cpu")
    return Varied(view.source, axes.n_features, axes.entries(drawn), drawn)


def data_chunks(
    points: Points, device: torch.device, dtype: torch.dtype, at_once: int = _CHUNK
) -> Iterator[Tensor]:
    """Yield the whole data, scaled, in chunks of shape (points, ...); integers stay integers."""
    assert points.everything is not None
    for start in range(0, points.everything.shape[0], at_once):
        rows = points.everything[start : start + at_once]
        floating = points.scale is not None or rows.is_floating_point()
        chunk = rows.to(torch.float64 if floating else torch.int64)
        if points.scale is not None:
            chunk = chunk * points.scale
        yield chunk.to(device=device, dtype=dtype if floating else None)


def _check_count(count: int, varied: Sequence[Varied], allow_small: bool, note: Note) -> None:
    if count < 2:
        raise SettingsError(
            "--input-metric data: a covariance needs at least 2 points, but the data hold"
            f" {count}.",
            "Give more data.",
        )
    largest = max(varied, key=lambda one: one.n_varied)
    entries = largest.n_varied
    of = "the varied tensor" if largest.places is None else "a position of the varied tensor"
    if count <= entries and not allow_small:
        raise SettingsError(
            f"--input-metric data: {count} points span at most {count - 1} of the {entries}"
            f" directions of {of}: the sample, not the network, would cap the rank.",
            "Give a data file with more points, or pass --allow-small-cov.",
        )
    if count < _POINTS_PER_ENTRY * entries:
        note(
            f"--input-metric data: the covariance of {entries} entries over {count} points is"
            f" rough; use {_POINTS_PER_ENTRY * entries} points or more"
        )


def _too_large(varied: Sequence[Varied], needed: int, memory: int) -> SettingsError:
    largest = max(varied, key=lambda one: one.n_varied)
    what = f"covariance of {largest.n_varied} entries needs"
    advice = "vary a smaller tensor with --wrt, or single --positions such as last"
    if largest.places is not None or len(varied) > 1:
        n_positions = 1 if largest.places is None else largest.places.shape[0]
        of = f", at {n_positions} positions each," if largest.places is not None else ""
        sources = f"{len(varied)} source{'s' if len(varied) > 1 else ''}"
        what = f"covariances of {sources}{of} with up to {largest.n_varied} entries need"
        advice = "choose fewer sources with --wrt, or fewer positions, as with --positions last"
    return SettingsError(
        f"--input-metric data: the {what} {readable(needed)}, but the budget is"
        f" {readable(memory)}.",
        f"Give more with --memory; or {advice}.",
    )
