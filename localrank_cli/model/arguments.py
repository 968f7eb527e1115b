"""Arguments of a network's class or function, from what checkpoints record of how it was built.

No code from a checkpoint runs: plain values are passed to parameters of their names, or to a config
that the user's own code defines.
"""

import argparse
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from torch import Tensor, nn

from localrank_cli.errors import MismatchError, ModelError, cause, listed, printable, shortened
from localrank_cli.model.values import Values
from localrank_cli.recorded import DICT, Entries, NotPlain, Record, find_not_plain, written
from localrank_cli.userimport import ANY_FAULT

# What concerns a machine, or fills the network with weights of its own: never taken from a file.
_NOT_PASSED = frozenset((
    "device", "dtype", "compile", "pretrained", "weights", "state_dict", "checkpoint",
    "checkpoint_path", "ckpt", "ckpt_path", "pretrained_path", "resume", "init_from", "cache_dir",
))  # fmt: skip
_CONFIG = re.compile(
    r"^(?:\w*_)?(?:config|cfg|conf|args|opts?|options|hparams|hyper_?parameters|settings)$"
)
_CONFIG_CLASS = re.compile(r"(?:Config|Configuration|Cfg|Conf|Args|Arguments|HParams|Options)$")
_LIBRARIES = frozenset((
    *sys.stdlib_module_names, "torch", "numpy", "transformers", "omegaconf", "pydantic",
    "lightning", "pytorch_lightning", "localrank_cli",
))  # fmt: skip
_NAMESPACES = (argparse.Namespace, types.SimpleNamespace, Mapping)
_ABSENT = NotPlain("not there")
_LONGEST_ARGUMENT = 300  # characters of an argument in a note
_URL = re.compile(r"^\s*[A-Za-z][A-Za-z0-9+.-]*://")
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

Level = Callable[[str], int]  # how closely an entry describes the network: 0 for it alone


@dataclass(frozen=True)
class Source:
    """The entries of one checkpoint, and how messages name it."""

    name: str
    entries: Entries


@dataclass(frozen=True)
class Passed:
    """A parameter and what it is given: an entry's value, or a whole entry as a config."""

    parameter: str
    entry: str
    value: object
    key: str = ""  # of the value in the entry; "" where the entry is a config
    config: str = ""  # name of its class in the user's code; "" for `Values`


