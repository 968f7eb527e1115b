"""The evidence about the ranks of every chosen layer at every point of a network."""

import copy
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from localrank_cli.errors import BudgetError, ModelError, SettingsError, cause, readable
from localrank_cli.intervals.deflation import BLOCK
from localrank_cli.intervals.evidence import Evidence, PointEvidence, probes_of
from localrank_cli.intervals.operator import Operator
from localrank_cli.intervals.point import (
    Terms,
    Threshold,
    TooRoughError,
    examine_point,
    generators_of,
    sigma_probes,
    vector_bytes,
)
from localrank_cli.jacobian.budget import directions_at_once
from localrank_cli.jacobian.engine import Modes, Task
from localrank_cli.jacobian.forecast import forecast_all
from localrank_cli.jacobian.products import PointBatch, Products, point_batches
from localrank_cli.jacobian.progress import Span
from localrank_cli.jacobian.routes import normal_direction
from localrank_cli.layers.setting import analysis_setting
from localrank_cli.layers.survey import CallRecord, Survey
from localrank_cli.spectrum.examine import examine
from localrank_cli.spectrum.layer import Request, make_task
from localrank_cli.spectrum.tolerance import Tolerance

# Copies of a pass that are alive beside the vectors: the graph that J^T u walks, and a tangent.
_PASSES = 4
_AT_ONCE = 64 * 2**20  # bytes of the passes of several vectors at once
# Products in float32 that are compared with those in float64, half of them J v and half J^T u; and
# how many times the largest difference, and the root of the number of steps, they may be off.
N_COMPARED = 4
_FACTOR = 4.0


@dataclass(frozen=True)
class Bounds:
    """How intervals are to be computed, fixed before the first product."""

    confidence: float
    width: float  # share of max_rank; 0: as narrow as it gets
    products: int

    def lanes(self, n_points: int, tolerances: Sequence[Tolerance]) -> int:
        """Return how many probes take steps together at each point."""
        relative = any(one.rtol != 0 for one in tolerances)
        return probes_of(n_points) + sigma_probes(n_points, relative=relative)

    def steps(self, n_points: int, tolerances: Sequence[Tolerance]) -> int:
        """Return how many steps each probe takes at most."""
        return self.products // 2 // self.lanes(n_points, tolerances)

    def method(
        self, n_points: int, tolerances: Sequence[Tolerance], dtype: torch.dtype, seed: int
    ) -> str:
        """Return the text of the column `method`."""
        probes, steps = probes_of(n_points), self.steps(n_points, tolerances)
        name = str(dtype).removeprefix("torch.")
        return f"interval(lanczos,s={probes},nu<={steps},{name},seed={seed})"


@dataclass(frozen=True)
class Purpose:
    """Where intervals are for: what the seed of each probe depends on."""

    run: str
    step: int | None
    n_points: int  # of the checkpoint, in all processes together
    bounds: Bounds
    tolerances: tuple[Tolerance, ...]
    noise: float


@dataclass(frozen=True)
class LayerEvidence:
    """What is known of one layer with respect to one source, at some points."""

    layer: str
    module: str
    n_out: int
    n_in: int  # columns of the Jacobian
    n_varied: int
    wrt: str
    layer_index: int
    method: str
    finite: tuple[bool, ...]  # every point: whether it counts
    evidence: Evidence  # of those that count


def layer_evidence(
    model: nn.Module, points: Tensor, request: Request, purpose: Purpose, modes: Modes
) -> list[LayerEvidence]:
    """Return what products say of every chosen layer, in the order of its pairs."""
    modes.progress.span = 0.0, 1.0
    found = examine(model, points, request.selection, request.dtype, is_chosen=request.is_chosen)
    tasks = [make_task(model, points, view, found, request) for view in found.views]
    places = {view.label: index for index, view in enumerate(found.views)}
    known: dict[tuple[int, str], list[PointEvidence | None]] = {}
    precise = _in_float64(model) if request.dtype == torch.float32 else None
    with analysis_setting(model, request.dtype):
        works = forecast_all(tasks, forward=modes.forward, replays=False)
        modes.progress.start(works, points.shape[0])
        for one in point_batches(tasks, modes):
            task = tasks[one.task]
            for record in task.records:
                at = known.setdefault((one.task, record.call.label), [])
                at.append(_at_point(one, task, record, (request, purpose, modes), precise))
    modes.routes = [f"products J v and J^T u, at most {purpose.bounds.products} at each point"]
    n_points, bounds = purpose.n_points, purpose.bounds
    layers = []
    for pair in found.pairs:
        every = known[places[pair.view.label], pair.record.call.label]
        task = tasks[places[pair.view.label]]
        layers.append(
            LayerEvidence(
                layer=pair.record.call.label,
                module=pair.record.module,
                n_out=pair.record.numel,
                n_in=task.n_in,
                n_varied=task.metric.n_varied(task.survey.n_in) if task.metric else task.n_in,
                wrt=pair.view.label,
                layer_index=pair.layer_index,
                method=bounds.method(n_points, purpose.tolerances, request.dtype, request.seed),
                finite=tuple(point is not None for point in every),
                evidence=Evidence(
                    probes_of(n_points),
                    1 - bounds.confidence,
                    tuple(point for point in every if point is not None),
                ),
            )
        )
    return layers


