"""What a forward pass shows before any Jacobian: the layers, their sources and positions."""

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from localrank_cli.errors import LayerError, listed
from localrank_cli.layers.axes import INPUT, Axes, check_known, find_axes
from localrank_cli.layers.capture import Call
from localrank_cli.layers.pairs import Pairs, Source, find_pairs
from localrank_cli.layers.plain import choose_precision, survey_precisely
from localrank_cli.layers.positions import Positions
from localrank_cli.layers.select import (
    Selection,
    choose_layers,
    first_names,
    named_call,
    named_exactly,
)
from localrank_cli.layers.setting import analysis_setting
from localrank_cli.layers.slices import positions
from localrank_cli.layers.survey import CallRecord, Survey, survey

_IDLE_AXES = (
    "--feature-axis has no effect without --positions or --residual, since whole Jacobians contain"
    " every entry"
)


@dataclass(frozen=True)
class View:
    """The chosen calls with respect to one source, as one forward pass shows them."""

    source: Source
    survey: Survey
    records: tuple[CallRecord, ...]  # with the shape of what is measured of each output
    entries: Tensor | None = None  # of the varied tensor that are varied; None: all
    picked: dict[Call, Tensor] = field(default_factory=dict)  # entries of outputs; none: all
    axes: dict[Call, Axes] = field(default_factory=dict)  # where there are --positions
    source_axes: Axes | None = None

    @property
    def whole_records(self) -> tuple[CallRecord, ...]:
        """The chosen calls with their whole outputs."""
        calls = {record.call for record in self.records}
        return tuple(record for record in self.survey.records if record.call in calls)

    @property
    def n_in(self) -> int:
        """Columns of the Jacobians: the entries that are varied."""
        return self.survey.n_in if self.entries is None else self.entries.shape[0]

    @property
    def label(self) -> str:
        """The name of the source; empty for the network's input."""
        return "" if self.source is None else self.source.label


@dataclass(frozen=True)
class Pair:
    """One layer with respect to one source."""

    view: View
    record: CallRecord
    layer_index: int
    n_in: int  # columns of the Jacobian