@dataclass(frozen=True)
class Recorded:
    """The arguments that a series of checkpoints gives to a class or function.

    Of a config without a class in the code, only what the code asks for belongs to the settings of
    a table: a config may hold all that a training was started with.
    """

    sources: tuple[Source, ...]
    passed: tuple[Passed, ...]
    asked: dict[str, set[str]] = field(default_factory=dict)  # parameter -> names in a config

    @property
    def first(self) -> Source:
        """The checkpoint whose values are passed."""
        return self.sources[0]

    def arguments(self, factory: Callable[..., object], name: str) -> "Arguments":
        """Return new arguments for a class or function; `name` is for messages.

        Raises:
            ModelError: If a config cannot be built.
        """
        made = Arguments()
        scope, annotations = _scope(factory), _annotations(factory)
        for one in self.passed:
            place = f"{self.first.name}: {one.entry}{'.' if one.key else ''}{one.key}"
            maker = _Maker(name, factory, scope, made)
            annotation = annotations.get(one.parameter)
            if one.config:
                assert isinstance(one.value, Record)
                cls = _named_class(one.config, scope, annotation)
                found = maker.built(cls, one.value, place)
            elif one.key:
                found = maker.made(one.value, place, annotation)
            else:
                assert isinstance(one.value, Record)
                refused = self._refused(one, one.value)
                asked = self.asked.setdefault(one.parameter, set())
                found = maker.values(one.value, place, refused, asked)
            made[one.parameter] = found
        return made

    def _refused(self, one: Passed, record: Record) -> dict[str, str]:
        """Return the names in a config without a value to pass, each with the reason."""
        refused = {}
        for key, value in record.values.items():
            reason = _fault(value, key)
            for other in self.sources[1:]:
                there = other.entries.get(one.entry)
                if not reason and there is not None and _differ(value, there.values.get(key)):
                    reason = (
                        f"is {_short(value)} in {self.first.name} and"
                        f" {_short(there.values.get(key, _ABSENT))} in {other.name}"
                    )
            if reason:
                refused[key] = reason
        return refused

    def check(self, source: Source) -> None:
        """Check that a checkpoint records the values that are passed, if it records any.

        Raises:
            MismatchError: If it records others.
        """
        for one in self.passed if source.entries else ():
            there = source.entries.get(one.entry, Record(DICT, {}))
            here = self.first.entries[one.entry]
            if one.key:
                keys = {one.key}
            elif one.config:
                keys = set(one.value.values) if isinstance(one.value, Record) else set()
            else:
                keys = self.asked.get(one.parameter, set())
            for key in sorted(keys):
                if _differ(here.values.get(key), there.values.get(key, _ABSENT)):
                    advice = "Choose the checkpoints of one network with --pattern GLOB"
                    if one.key and not one.config:
                        advice += f", or give --model-arg {one.parameter}=VALUE for all"
                    raise MismatchError(
                        f"{source.name}: {one.entry}.{key} is"
                        f" {_short(there.values.get(key, _ABSENT))}, but"
                        f" {_short(here.values.get(key))} in {self.first.name}, with which the"
                        " network is built.",
                        f"{advice}.",
                    )

    def described(self) -> dict[str, str]:
        """Return the parameters and what they are given, as text for the manifest."""
        return {
            one.parameter: self._text(one, sorted(self.asked.get(one.parameter, ())))
            for one in self.passed
        }

    def _text(self, one: Passed, keys: Sequence[str] | None = None) -> str:
        """Return what is passed, of a config without a class only some keys; None: all."""
        if one.key or one.config:
            return written(one.value)
        assert isinstance(one.value, Record)
        refused = self._refused(one, one.value)
        if keys is None:
            keys = [key for key in one.value.values if key not in refused]
        return written(Record("Values", {key: one.value.values[key] for key in keys}))

    def note(self, name: str, factory: Callable[..., object]) -> str:
        """Return the note on what is passed, from where, and what is not."""
        by_entry: dict[str, list[str]] = {}
        for one in self.passed:
            text = f"{one.parameter}={printable(self._text(one))}"
            text = text if len(text) <= _LONGEST_ARGUMENT else f"{text[:_LONGEST_ARGUMENT]}..."
            by_entry.setdefault(one.entry, []).append(text)
        parts = [f"{', '.join(texts)} (entry {entry!r})" for entry, texts in by_entry.items()]
        more = "".join(self._about_config(one, factory) for one in self.passed)
        given = {one.parameter for one in self.passed}
        rest = [p.name for p in _parameters(factory) if p.kind in _NAMED and p.name not in given]
        if rest:
            more += f"; not from the checkpoints: {listed(rest)}"
        found = "; ".join(parts)
        return f"{name} is built with the arguments recorded in {self.first.name}: {found}{more}"

    def _about_config(self, one: Passed, factory: Callable[..., object]) -> str:
        if not one.config or not isinstance(one.value, Record):
            return ""
        whole = self.first.entries[one.entry]
        whole = one.value if one.key else whole
        cls = _named_class(one.config, _scope(factory), _annotations(factory).get(one.parameter))
        taken = _taken_keys(cls, whole)
        left = [printable(key) for key in whole.values if key not in taken]
        fields = [p.name for p in _parameters(cls) if p.kind in _NAMED]
        defaults = [key for key in fields if key not in taken]
        text = f"; {one.config} has no field for {listed(left)}" if left else ""
        return text + (f"; at the default of {one.config}: {listed(defaults)}" if defaults else "")


class Arguments(dict[str, Any]):
    """Arguments for one call."""

    def __init__(self) -> None:
        super().__init__()
        self.configs: list[Values] = []

    def give(self) -> None:
        """End the watch over all values, once the call is over; see `Values.give`."""
        for config in self.configs:
            config.give()


