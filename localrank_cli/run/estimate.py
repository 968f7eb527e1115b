"""Estimate how long an analysis takes, from a few products of its Jacobians."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from localrank_cli.intervals.layer import at_once
from localrank_cli.jacobian.engine import Modes, Task
from localrank_cli.jacobian.forecast import Work, forecast
from localrank_cli.jacobian.probe import Rates, measure
from localrank_cli.layers.capture import Call
from localrank_cli.measures.table import demand_of
from localrank_cli.run.headers import load_state
from localrank_cli.run.plan import Plan, SeriesPlan, look_at, place_points
from localrank_cli.spectrum.examine import Pair, View
from localrank_cli.spectrum.layer import Request, layer_spectra, make_task
from localrank_cli.spectrum.solve import solve_stack

# Points of the second timed run of a small network, enough to show what a batch saves for each.
_BATCH = 4
# Operations at one point below which points are computed: in a second or so.
_SMALL = 2e8
_SIDE = 384  # of the matrix whose singular values are timed
_CHECKS = 4  # forward passes at each point besides the Jacobians
# Operations a second below which no machine is expected.
_SLOW = 3e8
_LONG = 3600.0  # seconds


@dataclass(frozen=True)
class PairWork:
    """What the Jacobians of one pair take at one point."""

    pair: Pair
    work: Work
    whole: Work | None = None  # of the Jacobian without slices, where that is computed too
    seconds: float | None = None  # at all points of a checkpoint

    @property
    def all(self) -> tuple[Work, ...]:
        """Everything that is computed for the pair."""
        return (self.work,) if self.whole is None else (self.work, self.whole)

    @property
    def operations(self) -> float:
        """The operations at one point."""
        return sum(one.operations + one.reduction for one in self.all)


@dataclass(frozen=True)
class Estimate:
    """What the Jacobians of a series take."""

    pairs: tuple[PairWork, ...]
    routes: tuple[str, ...] = ()  # of a small network, whose points were computed
    checkpoint: float | None = None  # seconds for one
    total: float | None = None  # seconds for all checkpoints


def works_of(plan: Plan, series: SeriesPlan, rates: Rates | None = None) -> tuple[PairWork, ...]:
    """Return what each pair of a series takes, from shapes alone or for the modes of `rates`."""
    forward = rates.forward if rates is not None else True
    replays = rates.replays if rates is not None else series.examination.positions.kind != "all"
    how = {"forward": forward, "replays": replays}
    found = {
        (label, call): work
        for label, task in _tasks(plan, series, series.examination.views).items()
        for call, work in forecast(task, **how).items()
    }
    whole: dict[Call, Work] = {}
    if series.settings.by_whole:
        view = series.examination.views[0]
        views = (replace(view, records=view.whole_records, entries=None, picked={}),)
        (task,) = _tasks(plan, series, views).values()
        whole = forecast(task, **how)
    if rates is not None and rates.chain and series.settings.bounds is None:
        found = {key: _of_chain(work, rates) for key, work in found.items()}
        whole = {call: _of_chain(work, rates) for call, work in whole.items()}
    works = tuple(
        PairWork(pair, found[pair.view.label, pair.record.call], whole.get(pair.record.call))
        for pair in series.examination.pairs
    )
    bounds = series.settings.bounds
    return works if bounds is None else tuple(_of_products(one, bounds.products) for one in works)


def _of_products(one: PairWork, products: int) -> PairWork:
    """Return what the products for an interval take, at most."""
    record, size = one.pair.record, min(one.pair.record.numel, one.pair.n_in)
    # Each vector is made orthogonal to all before it, which takes about their Gram matrix.
    shape = min(size, products // 2), size
    work = Work(record, "products", products, products * record.cost, 1, shape)
    return replace(one, work=work)


def _of_chain(work: Work, rates: Rates) -> Work:
    size = rates.chain[work.record.call]
    shape = work.shape[0], size.width
    return replace(work, mode="chain", passes=0, operations=size.operations, shape=shape)


def estimate(plan: Plan, series: SeriesPlan, *, may_compute: bool = True) -> Estimate:
    """Return what the Jacobians of a series take, in seconds too where they can be measured.

    The network of a large series is measured by a few products. That of a small one computes a few
    points, if it `may_compute`. Planning has loaded the first checkpoint's weights.
    """
    works = works_of(plan, series)
    if not series.checkpoints:
        return Estimate(works)
    started = time.perf_counter()
    if series.checkpoints[0].file.source is None:  # others are fetched while one is computed
        load_state(series.checkpoints[0], plan.trust_pickle)
    reading = time.perf_counter() - started
    operations = sum(one.operations for one in works)
    routes: tuple[str, ...] = ()
    n_points = len(series.points.indices)
    try:
        rates = _rates(plan, series, works)
        solving = _solving(plan, series)
        timed = _timed(works_of(plan, series, rates), rates, n_points, solving)
        seconds = sum(one.seconds or 0.0 for one in timed)
        is_small = operations < _SMALL and series.settings.bounds is None
        if may_compute and is_small and not look_at(plan, series).unfit:
            computed, routes = _computed(plan, series)
            timed = _scaled(timed, computed / seconds) if seconds else timed
            seconds = computed
        else:
            seconds += _CHECKS * n_points * rates.check
    except Exception:  # a network may refuse any of it: that is for analyze to report
        return Estimate(works)
    checkpoint = reading + seconds
    return Estimate(timed, routes, checkpoint, len(series.checkpoints) * checkpoint)


def _scaled(works: Sequence[PairWork], factor: float) -> tuple[PairWork, ...]:
    return tuple(replace(one, seconds=factor * (one.seconds or 0.0)) for one in works)


@dataclass(frozen=True)
class LongTime:
    """An analysis that takes long."""

    seconds: float
    n_checkpoints: int


def long_time(plan: Plan, limit: float = _LONG) -> LongTime | None:
    """Return how long a plan takes if that is longer than a number of seconds, else None.

    Nothing is measured of a plan that takes less by its shapes, at the lowest rate of any machine.
    """
    slow = 0.0
    for series in plan.series:
        one_point = sum(one.operations for one in works_of(plan, series))
        slow += len(series.checkpoints) * len(series.points.indices) * one_point / _SLOW
    if slow <= limit:
        return None
    found = [estimate(plan, series, may_compute=False) for series in plan.series]
    seconds = sum(one.total or 0.0 for one in found)
    count = sum(len(series.checkpoints) for series in plan.series)
    return LongTime(seconds, count) if seconds > limit else None


def _tasks(plan: Plan, series: SeriesPlan, views: Iterable[View]) -> Mapping[str, Task]:
    """Return a task of one point for each source."""
    settings = series.settings
    points = place_points(series.points, plan.device, settings.dtype)[:1]
    request = _request(plan, series)
    found = {}
    for view in views:
        task = make_task(series.model, points, view, series.examination, request)
        found[view.label] = task
    return found


def _request(plan: Plan, series: SeriesPlan) -> Request:
    settings = series.settings
    return Request(
        settings.selection,
        settings.dtype,
        plan.memory - series.metric.n_bytes,
        demand_of(settings.tolerances, settings.noise, settings.averaged),
        # One of each checkpoint is missing: its sizes are those without.
        metrics=series.metric.fixed,
        scaled_by_whole=settings.by_whole,
        seed=settings.source.seed,
        indices=series.points.indices[:1],
    )


def _rates(plan: Plan, series: SeriesPlan, works: Sequence[PairWork]) -> Rates:
    """Return the rates of the source whose Jacobians take most; others take them too."""
    by_source: dict[str, float] = {}
    for one in works:
        label = one.pair.view.label
        by_source[label] = by_source.get(label, 0.0) + sum(work.operations for work in one.all)
    largest = max(by_source, key=lambda label: by_source[label])
    task = _tasks(plan, series, series.examination.views)[largest]
    bounds, n_points = series.settings.bounds, len(series.points.indices)
    if bounds is None:
        return measure(task)
    lanes = bounds.lanes(n_points, series.settings.tolerances)
    return measure(task, min(lanes, at_once(task.survey)))


def _solving(plan: Plan, series: SeriesPlan) -> tuple[float, float]:
    """Return the seconds of one operation of a Gram matrix, and of its eigenvalues."""
    settings = series.settings
    demand = demand_of(settings.tolerances, settings.noise, settings.averaged)
    generator = torch.Generator("cpu").manual_seed(0)
    drawn = torch.randn(_SIDE, 2 * _SIDE, generator=generator, dtype=torch.float64, device="cpu")
    matrix = drawn.to(plan.device)
    gram = min(_seconds(lambda: matrix @ matrix.mT) for _ in range(2))
    # The first call loads what the second does not.
    whole = min(_seconds(lambda: solve_stack(matrix.unsqueeze(0), demand)) for _ in range(2))
    return gram / (4.0 * _SIDE**3), max(0.0, whole - gram) / (9.0 * _SIDE**3)


def _seconds(compute: Callable[[], Tensor]) -> float:
    started = time.perf_counter()
    compute().sum().item()  # a GPU computes when the value is asked for
    return time.perf_counter() - started


def _timed(
    works: Sequence[PairWork], rates: Rates, n_points: int, solving: tuple[float, float]
) -> tuple[PairWork, ...]:
    gram, eigenvalues = solving

    def seconds(work: Work) -> float:
        """Estimate the seconds of a call at all points."""
        size = rates.chain.get(work.record.call)
        # A chain's matrices are products, as fast as their Gram matrices.
        making = rates.of(work) if size is None else size.operations * gram
        times = 1 if size is not None and size.is_same else n_points
        return times * (making + work.gram * gram + work.eigenvalues * eigenvalues)

    return tuple(replace(one, seconds=sum(map(seconds, one.all))) for one in works)


def _computed(plan: Plan, series: SeriesPlan) -> tuple[float, tuple[str, ...]]:
    """Return the seconds of one checkpoint's points, from computing a few, and the routes."""
    settings, modes = series.settings, Modes()
    points = place_points(series.points, plan.device, settings.dtype)
    metrics = series.metric.at(series.model, plan.device, settings.dtype)
    request = replace(_request(plan, series), metrics=metrics, indices=series.points.indices)
    times = []
    batch = min(_BATCH, len(points))
    for count in (1, 1, batch):  # the first run is a warm-up
        started = time.perf_counter()
        some = replace(request, indices=request.indices[:count])
        layer_spectra(series.model, points[:count], some, modes)
        times.append(time.perf_counter() - started)
    _, one, several = times
    per_point = max(0.0, several - one) / (batch - 1) if batch > 1 else 0.0
    return one + (len(points) - 1) * per_point, tuple(modes.routes)
