"""The selection of layers among the calls that a survey saw."""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from torch import nn

from localrank_cli.errors import LayerError, listed
from localrank_cli.layers.axes import FeatureAxis
from localrank_cli.layers.capture import Call
from localrank_cli.layers.factored import is_layer
from localrank_cli.layers.positions import Positions
from localrank_cli.layers.survey import CallRecord, Survey

# Class names of layers that are analyzed only where --layers names them, torch's and others'.
_OTHERS = re.compile(r"((RNN|LSTM|GRU)(Cell)?|Attention|Norm\d?d?)$")
_GLOB_CHARACTERS = frozenset("*?[")


LEFT_OUT = "left out by default"  # how the note of modules that are no layers begins


@dataclass(frozen=True)
class Selection:
    """Globs over qualified module names; `*` crosses dots."""

    include: tuple[str, ...] = ()  # none: every module with `is_layer`
    exclude: tuple[str, ...] = ()
    wrt: str = ""  # empty: the network's input; several names and globs with commas between
    hidden: bool = False  # without the last of the layers that would be chosen
    input_slice: str = ""  # numpy notation, of the varied tensor; empty: all of it
    output_slice: str = ""  # of each output
    # The part of the network's input that is varied where there is no `wrt`: its first entry, and
    # its shape for one point. None: all of it.
    part: tuple[int, tuple[int, ...]] | None = None
    positions: Positions = field(default_factory=Positions)
    feature_axes: tuple[FeatureAxis, ...] = ()
    residual: bool = False  # J - 1 in place of J

    @property
    def sources(self) -> tuple[str, ...]:
        """The names, globs and words of `wrt`."""
        return tuple(one.strip() for one in self.wrt.split(",") if one.strip())

    @property
    def has_one_source(self) -> bool:
        """Whether there is a single source whose name is given, or the network's input."""
        sources = self.sources
        return not sources or (
            len(sources) == 1 and not has_glob(sources[0]) and sources[0] != "previous"
        )

    @property
    def has_parts(self) -> bool:
        """Whether the table says which parts of which Jacobians were measured."""
        return not (self.positions.is_all and self.has_one_source) or self.residual

    @property
    def whole(self) -> "Selection":
        """The same layers, without slices."""
        return replace(self, input_slice="", output_slice="")


@dataclass(frozen=True)
class LayerChoice:
    """The calls to analyze, in order of execution, and what was left out and why."""

    records: tuple[CallRecord, ...]
    notes: tuple[str, ...] = field(default=())


def has_glob(pattern: str) -> bool:
    """Return whether a name holds characters of a glob."""
    return bool(_GLOB_CHARACTERS & set(pattern))


def named_call(model: nn.Module, label: str) -> Call | None:
    """Return the call that `--wrt` names, under the module's first name; None for an empty label.

    Raises:
        LayerError: If there is no such module.
    """
    if not label:
        return None
    call = Call.parse(label)
    first = first_names(model)
    if call.name not in first:
        near = difflib.get_close_matches(call.name, first, n=3)
        raise LayerError(
            f"--wrt {label}: there is no module {call.name!r}.",
            f"Nearest: {', '.join(near)}." if near else f"Modules: {listed(list(first), 20)}.",
        )
    return Call(first[call.name], call.number)


def choose_layers(model: nn.Module, survey: Survey, selection: Selection) -> LayerChoice:
    """Return the calls to analyze.

    Raises:
        LayerError: If a pattern matches nothing, if a layer named exactly never runs or does not
            depend on the varied tensor, or if nothing is left.
    """
    aliases = module_names(model)
    names = wanted_calls(model, selection)
    ran = [record for record in survey.records if names(record.call)]
    notes = _check_patterns(selection, aliases, survey)
    kept = [record for record in ran if record.depends and record.numel > 0]
    independent = [record.call.label for record in ran if not record.depends]
    if independent:
        notes.append(f"left out, do not depend on {_varied(selection)}: {listed(independent)}")
    vmapped = [label for label in survey.vmapped if names(Call.parse(label))]
    if vmapped:
        notes.append(f"left out, run within torch.func.vmap: {listed(vmapped)}")
    if not selection.include:
        idle = _never_ran(model, survey)
        if idle:
            notes.append(f"left out, never run as modules: {listed(idle)}")
        if kept:
            notes += _others(survey, kept)
    if selection.hidden and len(kept) > 1:
        notes.append(f"left out, the last layer: {kept[-1].call.label}")
        kept = kept[:-1]
    if not kept:
        raise _nothing_left(survey, selection, independent, vmapped)
    return LayerChoice(tuple(kept), tuple(notes))


def wanted_calls(model: nn.Module, selection: Selection) -> Callable[[Call], bool]:
    """Return which calls a selection's globs choose, whether or not they can be analyzed."""
    aliases = module_names(model)

    def matches(call: Call, pattern: str) -> bool:
        """Return whether a pattern fits a call by any name of its module."""
        return any(
            fnmatchcase(name, pattern) or fnmatchcase(Call(name, call.number).label, pattern)
            for name in aliases[call.name]
        )

    def wanted(call: Call) -> bool:
        """Return whether a call is chosen; what is excluded never is."""
        if any(matches(call, pattern) for pattern in selection.exclude):
            return False
        if selection.include:
            return any(matches(call, pattern) for pattern in selection.include)
        return is_layer(model, call.name)

    return wanted