def example(factory: Callable[..., object]) -> str:
    """Return what to do about arguments that only code can give, without a capital and a stop."""
    name = getattr(factory, "__name__", "Net")
    classes = {
        id(value): key
        for key, value in _scope(factory).items()
        if _is_config_class(value) and _CONFIG_CLASS.search(key)
    }
    wants_config = any(_CONFIG.match(parameter.name) for parameter in _parameters(factory))
    inner = f"{next(iter(classes.values()))}(...)" if wants_config and len(classes) == 1 else "..."
    new = "network" if name == "make" else "make"
    return (
        f"write a function that builds the network, def {new}(): return {name}({inner}), and name"
        f" it: --model FILE.py:{new}"
    )


def find_arguments(
    factory: object, given: Mapping[str, Any], sources: Sequence[Source], level: Level
) -> Recorded | None:
    """Return what a class or function takes of what checkpoints record; None for nothing.

    `given` are arguments of the user's own, which are not replaced, and `sources` the checkpoints
    in order. Parameters with defaults are given what is recorded, too.

    Raises:
        ModelError: If what is recorded for a parameter is not plain, or differs between entries.
    """
    sources = tuple(one for one in sources if one.entries)
    if not sources or not callable(factory) or isinstance(factory, nn.Module):
        return None
    search = _Search(factory, given, sources[0], level)
    passed = [*search.by_name(), *search.further()]
    passed += search.config({one.parameter for one in passed})
    return Recorded(sources, tuple(passed)) if passed else None


@dataclass
class _Search:
    factory: Callable[..., object]
    given: Mapping[str, Any]
    source: Source
    level: Level

    def __post_init__(self) -> None:
        bound = getattr(self.factory, "keywords", None)  # of functools.partial
        own = {*self.given, *(bound if isinstance(bound, dict) else ())}
        self.parameters = _parameters(self.factory)
        self.open = [p for p in self.parameters if p.kind in _NAMED and p.name not in own]
        self.own = own

    def by_name(self) -> Iterator[Passed]:
        """Yield the parameters that have the name of a value in an entry."""
        for parameter in self.open:
            if parameter.name not in _NOT_PASSED:
                found = self._value(parameter.name)
                if found is not None and isinstance(found.value, Record):
                    annotated = _class_in(parameter.annotation)
                    name = _config_class(found.value, annotated, _scope(self.factory))
                    found = replace(found, config=name or "")
                if found is not None:
                    yield found

    def _value(self, name: str) -> Passed | None:
        holding = {place: one for place, one in self.source.entries.items() if name in one.values}
        if not holding:
            return None
        place = next(iter(holding))
        value = holding[place].values[name]
        for other, one in holding.items():
            if self.level(other) == self.level(place) and _differ(value, one.values[name]):
                raise ModelError(
                    f"{self.source.name}: {place}.{name} is {_short(value)}, and {other}.{name} is"
                    f" {_short(one.values[name])}.",
                    f"Give the one that the network was built with: --model-arg {name}=VALUE.",
                )
        fault = "" if isinstance(value, Record) else _fault(value, name)
        if fault:
            raise ModelError(
                f"{self.source.name}: {place}.{name} {fault}, and the network's code takes"
                f" {name!r}.",
                f"Give --model-arg {name}=VALUE, or {example(self.factory)}.",
            )
        return Passed(name, place, value, key=name)

    def further(self) -> Iterator[Passed]:
        """Yield values for `**kwargs`: of an entry of its name, or one for the class alone."""
        keywords = next((p for p in self.parameters if p.kind is p.VAR_KEYWORD), None)
        if keywords is None:
            return
        named = {p.name for p in self.parameters} | self.own | _NOT_PASSED
        for place, record in self.source.entries.items():
            if self.level(place) < 2 or place == keywords.name:
                for key in record.values:
                    if key not in named and key.isidentifier() and not key.startswith("_"):
                        found = self._value(key)
                        assert found is not None
                        yield found
                return

    def config(self, passed: set[str]) -> list[Passed]:
        """Return the parameter that takes a whole entry, if there is just one that may."""
        rest = [p for p in self.open if p.name not in passed and p.name not in _NOT_PASSED]
        required = [p for p in rest if p.default is p.empty]
        likely = [p for p in required or rest if self._is_config(p)]
        if len(likely) != 1:
            return []
        found = self._config_of(likely[0])
        return [found] if found is not None else []

    def _is_config(self, parameter: inspect.Parameter) -> bool:
        return bool(_CONFIG.match(parameter.name)) or _class_in(parameter.annotation) is not None

    def _config_of(self, parameter: inspect.Parameter) -> Passed | None:
        entries = self.source.entries
        own = [place for place in entries if place == parameter.name]
        order = [*own, *(place for place in entries if place not in own)]
        scope = _scope(self.factory)
        annotated = _class_in(parameter.annotation)
        for place in order:
            name = _config_class(entries[place], annotated, scope)
            if name is not None:
                cls = _named_class(name, scope, parameter.annotation)
                keys = _taken_keys(cls, entries[place])
                value = Record(name, {key: entries[place].values[key] for key in keys})
                return Passed(parameter.name, place, value, config=name)
        if annotated is not None or (parameter.default is not parameter.empty and not own):
            return None
        return Passed(parameter.name, order[0], entries[order[0]])


