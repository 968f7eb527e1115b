"""How fast a network's products with its Jacobians are, measured by a few of them."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch

from localrank_cli.jacobian import guards
from localrank_cli.jacobian.batch import Batch
from localrank_cli.jacobian.budget import Alive, Budget, directions_at_once
from localrank_cli.jacobian.chain import FactorSize
from localrank_cli.jacobian.engine import MOST_TOKENS, Modes, Task, calls_of, chain_of
from localrank_cli.jacobian.forecast import Mode, Work, forecast
from localrank_cli.jacobian.parts import pulled_rows, with_rows
from localrank_cli.jacobian.past import Pasts, part_of_token, push_token, tokens_with_past
from localrank_cli.jacobian.products import Products
from localrank_cli.jacobian.routes import pushforward, unit_rows
from localrank_cli.layers.capture import Call
from localrank_cli.layers.replay import record as record_replay
from localrank_cli.layers.setting import analysis_setting
from localrank_cli.layers.survey import CallRecord

# Seconds of one measurement, unless a few directions take longer.
_SECONDS = 1.0
_FEW_DIRECTIONS = 4  # directions at once, which take less each than one alone
# Seconds of one direction after which it is not measured with others, or once more.
_TOO_LONG, _FAR_TOO_LONG = 3.0, 15.0


@dataclass(frozen=True)
class Rates:
    """Seconds for one operation of the forward pass, along one direction, by mode."""

    seconds: Mapping[str, float]  # forward, reverse, token, products: those that were measured
    check: float = 0.0  # of running one point
    forward: bool = True  # whether forward mode works
    replays: bool = False  # whether what comes before the source is run once only
    n_tokens: int = 0  # where tokens are pushed through one by one
    # Where there are no passes, but products of weights: at the first point.
    chain: Mapping[Call, FactorSize] = field(default_factory=dict)

    def of(self, work: Work) -> float:
        """Return the seconds of a call's passes at one point."""
        if self.chain:
            return 0.0
        if self.n_tokens and work.mode == "forward":
            return work.operations / self.n_tokens * self.seconds["token"]
        known = self.seconds.get(work.mode)
        return work.operations * (max(self.seconds.values()) if known is None else known)


def measure(task: Task, vectors: int = 0) -> Rates:
    """Return the rates of a network, from a few products at its first point.

    The task needs no triangles. It is measured as the engine would compute it, without the checks.
    With `vectors`, it is the rate of products J v and J^T u with that many at once, in alternation.

    Raises:
        Exception: Whatever the network raises when it is differentiated.
    """
    model, point = task.model, task.points[:1]
    with analysis_setting(model, task.dtype):
        started = time.perf_counter()
        values = guards.point_values(model, point, *calls_of([task]))
        check = time.perf_counter() - started
        layouts = guards.lay_out(model, point, values, task.tolerance)
        if layouts is None:
            raise guards.unrepeatable_alone(model, point, values.outputs)
        batch = guards.make_batch(model, point, values, layouts, task.wrt)
        batch = batch.in_metric(task.metric, task.picked)
        if vectors:
            return Rates(_products(task, batch, vectors), check)
        chain = chain_of(task, batch, Modes(), values.outputs)
        if chain is not None:
            return Rates({}, check, chain=chain.sizes(0))
        return _Probe(task, batch, check).rates()


def _products(task: Task, batch: Batch, vectors: int) -> dict[str, float]:
    deepest = max(task.records, key=lambda record: record.cost)
    products = Products(batch, deepest.call, vectors, Modes(), task.residual)
    directions = unit_rows(0, min(vectors, batch.n_in), batch.varied)

    def both(count: int) -> object:
        """Compute J v and J^T of it for the first few unit vectors."""
        return products.transpose(products.apply(directions[:count]))

    count = len(directions)
    first = _seconds(both, count)  # torch loads code of forward mode, which may take seconds
    best = first if first > _FAR_TOO_LONG else _seconds(both, count)
    if best < _SECONDS:
        best = min(best, _seconds(both, count))
    return {"products": best / (2 * count) / max(deepest.cost, 1.0)}


