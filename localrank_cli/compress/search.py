"""Compress to a budget by every method, and measure each on points that did not calibrate."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from localrank_cli.compress.allocation import least
from localrank_cli.compress.eligible import Layers
from localrank_cli.compress.matrix import has_bias, shape_of
from localrank_cli.compress.methods import (
    BASELINES,
    METHODS,
    OURS,
    Factored,
    factor_all,
    factor_bytes,
    work_bytes,
)
from localrank_cli.compress.moments import Draw, collect, groups, moment_bytes
from localrank_cli.compress.replace import Forward, estimate_norms, replace_layers, round_as
from localrank_cli.compress.score import Batch, Difference, Kind, Scores, scores
from localrank_cli.errors import DataError, SettingsError, readable

_Value = TypeVar("_Value")
Ranks = Mapping[str, int | None]
# Slices of the data: for covariances, for the choice of metric and budget, and for the report.
_SHARES = (0.5, 0.25, 0.25)
LEAST_POINTS = 8  # in each split: of fewer the standard error means nothing
FEW = 96  # points to calibrate; of fewer the covariances are rough
# float32 has 1.2e-7 of a value, which some layers multiply.
_ROUNDING = 1e-6
_GRID = 100  # budgets that --max-loss-increase chooses from


@dataclass(frozen=True)
class Slices:
    """Disjoint indices into the data."""

    calibrate: Tensor
    pick: Tensor
    report: Tensor


def split(count: int, seed: int) -> Slices:
    """Return disjoint random parts of a number of points.

    Raises:
        DataError: If there are too few.
    """
    if count * min(_SHARES) < LEAST_POINTS:
        raise DataError(
            f"the data hold {count} points, but compression needs at least"
            f" {int(LEAST_POINTS / min(_SHARES))}: half for calibration, a quarter for"
            " selection, and a quarter for reporting.",
            "Give --data with more points.",
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    last = int(_SHARES[2] * count)
    middle = int(_SHARES[1] * count)
    first = count - middle - last
    return Slices(*(part.sort().values for part in order.tensor_split([first, first + middle])))


def halves(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return two disjoint random halves of a number of held-out points.

    Raises:
        DataError: If there are too few.
    """
    if count < 2 * LEAST_POINTS:
        raise DataError(
            f"the held-out data hold {count} points, but at least {2 * LEAST_POINTS} are needed:"
            " half for selection, and half for reporting.",
            "Give --eval-data with more points.",
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[: count // 2].sort().values, order[count // 2 :].sort().values


@dataclass(frozen=True)
class Data:
    """The batches of each split."""

    calibrate: Callable[[], Iterable[Tensor]]
    pick: Callable[[], Iterable[Batch]]
    report: Callable[[], Iterable[Batch]]


@dataclass(frozen=True)
class Outcome:
    """A network compressed by one method, as measured on the selection split."""

    name: str  # of the method
    budget: int  # weights allowed
    ranks: Ranks
    weights: int  # weights of the factored layers
    predicted: float
    scores: Scores


class Compressor:
    """The factors of a network by every method, from one calibration.

    To be used within `analysis_setting`. The network stays as it is; `forward` runs it on a batch.

    `stored` are the dtypes of the original's weights: what is saved more coarsely than it is
    computed is rounded before it is measured.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        data: Data,
        forward: Forward,
        kind: Kind,
        stored: Mapping[str, torch.dtype] | None = None,
    ) -> None:
        self.model, self.layers, self.data = model, layers, data
        self.forward, self.kind, self._stored = forward, kind, stored or {}
        self._factored: dict[str, Factored] = {}
        self.original = self.measure(model)

    @property
    def total(self) -> int:
        """The weights of the layers that can be factored."""
        return self.layers.weights

    def groups(self, memory: int, taken: int = 0) -> list[dict[str, nn.Module]]:
        """Return the layers that are calibrated together, within a number of bytes.

        Batches take `taken` of them.

        Raises:
            SettingsError: If the factors of all layers, and the sums of one, do not fit.
        """
        held = sum(map(factor_bytes, self.layers.chosen.values()))
        work = max(map(work_bytes, self.layers.chosen.values()))
        largest = max(map(moment_bytes, self.layers.chosen.values()))
        needed = taken + held + work + largest
        if needed > memory:
            raise SettingsError(
                f"the factors of all layers need {readable(held)}, the covariances of the largest"
                f" one and its SVD {readable(largest + work)}, and a batch of points"
                f" {readable(taken)}; --memory is {readable(memory)}.",
                f"Give --memory {-(-needed // 2**20)}MiB, or leave layers as they are with --keep.",
            )
        return list(groups(self.layers.chosen, memory - taken - held - work))

    def calibrate(
        self,
        seed: int,
        memory: int,
        *,
        taken: int = 0,
        adds_biases: bool = True,
        done: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Sum the covariances and factor every layer by every method.

        Batches take `taken` bytes of the memory. Without `adds_biases`, a layer without a bias gets
        none: its inputs vary about 0. `done` is called with the name of each layer.
        """
        draw = Draw(has_classes=self.kind != "targets")
        parts: list[dict[str, Factored]] = []
        for group in self.groups(memory, taken):
            batches = self.data.calibrate()
            moments = collect(self.model, group, batches, draw, self.forward, seed)
            for name, module in group.items():
                if not (adds_biases or has_bias(module)):
                    moments[name] = moments[name].about_zero()
            parts.append(factor_all(group, moments, done))
        self._factored = {
            name: Factored(
                METHODS[name],
                self.layers.chosen,
                _joined([part[name].factors for part in parts]),
                _joined([part[name].means for part in parts]),
                _joined([part[name].positions for part in parts]),
                self.layers.has_last,
            )
            for name in METHODS
        }

    def measure(self, model: nn.Module) -> Scores:
        """Return the scores of a network on the selection split."""
        return scores(model, self.model, self.data.pick(), self.forward, self.kind)

    def report(self, model: nn.Module) -> Scores:
        """Return the scores of a network on the reporting split."""
        return scores(model, self.model, self.data.report(), self.forward, self.kind)

    def build(self, name: str, ranks: Ranks) -> nn.Module:
        """Return the network with the factors of a method, its BatchNorm estimated again."""
        found = replace_layers(self.model, self._factored[name].replacements(ranks))
        round_as(found, self._stored)
        estimate_norms(found, self.data.calibrate(), self.forward)
        round_as(found, self._stored)
        return found

    def at(self, name: str, budget: int) -> Outcome | None:
        """Return the network compressed by a method to a number of weights, measured.

        Returns:
            None where the method has no ranks for so few weights.
        """
        ranks = self._factored[name].ranks(budget)
        return None if ranks is None else self._outcome(name, budget, ranks)

    def _outcome(self, name: str, budget: int, ranks: Ranks) -> Outcome:
        weights = sum(
            shape_of(self.layers.chosen[layer]).cost(rank) for layer, rank in ranks.items()
        )
        predicted = self._factored[name].predicted(ranks)
        measured = self.measure(self.build(name, ranks))
        return Outcome(name, budget, ranks, weights, predicted, measured)

    def distinct(
        self, budget: int, names: Sequence[str] = tuple(OURS)
    ) -> Iterator[tuple[str, Ranks]]:
        """Yield methods with their ranks; of those that give the same network, the first."""
        seen: list[tuple[Callable[..., object], Ranks]] = []
        for name in names:
            sides, ranks = METHODS[name].sides, self._factored[name].ranks(budget)
            if ranks is not None and (sides, ranks) not in seen:
                seen.append((sides, ranks))
                yield name, ranks

    def weights_of(self, share: float) -> int:
        """Return the number of weights of a share.

        Raises:
            SettingsError: If even rank 1 in every layer has more.
        """
        needed = least([shape_of(module) for module in self.layers.chosen.values()])
        budget = int(round(share * self.total, 6))  # 0.29 of 100 is 29, though a float below it
        if budget < needed:
            raise SettingsError(
                f"--budget {share:g}: allows {budget} of {self.total} weights, but rank 1 in every"
                f" layer needs {needed}.",
                f"Give at least --budget {_up(needed / self.total)}.",
            )
        return budget

    def best(self, budget: int, names: Sequence[str] = tuple(OURS)) -> Outcome:
        """Return the outcome that diverges least from the original on the selection split."""
        return least_divergent(
            self._outcome(name, budget, ranks) for name, ranks in self.distinct(budget, names)
        )

    def baselines(self, budget: int) -> tuple[list[Outcome], dict[str, str]]:
        """Return what each baseline gives at a budget, and why the others have no ranks for it."""
        found = {name: self.at(name, budget) for name in BASELINES}
        missing = {
            name: self._factored[name].why_none(budget)
            for name, one in found.items()
            if one is None
        }
        return [outcome for outcome in found.values() if outcome is not None], missing

    def increase(self, outcome: Outcome) -> Difference:
        """Return the paired increase of the loss on the selection split."""
        return Difference.of(outcome.scores.loss, self.original.loss)

    def smallest(self, limit: float, names: Sequence[str] = tuple(OURS)) -> Outcome | None:
        """Return the outcome of fewest weights whose loss increases by less than a limit.

        An increase counts with 1.65 standard errors. Budgets of whole percents are bisected, as if
        the increase fell with every weight; the result is measured, whatever others would be.

        Returns:
            None if no budget below all weights satisfies it.
        """
        needed = least([shape_of(module) for module in self.layers.chosen.values()])
        low, high = -(-needed * _GRID // self.total) - 1, _GRID
        found: Outcome | None = None
        while high - low > 1:
            middle = (low + high) // 2
            outcome = self.best(middle * self.total // _GRID, names)
            if self.increase(outcome).bound < limit:
                found, high = outcome, middle
            else:
                low = middle
        return found


def least_divergent(outcomes: Iterable[Outcome]) -> Outcome:
    """Return the first of those that diverge least from the original on the selection split."""
    return min(outcomes, key=lambda one: float(one.scores.divergence.mean()))


def verdict(
    name: str, ours: Scores, baselines: Mapping[str, Scores], unit: str, share: float
) -> str:
    """Return in one sentence what was gained over the best baseline, on the reporting split.

    `name` is the method of ours. `baselines` have the best on the selection split first.
    """
    percent = f"{100 * share:.6g}%"
    if name in baselines:
        return (
            f"At {percent} of the weights nothing is gained: the result is a baseline,"
            f" {METHODS[name].title}, which diverged least on the selection split."
        )
    if not baselines:
        return f"At {percent} of the weights no baseline has ranks: there is nothing to compare."
    first, best = next(iter(baselines.items()))
    gain = Difference.of(best.loss, ours.loss)
    title = METHODS[first].title
    # Losses of networks that run in float32 are equal up to this.
    rounding = _ROUNDING * (1.0 if unit == "nats" else float(best.loss.mean()))
    if gain.is_noise or abs(gain.mean) <= rounding:
        return (
            f"At {percent} of the weights the loss is within noise of the best baseline,"
            f" {title} ({gain.mean:+.4g} +- {gain.error:.2g} {unit}): use whichever is simpler."
        )
    which = "lower" if gain.mean > 0 else "higher"
    return (
        f"At {percent} of the weights the loss is {abs(gain.mean):.4g} +- {gain.error:.2g} {unit}"
        f" {which} than that of the best baseline, {title}."
    )


def _joined(parts: Sequence[Mapping[str, _Value]]) -> dict[str, _Value]:
    return {name: value for part in parts for name, value in part.items()}


def _up(share: float) -> str:
    """Return a share rounded up, so that it is enough."""
    return f"{-(-share * 1000 // 1) / 1000:.3f}"
