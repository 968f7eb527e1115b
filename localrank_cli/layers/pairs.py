"""The pairs of a source and a layer that depends on it, one for each Jacobian that is measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import Tensor, nn

from localrank_cli.errors import LayerError, listed
from localrank_cli.layers.capture import Call
from localrank_cli.layers.select import (
    LayerChoice,
    Selection,
    choose_layers,
    has_glob,
    module_names,
    named_call,
    named_exactly,
    wanted_calls,
)
from localrank_cli.layers.survey import CallRecord, Survey, survey_sources

PREVIOUS = "previous"
Source = Call | None  # None: the network's input


@dataclass(frozen=True)
class Pairs:
    """The layers that are measured with respect to each source."""

    surveys: Mapping[Source, Survey]  # in order of execution, the input first
    records: Mapping[Source, tuple[CallRecord, ...]]  # in order of execution
    choice: LayerChoice  # all chosen layers


def find_pairs(model: nn.Module, point: Tensor, selection: Selection) -> Pairs:
    """Return the pairs that a selection with several sources chooses.

    To be called within `analysis_setting`; `point` has shape (1, ...).

    Raises:
        LayerError: If a name or pattern of `--wrt` matches nothing that runs, or if a chosen layer
            that is named exactly depends on no source.
        ModelError: If the forward pass fails.
    """
    patterns = [one for one in selection.sources if one != PREVIOUS]
    exact = [named_call(model, one) for one in patterns if not has_glob(one)]
    is_previous = PREVIOUS in selection.sources
    chosen = wanted_calls(model, selection)
    aliases = module_names(model)

    def is_named(call: Call) -> bool:
        """Return whether `--wrt` names a call, in full or by a pattern."""
        names = [*aliases.get(call.name, ()), call.label]
        return call in exact or any(
            fnmatchcase(name, one) for one in patterns if has_glob(one) for name in names
        )

    def is_source(call: Call) -> bool:
        """Return whether outputs of later calls are differentiated by a call's output."""
        return is_named(call) or (is_previous and chosen(call))

    # Several inputs in one tensor are no source.
    with_input = is_previous and point.is_floating_point() and selection.part is None
    surveys = survey_sources(model, point, is_source, with_input=with_input)
    if not surveys:  # no chosen layer runs, say: choose_layers and _check_names say what does
        surveys = survey_sources(model, point, lambda _: True, with_input=False)
    _check_names(
        patterns,
        exact,
        [one for one in surveys if one is not None and is_source(one)],
        aliases,
        surveys,
    )
    feeder = None
    if is_previous and not with_input:
        feeder = _feeder(surveys, chosen)
        if feeder is not None and feeder not in surveys:
            surveys = survey_sources(
                model, point, lambda call: is_source(call) or call == feeder, with_input=False
            )
    choice = choose_layers(model, _together(surveys), selection)
    _check_previous(choice, selection)
    records: dict[Source, list[CallRecord]] = {source: [] for source in surveys}
    for layer in choice.records:
        sources: set[Source] = {one for one in surveys if one is not None and is_named(one)}
        if is_previous:
            sources.add(_previous(layer, chosen, surveys, feeder))
        for source in sources:
            record = surveys[source].find(layer.call) if source in surveys else None
            if record is not None and record.depends:
                records[source].append(record)
    kept = {source: tuple(found) for source, found in records.items() if found}
    choice = _without_idle(choice, kept, selection, named_exactly(model, selection))
    return Pairs({source: surveys[source] for source in kept}, kept, choice)


def _check_previous(choice: LayerChoice, selection: Selection) -> None:
    if selection.sources == (PREVIOUS,) and len(choice.records) == 1:
        only = choice.records[0].call.label
        raise LayerError(
            f"--wrt previous: only one layer is chosen, {only!r}, so none comes before it.",
            "Choose more with --layers, or name its source with --wrt.",
        )


def _check_names(
    patterns: Sequence[str],
    exact: Sequence[Source],
    found: Sequence[Call],
    aliases: Mapping[str, Sequence[str]],
    surveys: Mapping[Source, Survey],
) -> None:
    ran = [record.call.label for record in next(iter(surveys.values())).records] if surveys else []
    for call in exact:
        if call not in found:
            raise LayerError(
                f"--wrt {call.label if call else ''}: that module did not run or returned no"
                " floating-point tensor.",
                f"Modules that run: {listed(ran, 20)}.",
            )
    for pattern in patterns:
        if has_glob(pattern) and not any(
            fnmatchcase(name, pattern)
            for call in found
            for name in (*aliases.get(call.name, ()), call.label)
        ):
            raise LayerError(
                f"--wrt {pattern}: no module that runs has such a name.",
                f"Modules that run: {listed(ran, 20)}." if ran else "Check the pattern.",
            )


def _together(surveys: Mapping[Source, Survey]) -> Survey:
    """Return the survey whose records depend on any of the sources."""
    every = list(surveys.values())
    depends = [any(one.records[i].depends for one in every) for i in range(len(every[0].records))]
    records = [
        replace(record, depends=flag)
        for record, flag in zip(every[0].records, depends, strict=True)
    ]
    return replace(every[0], records=tuple(records))


def _feeder(surveys: Mapping[Source, Survey], chosen: Callable[[Call], bool]) -> Source:
    """Return the call whose output is the input of the first chosen layer.

    None where that is the network's input, or a sum that no module returns.
    """
    records = next(iter(surveys.values())).records if surveys else ()
    layers = sorted((one for one in records if chosen(one.call)), key=lambda one: one.began)
    return layers[0].feeder if layers else None


def _previous(
    layer: CallRecord,
    chosen: Callable[[Call], bool],
    surveys: Mapping[Source, Survey],
    feeder: Source,
) -> Source:
    """Return the nearest chosen call that ended before a layer began, and on which it depends.

    Without one, the network's input or what feeds the first layer.
    """
    before = next(iter(surveys.values())).records[: layer.began]
    for other in reversed(before):
        found = surveys[other.call].find(layer.call) if other.call in surveys else None
        if chosen(other.call) and found is not None and found.depends:
            return other.call
    return feeder


def _without_idle(
    choice: LayerChoice,
    kept: Mapping[Source, Sequence[CallRecord]],
    selection: Selection,
    named: Sequence[str],
) -> LayerChoice:
    """Return the choice without layers of which no pair is left."""
    there = {record.call for records in kept.values() for record in records}
    idle = [record.call.label for record in choice.records if record.call not in there]
    if not idle:
        return choice
    named = [label for label in idle if label in named]
    if named or not there:
        advice = "Leave it out, or name a source that runs before it"
        example = ", as in --wrt EMBEDDING,previous" if PREVIOUS in selection.sources else ""
        raise LayerError(
            f"layer {(named or idle)[0]!r} does not depend on any source in --wrt {selection.wrt}.",
            f"{advice}{example}.",
        )
    records = tuple(record for record in choice.records if record.call in there)
    note = f"left out, depend on no source of --wrt {selection.wrt}: {listed(idle)}"
    return LayerChoice(records, (*choice.notes, note))
