"""Which Jacobians fit in memory, and what would fit in place of those that do not."""

import math
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor, nn

from localrank_cli.errors import BudgetError, LocalrankError, printable, readable
from localrank_cli.intervals.layer import interval_bytes
from localrank_cli.jacobian.budget import needed_bytes
from localrank_cli.layers.axes import Axes
from localrank_cli.layers.capture import Call
from localrank_cli.layers.pairs import PREVIOUS
from localrank_cli.layers.positions import EACH, LAST, Positions
from localrank_cli.layers.select import Selection, named_exactly
from localrank_cli.layers.slices import positions
from localrank_cli.layers.triangle import triangle_rows
from localrank_cli.options.resolve import Settings
from localrank_cli.options.table import DEFAULT_PRODUCTS
from localrank_cli.run.covariance import MetricPlan
from localrank_cli.spectrum.examine import (
    Examination,
    Pair,
    View,
    at_positions,
    axes_of,
    examine,
)

_MIB = 2**20
# Data of one token show nothing of a network over tokens.
_FEWEST_TOKENS = 2
_FEW_LAYERS = 3  # layers that an advice may name
_BEST = 2  # ways out that a refusal names


@dataclass(frozen=True)
class Need:
    """The memory that the Jacobian of one pair takes at least."""

    pair: Pair
    n_bytes: int
    whole: tuple[int, int] | None = None  # n_out and n_in without slices, where that takes more

    @property
    def label(self) -> str:
        """The layer, and its source where it is a module."""
        return label_of(self.pair)

    @property
    def size(self) -> tuple[int, int]:
        """The key of the largest need."""
        n_out, n_in = self.shape
        return self.n_bytes, n_out * n_in

    @property
    def shape(self) -> tuple[int, int]:
        """n_out and n_in of the Jacobian that takes it."""
        return (self.pair.record.numel, self.pair.n_in) if self.whole is None else self.whole


def _or_whole(need: Need, shape: tuple[int, int]) -> Need:
    """Return the need of a slice, or that of the whole Jacobian if it is larger."""
    n_bytes = needed_bytes(*shape)
    return replace(need, n_bytes=n_bytes, whole=shape) if n_bytes > need.n_bytes else need


@dataclass(frozen=True)
class WayOut:
    """A change of the command or of the data with which everything fits."""

    text: str  # words of the command line, or what to do
    n_layers: int  # that are measured then
    largest: Need

    @property
    def result(self) -> str:
        """What there is then."""
        n_out, n_in = self.largest.shape
        size = f"{n_out} x {n_in}, {readable(self.largest.n_bytes)}"
        if self.n_layers == 1:
            return f"one Jacobian, {size}"
        return f"{self.n_layers} Jacobians, the largest {size}"


@dataclass(frozen=True)
class BoundsWay(WayOut):
    """Bounds on the ranks of all layers, from products."""

    @property
    def result(self) -> str:
        """What there is then."""
        return (
            f"an interval for each rank, at most {DEFAULT_PRODUCTS} products with each Jacobian at"
            f" each point, {readable(self.largest.n_bytes)}"
        )


def label_of(pair: Pair) -> str:
    """Return the name of a pair's layer, and of its source where it is a module."""
    of = f" from {pair.view.label}" if pair.view.label else ""
    return f"{pair.record.call.label}{of}"