@dataclass
class _Maker:
    """What makes arguments of recorded values, in the scope of the user's module."""

    name: str
    factory: Callable[..., object]
    scope: Mapping[str, Any]
    made_so_far: Arguments

    def made(self, value: object, place: str, annotation: object) -> Any:
        """Return the argument for a value."""
        if isinstance(value, Record):
            cls = self._class_of(value, annotation)
            if cls is None:
                faults = {key: _fault(one, key) for key, one in value.values.items()}
                refused = {key: fault for key, fault in faults.items() if fault}
                return self.values(value, place, refused, set())
            return self.built(cls, value, place)
        inner = next(iter(typing.get_args(annotation)), None)
        if isinstance(value, dict):
            return {key: self.made(one, f"{place}[{key!r}]", None) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            parts = [self.made(one, f"{place}[{at}]", inner) for at, one in enumerate(value)]
            return parts if isinstance(value, list) else tuple(parts)
        return value

    def _class_of(self, record: Record, annotation: object) -> type | None:
        annotated = _class_in(annotation)
        if annotated is not None and _serves(annotated, record):
            return annotated
        found = self.scope.get(record.class_name)
        return found if _is_config_class(found) and _serves(found, record) else None

    def values(
        self, record: Record, place: str, refused: Mapping[str, str], asked: set[str]
    ) -> Values:
        """Return the values of a record without a class."""
        inner = {
            key: self.made(value, f"{place}.{key}", None)
            for key, value in record.values.items()
            if key not in refused
        }
        made = Values.open(inner, place, dict(refused), asked)
        self.made_so_far.configs.append(made)
        return made

    def built(self, cls: type, record: Record, place: str) -> Any:
        """Return an object of a class, called with the values that it takes."""
        advice = example(self.factory)
        advice = f"{advice[0].upper()}{advice[1:]}."
        annotations = _annotations(cls)
        arguments = {}
        for key in _taken_keys(cls, record):
            value = record.values[key]
            fault = "" if isinstance(value, Record) else _fault(value, key)
            if fault:
                raise ModelError(f"{place}.{key} {fault}, and {cls.__name__} takes it.", advice)
            arguments[key] = self.made(value, f"{place}.{key}", annotations.get(key))
        try:
            return cls(**arguments)
        except ModelError:
            raise
        except ANY_FAULT as error:
            raise ModelError(
                f"{self.name}: {cls.__name__} cannot be built from {place}: {cause(error)}.",
                advice,
            ) from error


def _config_class(record: Record, annotated: type | None, scope: Mapping[str, Any]) -> str | None:
    """Return the name of the class in the user's module that an entry is a config of.

    Without an annotation it is the class that the file names, or the only one whose fields are the
    names of the entry, or some of which the entry has all.
    """
    if annotated is not None:
        return annotated.__name__ if _serves(annotated, record) else None
    known = scope.get(record.class_name)
    if record.kind != DICT and _is_config_class(known) and _serves(known, record):
        return record.class_name
    classes = {
        id(value): name
        for name, value in scope.items()
        if _is_config_class(value) and _CONFIG_CLASS.search(name) and _serves(value, record)
    }
    whole = [
        name
        for name in classes.values()
        if set(record.values) == set(_taken_keys(scope[name], record))
    ]
    if len(whole) == 1:
        return whole[0]
    covered = [
        name
        for name in classes.values()
        if {p.name for p in _parameters(scope[name]) if p.kind in _NAMED} <= set(record.values)
    ]
    return covered[0] if len(covered) == 1 and not whole else None


def _is_config_class(value: object) -> typing.TypeGuard[type]:
    return (
        isinstance(value, type)
        and not issubclass(value, _NAMESPACES)
        and not issubclass(value, (Enum, Tensor, nn.Module))
        and (value.__module__.partition(".")[0] not in _LIBRARIES or value.__module__ == "__main__")
    )


def _named_class(name: str, scope: Mapping[str, Any], annotation: object) -> type:
    annotated = _class_in(annotation)
    found = annotated if annotated is not None and annotated.__name__ == name else scope[name]
    assert isinstance(found, type)
    return found


def _serves(cls: type, record: Record) -> bool:
    """Return whether a class can be called with values of a record, and with at least one."""
    required = {p.name for p in _parameters(cls) if p.kind in _NAMED and p.default is p.empty}
    return required <= set(record.values) and bool(_taken_keys(cls, record))


def _taken_keys(cls: type, record: Record) -> list[str]:
    parameters = _parameters(cls)
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return [key for key in record.values if key.isidentifier() and not key.startswith("_")]
    return [p.name for p in parameters if p.kind in _NAMED and p.name in record.values]


def _class_in(annotation: object) -> type | None:
    """Return the class of configs in an annotation such as `GPTConfig | None`."""
    options = [annotation, *typing.get_args(annotation)]
    found = [one for one in options if _is_config_class(one)]
    return found[0] if len(found) == 1 else None


def _annotations(factory: Callable[..., object]) -> dict[str, object]:
    return {parameter.name: parameter.annotation for parameter in _parameters(factory)}


def _parameters(factory: Callable[..., object]) -> list[inspect.Parameter]:
    with suppress(Exception):  # a name in an annotation is unknown
        return list(inspect.signature(factory, eval_str=True).parameters.values())
    with suppress(Exception):  # there is no signature
        scope = _scope(factory)
        return [
            parameter.replace(annotation=scope.get(str(parameter.annotation), object))
            for parameter in inspect.signature(factory).parameters.values()
        ]
    return []


def _scope(factory: Any) -> Mapping[str, Any]:
    """Return the global variables of the module of a class or function."""
    factory = getattr(factory, "func", factory)  # of functools.partial
    function = getattr(factory, "__init__", None) if isinstance(factory, type) else factory
    space = getattr(inspect.unwrap(function), "__globals__", None) if callable(function) else None
    module = vars(sys.modules.get(getattr(factory, "__module__", ""), types.ModuleType("")))
    return {**module, **(space or {})}


def _fault(value: object, place: str) -> str:
    """Return why a value is not passed, as the rest of a sentence; empty if it is."""
    found = find_not_plain(value, place)
    if found is not None:
        inner = "" if found[0] == place else f"holds {found[0]}, which "
        return f"{inner}is not a plain value ({found[1].kind})"
    if isinstance(value, str) and _URL.match(value):
        return f"is an address ({shortened(printable(value))})"
    return ""


def _differ(one: object, other: object) -> bool:
    return written(one) != written(other)


def _short(value: object) -> str:
    return shortened(printable(written(value)))