@dataclass(frozen=True)
class Examination:
    """The results of a forward pass, before any Jacobian is computed."""

    views: tuple[View, ...]  # one for each source, in order of execution
    notes: tuple[str, ...]
    positions: Positions = field(default_factory=Positions)

    @property
    def survey(self) -> Survey:
        """What the pass shows with respect to the first source."""
        return self.views[0].survey

    @property
    def records(self) -> tuple[CallRecord, ...]:
        """The chosen calls, in order of execution, each once."""
        order = {record.call: index for index, record in enumerate(self.survey.records)}
        every = {record.call: record for view in self.views for record in view.records}
        return tuple(sorted(every.values(), key=lambda record: order[record.call]))

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Layers by order of execution, each with its sources by order of execution."""
        index = {record.call: place for place, record in enumerate(self.records)}
        found = [
            Pair(view, record, index[record.call], self._columns(view))
            for view in self.views
            for record in view.records
        ]
        return tuple(sorted(found, key=lambda pair: pair.layer_index))

    @property
    def n_in(self) -> int:
        """Columns of the Jacobians with respect to the first source."""
        return self._columns(self.views[0])

    @property
    def entries(self) -> Tensor | None:
        """The entries of the first source that are varied; None: all."""
        return self.views[0].entries

    def _columns(self, view: View) -> int:
        if self.positions.takes_whole_source or view.source_axes is None:
            return view.n_in
        return view.source_axes.n_features


def examine(
    model: nn.Module,
    points: Tensor,
    selection: Selection,
    dtype: torch.dtype,
    *,
    is_chosen: bool = False,
) -> Examination:
    """Return the layers that a selection chooses, from a run of the first point.

    The network must be on the points' device and in `dtype`, that of the Jacobian. `is_chosen` is
    whether `choose_precision` was called for its weights.
    """
    if selection.has_one_source:
        views, notes = _one_view(model, points, selection, dtype, is_chosen=is_chosen)
    else:
        views, notes = _several_views(model, points, selection, dtype, is_chosen=is_chosen)
    if selection.residual or not selection.positions.is_all:
        if selection.part is not None and views[0].source is None:
            raise LayerError(
                f"{_asked(selection)}: the network takes several inputs, and none of them is the"
                " source.",
                "Name a module as the source with --wrt.",
            )
        axes = axes_of(model, points, views[0].survey.records, selection, dtype)
        views, more = at_positions(views, axes, selection, named_exactly(model, selection))
        notes = (*notes, *more)
    elif selection.feature_axes:
        notes = (*notes, _IDLE_AXES)
    return Examination(views, notes, selection.positions)


def axes_of(
    model: nn.Module,
    points: Tensor,
    records: Sequence[CallRecord],
    selection: Selection,
    dtype: torch.dtype,
) -> tuple[dict[Call, Axes], Axes]:
    """Return the axes of some outputs and of the network's input, from a run of two points.

    Raises:
        LayerError: If `--feature-axis` does not fit.
    """
    first = first_names(model)
    overrides = [
        replace(one, pattern=first.get(one.pattern, one.pattern)) for one in selection.feature_axes
    ]
    with analysis_setting(model, dtype):
        found = find_axes(model, points[:1].clone(), records, overrides)
    check_known(overrides, found[0])
    return found


def _one_view(
    model: nn.Module, points: Tensor, selection: Selection, dtype: torch.dtype, *, is_chosen: bool
) -> tuple[tuple[View, ...], tuple[str, ...]]:
    wrt = named_call(model, selection.wrt)
    if is_chosen:
        reason = ""
        with analysis_setting(model, dtype):
            seen = survey(model, points[:1].clone(), wrt)
    else:
        seen, reason = survey_precisely(model, points, wrt, dtype)
    chosen = choose_layers(model, seen, selection)
    notes = (*chosen.notes, reason) if reason else chosen.notes
    entries = _varied_entries(seen, selection)
    if not selection.output_slice:
        return (View(wrt, seen, chosen.records, entries),), notes
    picked = {}
    for record in chosen.records:
        what = f"the output of layer {record.call.label!r}"
        picked[record.call] = positions(
            selection.output_slice,
            record.shape,
            "--output-slice",
            what,
            is_complex=record.is_complex,
        )
    records = tuple(replace(one, shape=(picked[one.call].shape[0],)) for one in chosen.records)
    return (View(wrt, seen, records, entries, picked),), notes


def _varied_entries(seen: Survey, selection: Selection) -> Tensor | None:
    """Return the entries of the varied tensor that are varied; None: all."""
    start, shape = 0, seen.varied_shape
    is_part = selection.part is not None and not selection.wrt
    if selection.part is not None and is_part:
        start, shape = selection.part[0], (1, *selection.part[1])
    text = selection.input_slice or ("..." if is_part else "")
    if not text:
        return None
    what, option = "the varied tensor", "--input-slice"
    return start + positions(text, shape, option, what, is_complex=seen.varied_is_complex)


def _several_views(
    model: nn.Module, points: Tensor, selection: Selection, dtype: torch.dtype, *, is_chosen: bool
) -> tuple[tuple[View, ...], tuple[str, ...]]:
    def look() -> Pairs:
        """Find the pairs of sources and layers at the first point."""
        with analysis_setting(model, dtype):
            return find_pairs(model, points[:1].clone(), selection)

    found, reason = look(), ""
    if not is_chosen:
        first = next(iter(found.surveys))
        calls = [record.call for record in found.choice.records]
        reason = choose_precision(model, points[:1], calls, first, dtype)
        if reason:
            found = look()
    views = tuple(
        View(source, found.surveys[source], records) for source, records in found.records.items()
    )
    return views, (*found.choice.notes, reason) if reason else found.choice.notes


def at_positions(
    views: tuple[View, ...],
    every: tuple[dict[Call, Axes], Axes],
    selection: Selection,
    named: Collection[str],
) -> tuple[tuple[View, ...], tuple[str, ...]]:
    """Return the views with the layers that have the positions asked for, and notes.

    `every` are axes as `axes_of` returns them, and `named` the layers that are named exactly.

    Raises:
        LayerError: If no layer has them, or one that is named exactly has not with respect to any
            source.
    """
    axes, whole = every
    wanted, notes, reasons = selection.positions, list[str](), list[str]()
    placed, unfit, themselves = [], list[tuple[Call, View, str]](), list[Call]()
    for view in views:
        source = whole if view.source is None else axes[view.source]
        left_out: dict[str, list[str]] = {}
        kept = []
        for record in view.records:
            if record.call == view.source:
                themselves.append(record.call)
                continue
            reason = _unfit(axes[record.call], source, selection)
            if reason:
                unfit.append((record.call, view, reason))
                left_out.setdefault(reason, []).append(record.call.label)
            else:
                kept.append(record)
        of = f", with respect to {_source(view)}" if len(views) > 1 else ""
        found = [f"{why}: {listed(names)}" for why, names in left_out.items()]
        reasons += found
        notes += [f"left out{of}, {one}" for one in found]
        if kept:
            placed.append(replace(view, records=tuple(kept), axes=axes, source_axes=source))
    fitting = {record.call for view in placed for record in view.records}
    _check_named(unfit, fitting, named, selection)
    if not placed:
        raise _nothing_fits(reasons, selection)
    alone = [call.label for call in themselves if call not in fitting]
    notes += [f"left out, the source itself: {listed(alone)}"] if alone else []
    notes += _guesses(placed, whole)
    if wanted.is_all:
        return tuple(placed), tuple(notes)
    grids = [
        view.source_axes.grid if wanted.draws_from_source else axes[record.call].grid
        for view in placed
        for record in view.records
        if view.source_axes is not None
    ]
    wanted.check(grids)
    note = wanted.note(grids)
    sized = [replace(view, records=tuple(_sized(r, axes) for r in view.records)) for view in placed]
    return tuple(sized), (*notes, *([note] if note else []))


def _guesses(views: Sequence[View], whole: Axes) -> list[str]:
    """Return a note on axes of features that nothing shows."""
    used: dict[str, Axes] = {}
    for view in views:
        if view.source is None:
            used[INPUT] = whole
        else:
            used[view.source.label] = view.axes[view.source]
        used |= {record.call.label: view.axes[record.call] for record in view.records}
    guessed = {name: axes for name, axes in used.items() if axes.is_guess}
    if not guessed:
        return []
    first, axes = next(iter(guessed.items()))
    others = [axis for axis in range(len(axes.shape)) if axis not in (axes.batch, axes.feature)]
    return [
        "could not determine which axis holds the features for"
        f" {listed(list(guessed))}; {first!r} is taken as {axes.text()}. If that is wrong, give"
        f" --feature-axis {shlex.quote(f'{first}={others[-1]}')}"
    ]


def _nothing_fits(reasons: Sequence[str], selection: Selection) -> LayerError:
    why = f"they {reasons[0]}" if reasons else "the only one is the source itself"
    each = ""
    if selection.positions.needs_equal_grids:
        each = "; --positions each takes layers whose positions differ from the source's"
    return LayerError(
        f"no chosen layer has what {_asked(selection)} needs: {why}.",
        f"Choose other layers or another source, or correct their axes with --feature-axis{each}.",
    )


def _sized(record: CallRecord, axes: dict[Call, Axes]) -> CallRecord:
    return replace(record, shape=(axes[record.call].n_features,))


def _unfit(output: Axes, source: Axes, selection: Selection) -> str:
    """Return why a pair has no such Jacobians; empty if it has."""
    wanted = selection.positions
    if not wanted.is_all:
        if output.batch is None:
            return "have no separate point axis, so only --positions all applies"
        if source.batch is None and not wanted.takes_whole_source:
            return "have a source without a separate point axis"
        if wanted.needs_equal_grids and output.grid != source.grid:
            grids = " and ".join("x".join(map(str, one.grid)) or "none" for one in (output, source))
            return f"have different positions from the source ({grids})"
    same = output.shape == source.shape and output.feature == source.feature
    if selection.residual and not same:
        return "have a different shape from the source, so J - 1 does not exist"
    return ""


def _check_named(
    unfit: Sequence[tuple[Call, View, str]],
    fitting: Collection[Call],
    named: Collection[str],
    selection: Selection,
) -> None:
    """Check that each layer that is named exactly fits one of its sources, in one of its calls.

    Raises:
        LayerError: If one does not.
    """
    for name in named:
        if any(name in {call.name, call.label} for call in fitting):
            continue
        for call, view, reason in unfit:
            if name in {call.name, call.label}:
                raise LayerError(
                    f"layer {call.label!r} with respect to {_source(view)}: {_asked(selection)}"
                    f" does not apply; such layers {reason}.",
                    "Leave it out, choose another source with --wrt, or see localrank inspect for"
                    " the axes.",
                )


def _source(view: View) -> str:
    return view.label or f"the network's {INPUT}"


def _asked(selection: Selection) -> str:
    asked = [] if selection.positions.is_all else [f"--positions {selection.positions}"]
    return " with ".join([*asked, *(["--residual"] if selection.residual else [])])