class _Probe:
    def __init__(self, task: Task, batch: Batch, check: float) -> None:
        self._task, self._check = task, check
        self._parts = {call: one[:1] for call, one in task.parts.items()}
        self._batch = with_rows(batch, self._parts) if self._parts else batch
        self._replays = False

    def rates(self) -> Rates:
        """Measure each mode that is used."""
        task = self._task
        self._replay()
        seconds: dict[str, float] = {}
        forward, n_tokens = True, 0
        works = forecast(task, replays=self._replays)
        deepest = _deepest(works.values(), "forward")
        if deepest is not None:
            try:
                n_tokens = self._n_tokens(deepest)
                seconds |= self._token(deepest, n_tokens) if n_tokens else self._forward(deepest)
            except Exception:  # torch.func refuses some networks, with many types of error
                forward, n_tokens = False, 0
                works = forecast(task, forward=False, replays=self._replays)
        deepest = _deepest(works.values(), "reverse")
        if deepest is not None:
            seconds |= self._reverse(deepest)
        return Rates(seconds, self._check, forward, self._replays, n_tokens)

    def _replay(self) -> None:
        task, batch = self._task, self._batch
        if not self._parts or task.wrt is None:
            return
        calls = [record.call for record in task.records]
        try:
            found = record_replay(task.model, batch.inputs, task.wrt, calls)
        except Exception:  # a model may mind that a module does not run
            return
        if found is not None:
            self._replays = True
            self._batch = replace(batch, replay=found)

    def _n_tokens(self, record: CallRecord) -> int:
        if not self._parts or self._task.dtype != torch.float64:
            return 0
        batch = self._batch
        parts = self._parts[record.call]
        return tokens_with_past(self._task.model, batch.inputs, batch.wrt, parts, batch.n_in)

    def _forward(self, record: CallRecord) -> dict[str, float]:
        batch, calls = self._batch, [record.call]

        def push(count: int) -> object:
            """Compute J v for the first few unit vectors."""
            return pushforward(batch, calls, unit_rows(0, count, batch.varied))

        one = _seconds_each(push, min(self._chunk(record), batch.n_in))
        return {"forward": one / self._depth(record)}

    def _token(self, record: CallRecord, n_tokens: int) -> dict[str, float]:
        calls = [record.call]
        pasts = Pasts(self._task.model, self._batch.inputs, record.call)
        token, varied = part_of_token(self._batch, self._parts[record.call], (0, 0), pasts)
        with torch.no_grad():
            token = token.with_replay(calls)

        def push(count: int) -> object:
            """Compute J v of one token for its first few unit vectors."""
            return push_token(token, varied, calls, (0, count))

        chunk = min(MOST_TOKENS, self._chunk(record) * max(1, n_tokens // 4))  # as in the engine
        one = _seconds_each(push, min(chunk, varied.shape[0]))
        return {"token": one * n_tokens / self._depth(record)}

    def _reverse(self, record: CallRecord) -> dict[str, float]:
        varied = self._batch.varied.detach().requires_grad_(True)
        with torch.enable_grad():
            (output,) = self._batch.outputs(varied, [record.call])

        def pull(count: int) -> object:
            """Compute the first few rows of J."""
            return pulled_rows(output, varied, 0, count, keep=True)

        most = min(max(2, self._chunk(record) // 2), output.shape[1])
        try:
            one = _seconds_each(pull, most)
        except Exception:  # vmap over a backward raises many types of error
            one = _seconds_each(pull, 1)
        return {"reverse": one / self._depth(record)}

    def _depth(self, record: CallRecord) -> float:
        source = self._task.survey.source_cost if self._replays else 0.0
        return max(record.cost - source, 1.0)

    def _chunk(self, record: CallRecord) -> int:
        task, batch, budget = self._task, self._batch, Budget(self._task.memory)
        if not self._parts:
            itemsize = task.dtype.itemsize
            return directions_at_once(1, task.survey.activations, itemsize, budget.directions)
        with torch.no_grad(), Alive() as alive:
            batch.outputs(batch.varied, [record.call], early=True)
        return budget.part_directions(3 * alive.peak)


def _deepest(works: Iterable[Work], mode: Mode) -> CallRecord | None:
    found = [one.record for one in works if one.mode == mode]
    return max(found, key=lambda record: record.cost) if found else None


def _seconds_each(push: Callable[[int], object], most: int) -> float:
    """Return the seconds of one direction, where up to `most` are pushed through at once."""
    first = _seconds(push, 1)  # torch loads code of forward mode, which may take seconds
    if first > _FAR_TOO_LONG:
        return first
    again = _seconds(push, 1)
    if again > _TOO_LONG:
        return again
    count = min(most, max(_FEW_DIRECTIONS, int(_SECONDS / max(again, 1e-9))))
    return min(again, _seconds(push, count) / count) if count > 1 else again


def _seconds(push: Callable[[int], object], count: int) -> float:
    started = time.perf_counter()
    push(count)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