@dataclass(frozen=True)
class Look:
    """What decides whether the Jacobians of a series fit."""

    model: nn.Module
    points: Tensor  # on the model's device; one is enough
    settings: Settings
    examination: Examination
    metric: MetricPlan
    memory: int  # `--memory`
    free: int  # bytes that are free on the device

    @property
    def room(self) -> int:
        """Bytes for the Jacobians."""
        return self.memory - self.metric.n_bytes

    @cached_property
    def needs(self) -> tuple[Need, ...]:
        """The needs of all pairs, in their order."""
        if self.settings.bounds is not None:
            return self._of_intervals(self.settings.bounds.products)
        found = self._of(self.examination, self.settings.selection)
        if not self.settings.by_whole:
            return found
        view = self.examination.views[0]
        whole = {record.call: (record.numel, view.survey.n_in) for record in view.whole_records}
        return tuple(_or_whole(one, whole[one.pair.record.call]) for one in found)

    @property
    def unfit(self) -> list[Need]:
        """The needs that exceed the room."""
        return [one for one in self.needs if one.n_bytes > self.room]

    def check(self) -> None:
        """Check that every Jacobian fits.

        Raises:
            BudgetError: If one does not; with how many, the largest, and two ways out.
        """
        unfit = self.unfit
        if not unfit:
            return
        largest = max(unfit, key=lambda one: one.size)
        n_out, n_in = largest.shape
        ways = list(islice(self.ways_out(), _BEST))
        advice = " Or: ".join(f"{way.text} ({way.result})." for way in ways)
        bounds = self.bounds_way()
        if bounds is not None:
            bounded = f"{bounds.text} ({bounds.result})."
            advice = f"{advice} Or bounds: {bounded}" if advice else bounded
        count, total = len(unfit), len(self.needs)
        raise BudgetError(
            f"{count} of {total} {'layer' if total == 1 else 'layers'}"
            f" {'does' if count == 1 else 'do'} not fit in {readable(self.memory)} of memory.\n"
            f"The largest, {printable(largest.label)!r}, has a Jacobian of {n_out} x {n_in}; its"
            f" reduction needs {readable(largest.n_bytes)}, but the budget is"
            f" {readable(self.room)}.",
            f"What fits: {advice}"
            if advice
            else "Leave layers out with --exclude, name a smaller source with --wrt, or use a"
            " machine with more memory.",
        )

    def ways_out(self) -> Iterator[WayOut]:
        """Yield changes with which everything fits, the least first; nothing where all fits now."""
        if not self.unfit or self.settings.bounds is not None:
            return
        yield from self._more_memory()
        yield from self._fewer_layers()
        if self._may_choose_parts:
            yield from self._narrower()
        yield from self._slices()
        yield from self._fewer_tokens()

    def _of_intervals(self, products: int) -> tuple[Need, ...]:
        return tuple(
            Need(
                pair,
                interval_bytes(pair.record, self._columns(pair.n_in), pair.view.survey, products),
            )
            for pair in self.examination.pairs
        )

    def bounds_way(self) -> WayOut | None:
        """Return the way out by bounds in place of ranks; None where it is none."""
        settings = self.settings
        low = self.examination.survey.has_low_precision
        whole = settings.selection.positions.is_all and not settings.by_whole
        if not self.unfit or settings.bounds is not None:
            return None
        if low or not whole or settings.pooled:
            return None
        needs = self._of_intervals(DEFAULT_PRODUCTS)
        if any(one.n_bytes > self.room for one in needs):
            return None
        largest = max(needs, key=lambda one: one.size)
        return BoundsWay("--method interval", len(needs), largest)

    def _of(self, examination: Examination, selection: Selection) -> tuple[Need, ...]:
        return tuple(
            Need(pair, needed_bytes(self._rows(pair, selection), self._columns(pair.n_in)))
            for pair in examination.pairs
        )

    def _rows(self, pair: Pair, selection: Selection) -> int:
        """Return the rows of the matrix that is reduced in place of the Jacobian."""
        record, n_rows = pair.record, pair.record.numel
        if selection.positions.is_all or selection.residual or record.is_complex:
            return n_rows
        fewer = triangle_rows(self.model.get_submodule(record.call.name))
        return n_rows if fewer is None else min(fewer, n_rows)

    def _columns(self, n_in: int) -> int:
        return n_in if self.metric.n_cov is None else min(n_in, self.metric.n_cov)

    def _way(self, text: str, needs: Sequence[Need]) -> Iterator[WayOut]:
        if needs and all(one.n_bytes <= self.room for one in needs):
            yield WayOut(text, len(needs), max(needs, key=lambda one: one.size))

    def _more_memory(self) -> Iterator[WayOut]:
        largest = max(self.needs, key=lambda one: one.size)
        needed = -(-(largest.n_bytes + self.metric.n_bytes) // _MIB) * _MIB
        if needed <= self.free:
            yield WayOut(f"--memory {needed // _MIB}MiB", len(self.needs), largest)

    def _fewer_layers(self) -> Iterator[WayOut]:
        labels = dict.fromkeys(one.pair.record.call.label for one in self.unfit)
        named = set(self.settings.selection.include)
        if len(labels) > _FEW_LAYERS or named & set(labels):
            return
        left = [one for one in self.needs if one.pair.record.call.label not in labels]
        yield from self._way(f"--exclude {shlex.quote(','.join(labels))}", left)

    @property
    def _may_choose_parts(self) -> bool:
        selection = self.settings.selection
        has_slices = selection.input_slice or selection.output_slice
        return not has_slices and self.settings.input_metric != "data"

    def _narrower(self) -> Iterator[WayOut]:
        """Yield the ways out with another source, or other positions."""
        selection = self.settings.selection
        before = replace(selection, wrt=PREVIOUS)
        pairs = self._examined(before) if selection.wrt != PREVIOUS else None
        wrt = f"--wrt {PREVIOUS}"
        if pairs is not None:
            yield from self._way(wrt, self._of(pairs, before))
        if not selection.positions.is_all:
            return
        yield from self._parts(self.examination.views, selection, "--positions")
        if pairs is not None:
            yield from self._parts(pairs.views, before, f"{wrt} --positions")

    def _parts(
        self, views: tuple[View, ...], selection: Selection, option: str
    ) -> Iterator[WayOut]:
        """Yield the ways out with single positions, those of more pairs first."""
        count = sum(len(view.records) for view in views)
        found = [*self._at(views, selection, LAST, f"{option} {LAST}")]
        if not found or found[0].n_layers < count:  # other grids than the source's
            found += self._at(views, selection, f"{EACH}:1", f"{option} {EACH}:1")
        yield from sorted(found, key=lambda way: -way.n_layers)

    def _examined(self, selection: Selection, points: Tensor | None = None) -> Examination | None:
        """Return what a selection chooses; None where it does not apply to the network."""
        points = self.points if points is None else points
        with suppress(LocalrankError):
            return examine(self.model, points, selection, self.settings.dtype, is_chosen=True)
        return None

    @cached_property
    def axes(self) -> tuple[dict[Call, Axes], Axes]:
        """The axes of all outputs, and those of the network's input."""
        records = self.examination.survey.records
        selection, dtype = self.settings.selection, self.settings.dtype
        return axes_of(self.model, self.points, records, selection, dtype)

    def _at(
        self, views: tuple[View, ...], selection: Selection, kind: str, text: str
    ) -> Iterator[WayOut]:
        """Yield the way out with some positions, if they apply to any pair."""
        wanted = Positions.parse(kind)
        chosen = replace(selection, positions=wanted)
        with suppress(LocalrankError):
            named = named_exactly(self.model, chosen)
            placed, _ = at_positions(views, self.axes, chosen, named)
            yield from self._way(text, self._of(Examination(placed, (), wanted), chosen))

    def _slices(self) -> Iterator[WayOut]:
        """Yield the output slice of the most entries along the last axis."""
        settings, selection = self.settings, self.settings.selection
        if selection.has_parts or selection.output_slice or settings.by_whole:
            return
        most = max(one.pair.record.shape[-1 - one.pair.record.is_complex] for one in self.unfit)
        count = 2 ** math.ceil(math.log2(max(2, most))) // 2
        while count:
            text = f"...,:{count}"
            needs = self._sliced(text)
            ways = [*self._way(f"--output-slice {shlex.quote(text)}", needs or ())]
            if ways or needs is None:
                yield from ways
                return
            count //= 2

    def _sliced(self, text: str) -> list[Need] | None:
        needs = []
        for one in self.needs:
            record = one.pair.record
            try:
                found = positions(
                    text, record.shape, "--output-slice", "", is_complex=record.is_complex
                )
            except LocalrankError:
                return None
            pair = replace(one.pair, record=replace(record, shape=(found.shape[0],)))
            columns = self._columns(pair.n_in)
            needs.append(Need(pair, needed_bytes(found.shape[0], columns)))
        return needs

    def _fewer_tokens(self) -> Iterator[WayOut]:
        """Yield the largest number of tokens that fits, where the data are token ids."""
        if self.points.is_floating_point() or self.points.dim() != 2 or self.metric.n_bytes:
            return
        n_tokens, largest = self.points.shape[1], max(min(one.shape) for one in self.unfit)
        # Both sides of the largest grow with the tokens: (tokens, features).
        side = (math.isqrt(64 + 160 * max(0, self.room)) - 8) // 80  # of 40 side^2 + 8 side bytes
        count = n_tokens * side // largest
        if _FEWEST_TOKENS <= count < n_tokens:
            selection = self.settings.selection
            found = self._examined(selection, self.points[:, :count])
            if found is not None:
                yield from self._way(_cut(count), self._of(found, selection))


def _cut(count: int) -> str:
    return f"data of {count} tokens for each point (x[:, :{count}])"


def place_one(points: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the first point, shape (1, ...), on a device."""
    return points[:1].to(device=device, dtype=dtype if points.is_floating_point() else None)