def _at_point(
    one: PointBatch,
    task: Task,
    record: CallRecord,
    how: tuple[Request, Purpose, Modes],
    precise: nn.Module | None,
) -> PointEvidence | None:
    request, purpose, modes = how
    span = Span(one.point, 1)
    modes.progress.begin(task.wrt, [record.call], span, purpose.bounds.products)
    shape = record.numel, task.n_in
    found = None
    if one.finite[record.call]:
        chunk = at_once(task.survey)
        products = Products(one.batch, record.call, chunk, modes, task.residual)
        device = one.batch.varied.device
        operator = Operator(*shape, products.apply, products.transpose, device)
        bound = products.rank_bound()
        operator.n_products += bound is not None
        if precise is not None:
            steps = purpose.bounds.steps(purpose.n_points, purpose.tolerances)
            operator.error = _FACTOR * _difference(products, precise) * math.sqrt(max(1, steps))
            operator.n_products += 2 * N_COMPARED
        terms = Terms(
            tuple(Threshold(tol.atol, tol.relative(*shape)) for tol in purpose.tolerances),
            delta=1 - purpose.bounds.confidence,
            n_points=purpose.n_points,
            products=purpose.bounds.products,
            width=purpose.bounds.width,
            noise=purpose.noise,
            bound=bound,
        )
        index = request.indices[one.point] if request.indices else one.point
        source = task.wrt.label if task.wrt is not None else ""
        key = [request.seed, purpose.run, purpose.step, record.call.label, source, index]
        try:
            found = examine_point(operator, terms, generators_of(_seed(key)))
        except TooRoughError as error:
            raise _too_rough(record, purpose.tolerances[error.row], error.least) from None
        if found is None:
            _note_reverse(products, record, modes)
    modes.progress.finish(task.wrt, record.call, span)
    return found


def _in_float64(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model).double()
    except Exception as error:  # the user's class may refuse to be copied, in any way
        raise ModelError(
            "--method interval with --dtype float32: a copy of the network in float64, to measure"
            f" what float32 loses, failed: {cause(error)}",
            "Leave out --dtype float32.",
        ) from error


def _difference(products: Products, precise: nn.Module) -> float:
    """Return how far products in float32 are from those in float64, relative to their size."""
    with analysis_setting(precise, torch.float64):
        exact = products.in_float64(precise)
        pairs = []
        for product, other, width in (
            (products.apply, exact.apply, exact.batch.n_in),
            (products.transpose, exact.transpose, exact.n_out),
        ):
            drawn = normal_direction(N_COMPARED // 2 * width, exact.batch.varied)
            # Not rounded beforehand: products in float32 round the vectors that they are given.
            vectors = drawn.view(-1, width)
            pairs.append((product, vectors, other(vectors)))
    largest = 0.0
    for product, vectors, expected in pairs:
        off, sizes = (product(vectors) - expected).norm(dim=1), expected.norm(dim=1)
        ratios = torch.where(off == 0, 0, off / sizes).nan_to_num(nan=math.inf)
        largest = max(largest, float(ratios.max()))
    return largest


def _too_rough(record: CallRecord, tolerance: Tolerance, least: float) -> SettingsError:
    if math.isinf(least) or (tolerance.rtol != 0 and 1.06 * least >= 1):
        return SettingsError(
            f"--method interval with --dtype float32: layer {record.call.label!r}: products in"
            " float32 may be off by as much as the Jacobian itself, as happens when all units are"
            " saturated.",
            "Leave out --dtype float32.",
        )
    kind = "--atol" if tolerance.rtol == 0 else "--rtol"
    # A little more, as two digits may be rounded down.
    return SettingsError(
        f"--method interval with --dtype float32: layer {record.call.label!r} at"
        f" {tolerance.label}: rounding in float32 allows {kind} only from {1.06 * least:.2g} on.",
        "Leave out --dtype float32, or give a larger tolerance.",
    )


def _note_reverse(products: Products, record: CallRecord, modes: Modes) -> None:
    """Note where the backward pass alone is not finite: exact ranks may then count the point."""
    direction = normal_direction(products.batch.n_in, products.batch.varied)
    if not bool(torch.isfinite(products.apply(direction.unsqueeze(0))).all()):
        return
    note = (
        f"layer {record.call.label!r}: products J^T u are not finite at a point where J v are (0"
        " times infinity in a backward pass). Intervals need both, so such points do not"
        " count; --method exact may count them, in forward mode"
    )
    if note not in modes.notes:
        modes.notes.append(note)


def at_once(survey: Survey) -> int:
    """Return how many vectors are pushed through at once, which no memory decides.

    A product of several rounds otherwise than one of a single vector, and bounds are not to depend
    on --memory.
    """
    return min(BLOCK, directions_at_once(1, survey.activations, 8, _AT_ONCE))


def _seed(key: Sequence[object]) -> int:
    digest = hashlib.sha256(repr(tuple(key)).encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big")


def interval_bytes(record: CallRecord, n_in: int, survey: Survey, products: int) -> int:
    """Return the bytes that the interval of a layer at one point takes."""
    vectors = vector_bytes(min(record.numel, n_in), products)
    # A block of vectors on either side, and the passes themselves.
    sides = 8 * 8 * 2 * (record.numel + n_in)
    return vectors + sides + 8 * _PASSES * survey.activations * at_once(survey)


def check_interval(
    record: CallRecord, n_in: int, survey: Survey, products: int, memory: int
) -> None:
    """Check that the interval of a layer fits in `memory` bytes.

    Raises:
        BudgetError: If it does not.
    """
    needed = interval_bytes(record, n_in, survey, products)
    if needed <= memory:
        return
    fewer = products // 2
    while fewer >= 20 and interval_bytes(record, n_in, survey, fewer) > memory:
        fewer //= 2
    advice = f"Give --products {fewer}" if fewer >= 20 else "Leave the layer out with --exclude"
    raise BudgetError(
        f"--method interval: layer {record.call.label!r} ({record.numel} x {n_in}) needs"
        f" {readable(needed)} for the vectors of {products} products, but the budget is"
        f" {readable(memory)}.",
        f"{advice}, or more with --memory.",
    )