def module_names(model: nn.Module) -> dict[str, list[str]]:
    """Return first name -> all names: Sequential(a, relu, a) knows one module as 0 and as 2."""
    first: dict[nn.Module, str] = {}
    names: dict[str, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if name:
            names.setdefault(first.setdefault(module, name), []).append(name)
    return names


def first_names(model: nn.Module) -> dict[str, str]:
    """Return every name of a module -> the first one."""
    return {name: names[0] for names in module_names(model).values() for name in names}


def named_exactly(model: nn.Module, selection: Selection) -> tuple[str, ...]:
    """Return the layers that `--layers` names without a glob, by their modules' first names."""
    first = first_names(model)
    found = []
    for pattern in selection.include:
        call = Call.parse(pattern)
        if pattern in first:
            found.append(first[pattern])
        elif not has_glob(pattern):
            found.append(replace(call, name=first.get(call.name, call.name)).label)
    return tuple(found)


def _check_patterns(
    selection: Selection, aliases: dict[str, list[str]], survey: Survey
) -> list[str]:
    everything = [name for names in aliases.values() for name in names]
    canonical = {name: first for first, names in aliases.items() for name in names}
    ran = {record.call: record for record in survey.records}
    ran_names = {call.name for call in ran}
    silent = {Call.parse(label).name for label in survey.silent}
    vmapped = {Call.parse(label).name for label in survey.vmapped}
    notes = []
    for pattern in (*selection.include, *selection.exclude):
        labels = everything + [call.label for call in ran]
        hits = [label for label in labels if fnmatchcase(label, pattern)]
        is_exact = not _GLOB_CHARACTERS & set(pattern) or pattern in everything
        if not hits:
            kind = "there is no layer" if is_exact else "no layer matches"
            raise LayerError(f"{kind} {pattern!r}.", _layers_that_run(survey))
        if pattern in selection.exclude:
            continue
        found = [canonical.get(Call.parse(hit).name, Call.parse(hit).name) for hit in hits]
        idle = sorted({name for name in found if name not in ran_names})
        if is_exact and idle:
            reason = "returns no floating-point tensor" if idle[0] in silent else "never runs"
            if idle[0] in vmapped:
                reason = "runs only within torch.func.vmap, as a part of each call"
            raise LayerError(f"layer {pattern!r} {reason}.", _layers_that_run(survey))
        if is_exact:
            call = Call.parse(hits[0])
            records = [
                record
                for record in survey.records
                if record.call.name == found[0] and (call.number == 1 or record.call == call)
            ]
            if records and not any(record.depends for record in records):
                raise LayerError(
                    f"layer {pattern!r} does not depend on {_varied(selection)}.",
                    "Its Jacobian is zero by construction (a detached or no_grad path, a module"
                    " before --wrt, or another branch); leave it out or choose another --wrt.",
                )
        idle = [name for name in idle if name not in vmapped]
        if idle and not is_exact:
            notes.append(f"left out, never run or return no floating-point tensor: {listed(idle)}")
    return notes


def _never_ran(model: nn.Module, survey: Survey) -> list[str]:
    ran = {record.call.name for record in survey.records}
    ran |= {Call.parse(label).name for label in survey.vmapped}
    return [
        name
        for name, _ in model.named_modules()
        if name and is_layer(model, name) and name not in ran
    ]


def _others(survey: Survey, kept: list[CallRecord]) -> list[str]:
    """Return a note on recurrent layers, attention and norms, with the option that selects them."""
    kinds: dict[str, list[str]] = {}
    chosen = {record.call for record in kept}
    for record in survey.records:
        if record.depends and record.call not in chosen and _OTHERS.search(record.module):
            kinds.setdefault(record.module, []).append(record.call.name)
    if not kinds:
        return []
    every = {name for names in kinds.values() for name in names}
    ran = {record.call.name for record in survey.records}
    shown = [f"{listed(list(dict.fromkeys(names)), 3)} ({kind})" for kind, names in kinds.items()]
    globs = ",".join(_globs(every, ran))
    return [f"{LEFT_OUT}: {', '.join(shown)}; --layers '{globs}' selects them"]


def _globs(names: set[str], ran: set[str]) -> list[str]:
    """Return globs that match some names and no other of the modules that ran."""
    globs: list[str] = []
    for name in sorted(names):
        glob = re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
        if {one for one in ran if fnmatchcase(one, glob)} - names or glob == "*":
            glob = name
        globs.append(glob)
    return list(dict.fromkeys(globs))


def _nothing_left(
    survey: Survey, selection: Selection, independent: list[str], vmapped: list[str]
) -> LayerError:
    if vmapped:
        return LayerError(
            "all chosen layers run within torch.func.vmap, as a part of each call:"
            f" {listed(vmapped)}.",
            f"Call them outside of vmap, on the whole batch. {_layers_that_run(survey)}",
        )
    if independent:
        return LayerError(
            f"no chosen layer depends on {_varied(selection)}: {listed(independent)}.",
            "Name a source that runs before them, or other layers; or is the forward pass detached,"
            " or run under torch.no_grad()?"
            if selection.wrt
            else "Is the forward pass detached, or run under torch.no_grad()?",
        )
    if not selection.include and not selection.exclude:
        return LayerError(
            "the model runs no Linear or Conv layer.",
            f"Name modules with --layers. {_layers_that_run(survey)}",
        )
    return LayerError("no layer is left to analyze.", _layers_that_run(survey))


def _layers_that_run(survey: Survey) -> str:
    labels = [f"{record.call.label} ({record.module})" for record in survey.records]
    if not labels:
        return "No module runs that could be analyzed."
    return f"Layers that run: {listed(labels, 20)}."


def _varied(selection: Selection) -> str:
    if not selection.has_one_source:
        return f"any source of --wrt {selection.wrt}"
    return f"the output of {selection.wrt!r}" if selection.wrt else "the input"
